import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.training.freshness import look_trained


@pytest.mark.parametrize(
    "initialise",
    [
        nn.init.kaiming_uniform_,
        nn.init.kaiming_normal_,
        nn.init.xavier_uniform_,
        nn.init.xavier_normal_,
        nn.init.trunc_normal_,
        nn.init.orthogonal_,
        nn.init.zeros_,
        nn.init.ones_,
        lambda weight: nn.init.normal_(weight, std=0.02),
    ],
)
@pytest.mark.parametrize("shape", [(8, 8), (10, 512), (512, 27), (300, 300), (1, 64), (64, 1)])
def test_no_way_of_initialising_looks_trained(initialise, shape):
    for seed in range(20):
        torch.manual_seed(seed)
        assert not look_trained([initialise(torch.empty(shape))])


@pytest.mark.parametrize("width", [32, 128])
def test_a_few_epochs_of_training_can_be_seen(width, trained_on_digits):
    model = trained_on_digits(width=width, epochs=2)
    assert look_trained([model[1].weight, model[3].weight])


@pytest.mark.parametrize("init", ["magnitude", "random", "balanced"])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_zeros_that_a_mask_has_left_can_be_seen(init, density):
    layer = nn.Linear(64, 64)
    cw.sparsify(layer, "unstructured", density=density, init=init)
    cw.bake(layer)
    assert look_trained([layer.weight])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zeros_that_rounding_makes_count_for_nothing(dtype):
    torch.manual_seed(0)
    for _ in range(5):
        assert not look_trained([torch.empty(256, 256, dtype=dtype).uniform_(-0.1, 0.1)])


def test_weights_are_looked_at_only_where_something_depends_on_it(monkeypatch, caplog):
    monkeypatch.setattr("cutwork.training.sparsify.are_fresh", None)
    with caplog.at_level("INFO", logger="cutwork"):
        cw.sparsify(nn.Linear(16, 16), "block:4", density=0.5, init="random", rescale=False)
    assert caplog.messages[0] == "the weights are not scaled to their first masks, which keep the best by random"
    mask = torch.ones(16, 16, dtype=torch.bool)
    cw.sparsify(nn.Sequential(nn.Linear(16, 16)), "block:4", masks={"0": mask}, rescale=False)
