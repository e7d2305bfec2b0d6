import pytest
import torch
from torch import Tensor, nn

from cutwork.evaluation import Call
from cutwork.transforms.comparing import compare

X = torch.rand(3, 8)


def model_of(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), layer)


def run(model: nn.Module, changed: nn.Module, *, is_copy: bool = False, x: Tensor = X, **words: str) -> None:
    compare(model, changed, Call((x,), {}), what="larger", is_copy=is_copy, **words)


def test_another_model_of_the_same_shape_fits():
    run(model_of(nn.Linear(8, 4)), model_of(nn.Linear(8, 4)))


def test_a_layer_that_does_not_run_is_named():
    with pytest.raises(ValueError, match=r"^1 does not run in the larger model, alas: RuntimeError: "):
        run(model_of(nn.Linear(8, 4)), model_of(nn.Linear(9, 4)), why_fails=", alas")


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the larger model returns \(3, 5\) where it returned \(3, 4\)"):
        run(model_of(nn.Linear(8, 4)), model_of(nn.Linear(8, 5)))


def test_numbers_that_are_not_finite_are_refused():
    broken = nn.Linear(8, 4)
    broken.weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="the larger model returns numbers that are not finite"):
        run(model_of(nn.Linear(8, 4)), model_of(broken))
    run(model_of(broken), model_of(broken))


def test_a_copy_must_compute_the_same_also_where_single_precision_would_not_show_it():
    layer = nn.Linear(8, 4)
    other = nn.Linear(8, 4)
    other.load_state_dict({name: value * (1 + 1e-4) for name, value in layer.state_dict().items()})
    run(model_of(layer), model_of(layer), is_copy=True)
    run(model_of(layer), model_of(other))
    with pytest.raises(ValueError, match="copies of the weights do not compute the same here: why; use weights='fre"):
        run(model_of(layer), model_of(other), is_copy=True, why_differs=": why")
    assert layer.weight.dtype == torch.float32


class Tokens(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x):
        return x.argmax(1) + self.shift


def test_whole_numbers_of_a_copy_must_be_equal():
    run(Tokens(0), Tokens(0), is_copy=True)
    with pytest.raises(ValueError, match="do not compute the same"):
        run(Tokens(0), Tokens(1), is_copy=True)


def test_constants_of_a_copy_follow_its_precision():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            return self.layer(x) + self.layer(torch.ones(8))

    model = Constant()
    run(model, model, is_copy=True)
    assert torch.get_default_dtype() == torch.float32


def test_what_runs_in_single_precision_only_is_named():
    class Single(nn.Module):
        def forward(self, x):
            return x.float()

    model = nn.Sequential(Single(), nn.Linear(8, 4))
    run(model, model)
    with pytest.raises(ValueError, match=r"^1 does not run in double precision, in which copies are compared"):
        run(model, model, is_copy=True)
    assert torch.get_default_dtype() == torch.float32
