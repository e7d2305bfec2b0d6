import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.training.dsb import dsb_layers

BLOCK = 16


def wide_resnet_22_2():
    """Return the convolutions and the linear layer of this network, in their order, without what joins them."""
    layers = {"stem": nn.Conv2d(3, 16, 3, bias=False)}
    for stage, (inputs, width) in enumerate([(16, 32), (32, 64), (64, 128)], start=1):
        layers[f"stage{stage}-first"] = nn.Conv2d(inputs, width, 3, bias=False)
        layers |= {f"stage{stage}-{i}": nn.Conv2d(width, width, 3, bias=False) for i in range(5)}
        layers[f"stage{stage}-shortcut"] = nn.Conv2d(inputs, width, 1, bias=False)
    return nn.ModuleDict(layers | {"fc": nn.Linear(128, 10)})


# The densities that the authors' program gives these layers at 0.1, before it rounds numbers of blocks up.
PUBLISHED = {
    "stem": 1.0,
    "stage1-first": 0.4211,
    "stage1-0": 0.2729,
    "stage1-shortcut": 1.0,
    "stage2-first": 0.1989,
    "stage2-4": 0.1306,
    "stage2-shortcut": 1.0,
    "stage3-first": 0.0965,
    "stage3-2": 0.0638,
    "stage3-shortcut": 0.851,
    "fc": 1.0,
}


def test_a_wide_resnet_is_trained_with_the_layers_and_densities_of_its_authors():
    model = wide_resnet_22_2()
    patterns, densities = dsb_layers(model, density=0.1, block=BLOCK)
    assert {name for name, pattern in patterns.items() if pattern == "unstructured"} == {"stem", "fc"}
    assert {patterns[name] for name in patterns if name not in ("stem", "fc")} == {"shuffled:16"}
    sizes = {name: layer.weight.numel() for name, layer in model.items()}
    for name, density in PUBLISHED.items():
        # The numbers have four digits.
        excess = densities[name] - density
        assert -1e-4 < excess < 1e-4 + (0 if name in ("stem", "fc") else BLOCK**2 / sizes[name])
    cw.sparsify(model, patterns, density=densities)
    kept = {name: int(layer.sparsity.mask.sum()) for name, layer in model.items()}
    assert all(kept[name] == round(densities[name] * sizes[name]) for name in kept)
    assert all(kept[name] % BLOCK**2 == 0 for name in kept if name not in ("stem", "fc"))


def test_the_number_of_blocks_is_rounded_up():
    model = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False))
    patterns, densities = dsb_layers(model, density=0.1)
    cw.sparsify(model, patterns, density=densities)
    # Of 36,864 weights 0.1 is 14.4 blocks.
    assert int(model[0].sparsity.mask.sum()) == 15 * BLOCK**2


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 40), (15, 32)])
def test_convolutions_too_small_for_blocks_are_unstructured(inputs, outputs):
    assert dsb_layers(nn.Conv2d(inputs, outputs, 3), density=0.5)[0] == {"": "unstructured"}


def test_inputs_that_do_not_divide_into_blocks_have_a_short_one():
    model = nn.Conv2d(20, 32, 3)
    patterns, densities = dsb_layers(model, density=0.4)
    assert patterns == {"": "shuffled:16"}
    cw.sparsify(model, patterns, density=densities)
    assert float(model.sparsity.mask.float().mean()) == pytest.approx(0.4, abs=BLOCK**2 / model.weight.numel())
    assert torch.equal(model.weight * model.sparsity.mask, model.weight)
