"""Residual networks have the published numbers of parameters, and torchvision's parts and names."""

import pytest
import torch

import cutwork as cw
from cutwork.models.resnet import make_resnet
from cutwork.models.torchvision import import_torchvision


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"depth": 18, "num_classes": 100}, 11_220_132),
        ({"depth": 18, "num_classes": 10, "stem": "pooled", "bias": True}, 11_178_762),
        ({"depth": 18, "num_classes": 1000, "stem": "large"}, 11_689_512),
        ({"depth": 34, "num_classes": 1000, "stem": "large"}, 21_797_672),
        ({"depth": 50, "num_classes": 1000, "stem": "large"}, 25_557_032),
    ],
)
def test_parameters_are_as_many_as_published(options, parameters):
    with torch.device("meta"):
        assert count(make_resnet(**options)) == parameters


@pytest.mark.parametrize("depth", [18, 50])
def test_files_of_torchvision_load_and_give_the_same(depth):
    import_torchvision()
    models = pytest.importorskip("torchvision").models
    theirs = models.get_model(f"resnet{depth}", num_classes=7, width_per_group=64).eval()
    ours = make_resnet(depth, num_classes=7, stem="large").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 40, 40)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("stem", ["small", "pooled", "large"])
@pytest.mark.parametrize(("depth", "preactivation"), [(8, False), (8, True), (50, False)])
def test_every_kind_trains_and_can_be_traced(depth, preactivation, stem):
    model = make_resnet(depth, channels=1, width=8, stem=stem, preactivation=preactivation)
    x = torch.rand(2, 1, 32, 32)
    model(x).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert torch.fx.symbolic_trace(model)(x).shape == (2, 10)
    assert cw.flops(model, x).dense > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "no residual network of 20 layers here; depths are 8, 18,"),
        ({"stem": "smal"}, "unknown stem 'smal' \\(did you mean 'small'"),
        ({"depth": 50, "preactivation": True}, "preactivation is for basic blocks"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_resnet(**options)
