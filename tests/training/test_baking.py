import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def test_masks_of_a_pattern_that_fixes_its_density_are_taken_up_again():
    model = nn.Sequential(nn.Linear(8, 8))
    cw.sparsify(model, "2:4")
    masks = cw.bake(model)
    cw.sparsify(model, "2:4", masks=masks)
    assert torch.equal(model[0].sparsity.mask, masks["0"])


def test_an_average_takes_over_masks_that_moved():
    model = mlp()[:3]
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method=cw.RigL(every=1, until=9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(6):
        model(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    twins = {name: average.module.get_submodule(name) for name in sparsifier.layers}
    assert any(twin.weight[~twin.sparsity.mask].any() for twin in twins.values())
    cw.copy_masks(model, average.module)
    for name, twin in twins.items():
        assert torch.equal(twin.sparsity.mask, sparsifier.layers[name].sparsity.mask)
        assert twin.sparsity.pattern.allows(twin.sparsity.mask)
        assert not twin.weight[~twin.sparsity.mask].any()
    with pytest.raises(ValueError, match=r"they differ in 0, 2, module.0, module.2; pass the module inside"):
        cw.copy_masks(model, average)


def test_masks_are_copied_only_between_models_that_are_sparse_alike():
    source, target = mlp(), mlp()
    with pytest.raises(ValueError, match="the source has no sparse layer"):
        cw.copy_masks(source, target)
    cw.sparsify(source, {"0": "block:4"}, density=0.25)
    cw.sparsify(target, {"0": "block:2"}, density=0.25)
    mask = target[0].sparsity.mask.clone()
    with pytest.raises(ValueError, match=r"^0: its mask is Fixed\(block:4\) .* and Fixed\(block:2\)"):
        cw.copy_masks(source, target)
    assert torch.equal(target[0].sparsity.mask, mask)


def test_masks_can_be_given_and_taken_up_again_after_baking():
    model = mlp()
    x = torch.randn(2, 32)
    cw.sparsify(model, {"*": "block:4", "2": "2:4"}, density=0.25)
    model = model[:3]
    output = model(x)
    masks = cw.bake(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(model(x), output)
    cw.sparsify(model, {"0": "block:4", "2": "2:4"}, masks=masks, method=cw.RigL(every=1, until=10))
    assert all(torch.equal(model.get_submodule(name).sparsity.mask, mask) for name, mask in masks.items())
    assert torch.equal(model(x), output)


def test_zeros_that_are_there_stay_while_everything_trains():
    model = mlp()[:3]
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    sparsifier = cw.freeze_zeros(model)
    assert list(sparsifier.layers) == ["0"]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        model(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
    assert not model[0].weight[:, ::2].any()
    assert (model[0].weight[:, 1::2] != before[:, 1::2]).all()


def test_zeros_can_be_frozen_in_tiles():
    model = mlp()[:1]
    with torch.no_grad():
        model[0].weight[:4, :4] = 0
        model[0].weight[8, 8] = 0
    sparsifier = cw.freeze_zeros(model, "block:4")
    assert int((~sparsifier.layers["0"].sparsity.mask).sum()) == 16


def test_coarse_tiles_may_hold_a_frozen_zero_or_a_given_mask():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(128, 16))
    mask = torch.zeros(16, 128, dtype=torch.bool)
    mask[:, :16] = True
    cw.sparsify(model, {"1": "block:16"}, masks={"1": mask})
    masks = cw.bake(model)
    assert list(cw.freeze_zeros(model, "block:16").layers) == ["1"]
    assert torch.equal(model[1].sparsity.mask, masks["1"])
