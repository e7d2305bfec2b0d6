import pytest
import torch
from torch import nn

from cutwork.evaluation import call_of
from cutwork.transforms.growth import find_growth
from cutwork.transforms.sizes import Attribute, trace_sizes


def trace(model, *inputs):
    return trace_sizes(model, call_of(model, inputs))


def grown(model, *inputs, factor=2.0, multiple=1):
    """Return how large each size of a parameter becomes."""
    sizes = trace(model, *inputs)
    growth = find_growth(sizes, factor, multiple)
    return {name: tuple(map(growth.size, shape)) for name, shape in sizes.parameters.items()}


class Joining(nn.Module):
    """Two branches that are joined, or added."""

    def __init__(self, joins):
        super().__init__()
        self.joins = joins
        self.left, self.right = nn.Linear(4, 6), nn.Linear(4, 10 if joins else 6)
        self.last = nn.Linear(16 if joins else 6, 3)

    def forward(self, x):
        parts = self.left(x), self.right(x)
        return self.last(torch.cat(parts, dim=1) if self.joins else parts[0] + parts[1])


@pytest.mark.parametrize("factor", [2, 1.5, 3])
def test_joined_widths_add_up(factor):
    sizes = grown(Joining(joins=True), torch.rand(2, 4), factor=factor)
    left, right = sizes["left.weight"][0], sizes["right.weight"][0]
    assert sizes["last.weight"] == (3, left + right)
    assert (left, right) == (6 * factor, 10 * factor)


def test_added_widths_stay_equal():
    sizes = grown(Joining(joins=False), torch.rand(2, 4), factor=1.7)
    assert sizes["left.weight"] == sizes["right.weight"] == (10, 4)
    assert sizes["last.weight"] == (3, 10)


def test_what_the_model_takes_and_returns_keeps_its_size():
    sizes = grown(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)), torch.rand(2, 4))
    assert sizes["0.weight"] == (16, 4)
    assert sizes["2.weight"] == (3, 16)


def test_the_rows_of_an_embedding_are_no_width():
    sizes = grown(nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3)), torch.tensor([[1, 2]]))
    assert sizes["0.weight"] == (11, 16)


class Scaled(nn.Module):
    """Keeps its width as numbers of its own, alone and in a shape."""

    def __init__(self):
        super().__init__()
        self.width, self.shape, self.seed = 8, (8, 1), 8
        self.first, self.scale, self.last = nn.Linear(4, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).view(-1, self.width, 1) * self.scale.view(self.shape)
        return self.last(x.flatten(1))


def test_numbers_that_modules_keep_are_sizes_where_they_are_read_as_such():
    model = Scaled()
    sizes = trace(model, torch.rand(2, 4))
    growth = find_growth(sizes, 2, 1)
    found = {key.name: tuple(map(growth.size, value)) for key, value in sizes.attributes.items()}
    assert found == {"width": (16,), "shape": (16, 1), "seed": (8,)}
    assert Attribute("", "seed") in sizes.attributes
    assert (model.width, model.shape) == (8, (8, 1))


class Training(nn.Module):
    """Has a second end that only training uses."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last, self.second = (
            nn.Linear(*size) for size in ((4, 8), (8, 8), (8, 3), (8, 3))
        )

    def forward(self, x):
        x = self.middle(self.first(x))
        return (self.last(x), self.second(x)) if self.training else self.last(x)


def test_what_only_training_runs_grows_with_the_rest():
    sizes = trace(Training(), torch.rand(2, 4))
    assert "second" in sizes.called_in_training - sizes.called
    assert grown(Training(), torch.rand(2, 4))["second.weight"] == (3, 16)


def test_the_bias_of_a_transposed_convolution_belongs_to_its_outputs():
    model = nn.Sequential(nn.ConvTranspose1d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3))
    sizes = grown(model, torch.rand(2, 8, 5))
    assert [sizes[f"{at}.weight"] + sizes[f"{at}.bias"] for at in range(3)] == [
        (8, 16, 3, 16),
        (16, 16, 3, 16),
        (16, 8, 3, 8),
    ]


def test_stems_are_what_reads_the_input_itself():
    assert trace(Joining(joins=True), torch.rand(2, 4)).stems >= {"left", "right"}
    assert "last" not in trace(Joining(joins=True), torch.rand(2, 4)).stems


def test_the_layer_that_cannot_run_without_numbers_is_named():
    class Choosing(nn.Module):
        def forward(self, x):
            return x if x.max() > 0 else -x

    with pytest.raises(ValueError, match=r"^1: the model cannot run without numbers"):
        trace(nn.Sequential(nn.Linear(4, 4), Choosing()), torch.rand(2, 4))


def test_inputs_that_do_not_fit_get_the_models_own_error(caplog):
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        trace(nn.Sequential(nn.Linear(4, 4)), torch.rand(2, 5))
    assert not caplog.records
