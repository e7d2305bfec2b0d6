"""VGG, AlexNet, wide residual networks and the small language model: as large as published, and trainable."""

import pytest
import torch

import cutwork as cw
from cutwork.models.alexnet import make_alexnet
from cutwork.models.gpt import make_gpt
from cutwork.models.vgg import make_vgg
from cutwork.models.wide_resnet import make_wide_resnet


@pytest.mark.parametrize(
    ("make", "given", "num_classes", "parameters"),
    [
        (make_vgg, ("D",), 100, 15_301_796),
        (make_vgg, ("like",), 10, 14_991_946),
        (make_alexnet, ("s",), 100, 5_169_316),
        (make_wide_resnet, (22, 2), 100, 1_092_836),
    ],
)
def test_parameters_are_as_many_as_published(make, given, num_classes, parameters):
    with torch.device("meta"):
        model = make(*given, num_classes=num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (make_vgg, ("C",)),
        (make_alexnet, ("s",)),
        (make_wide_resnet, (16, 2)),
    ],
)
def test_each_trains_sparse_with_as_many_classes_as_asked_for(make, given):
    model = make(*given, num_classes=7, channels=1)
    cw.sparsify(model, {"*": "block:8"}, density=0.5, skip=True)
    scores = model(torch.rand(2, 1, 32, 32))
    assert scores.shape == (2, 7)
    scores.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_place_sees_no_later_one():
    model = make_gpt(32, num_blocks=2, context=16).eval()
    tokens = torch.randint(256, (2, 10))
    changed = tokens.clone()
    changed[:, 7:] = 3
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_an_earlier_place_matters():
    model = make_gpt(32, num_blocks=1, context=16).eval()
    tokens = torch.zeros(1, 8, dtype=torch.long)
    changed = tokens.clone()
    changed[0, 0] = 9
    assert not torch.equal(model(tokens)[:, 7], model(changed)[:, 7])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_vgg("E"), "unknown kind of VGG 'E'"),
        (lambda: make_alexnet("m"), "unknown size of AlexNet 'm'"),
        (lambda: make_wide_resnet(20), "6 n \\+ 4 layers: 10, 16, 22, 28 ...; got depth=20"),
        (lambda: make_wide_resnet(22, 0), "whole number from 1 on; got widen=0"),
        (lambda: make_gpt(30), "30 cannot be shared by 4 heads"),
        (lambda: make_gpt(32, context=4)(torch.zeros(1, 5, dtype=torch.long)), "at most 4 tokens at once; got 5"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
