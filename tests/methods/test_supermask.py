import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import cutwork as cw
from cutwork.methods import Supermask


def kept_tiles(model):
    layer = model[0]
    return int(layer.sparsity.pattern.units(layer.sparsity.mask).sum())


@pytest.mark.parametrize(
    ("block", "sparsity", "kept"),
    [
        (2, 0.25, 48), (2, 0.5, 32), (2, 1 - 1 / 64, 2),
        (4, 0.25, 12), (4, 0.5, 8), (4, 1 - 1 / 16, 2),
        (8, 0.25, 3), (8, 0.5, 2), (8, 1 - 1 / 4, 2),
    ],
)  # fmt: skip
def test_the_reference_rounding_keeps_the_known_numbers_of_tiles(block, sparsity, kept):
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, f"block:{block}", sparsity=sparsity, method=Supermask(count="reference"))
    assert kept_tiles(model) == kept


@pytest.mark.parametrize(
    ("sparsity", "shape", "kept"),
    [
        (0.1, (4, 4), 14),  # 0.01 * 10.0 * 15 = 1.5 zeros, and two is even
        (0.3, (2, 3), 4),  # 0.01 * 30.0 * 5 = 1.5
        (0.35, (31, 1), 20),  # 0.01 * 35.0 * 30 = 10.500000000000002, where 0.35 * 30 = 10.5 would make ten
        (0.7, (4, 4), 5),  # 0.01 * 70.0 * 15 = 10.500000000000002
        (0.5, (1, 2), 2),
        (0.875, (2, 2), 2),  # held at 1 - 1/4
        (0.0, (1, 1), 1),
    ],
)
def test_the_reference_rounds_a_product_of_doubles_with_halves_to_even(sparsity, shape, kept):
    units = shape[0] * shape[1]
    zeros = round(0.01 * float(100 * min(sparsity, 1 - 1 / units)) * (units - 1))
    assert kept == units - zeros, "the example itself"
    model = nn.Sequential(nn.Linear(shape[1], shape[0]))
    cw.sparsify(model, "unstructured", sparsity=sparsity, method=Supermask(count="reference"))
    assert int(model[0].sparsity.mask.sum()) == kept


@settings(max_examples=300)
@given(st.integers(0, 999), st.integers(1, 3000))
def test_the_reference_counts_from_the_sparsity_that_was_written(thousandths, units):
    sparsity = min(thousandths / 1000, 1 - 1 / units)
    assume((1 - thousandths / 1000) * units >= 0.5)
    model = nn.Sequential(nn.Linear(units, 1))
    cw.sparsify(model, "unstructured", sparsity=thousandths / 1000, method=Supermask(count="reference"))
    assert int((~model[0].sparsity.mask).sum()) == round(0.01 * (100 * sparsity) * (units - 1))


def test_the_exact_count_is_the_nearest():
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, "block:4", density=1 / 16, method="supermask")
    assert kept_tiles(model) == 1


def test_a_score_gets_the_sum_of_weight_times_gradient_over_its_tile():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6, bias=False))
    cw.sparsify(model, "block:4", density=0.5, method="supermask")
    layer, x = model[0], torch.randn(5, 10)
    model(x).square().sum().backward()
    effective = (layer.weight * layer.sparsity.mask).detach().requires_grad_()
    nn.functional.linear(x, effective).square().sum().backward()
    product = layer.weight.detach() * effective.grad
    for i in range(2):
        for j in range(3):
            tile = product[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum()
            assert torch.allclose(layer.sparsity.scores.grad[i, j], tile, rtol=1e-4)
    assert torch.allclose(layer.weight.grad, effective.grad * layer.sparsity.mask)


def test_the_weight_can_get_its_whole_gradient():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    cw.sparsify(model, "block:4", density=0.5, method=Supermask(dense_weight_gradient=True))
    model(torch.randn(5, 8)).square().sum().backward()
    assert model[0].weight.grad[~model[0].sparsity.mask].abs().min() > 0
    assert torch.equal(model[0].sparsity(model[0].weight), model[0].weight * model[0].sparsity.mask)


def train(method, steps=12, density=0.25, pattern="block:4"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparsifier = cw.sparsify(model, pattern, density=density, method=method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
    sparsifier.attach(optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(16, 16)), torch.randint(0, 8, (16,))).backward()
        optimizer.step()
    return model, before


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_scores_learn_and_move_the_mask():
    model, before = train(Supermask())
    assert {"0.weight", "0.sparsity.scores", "0.sparsity.mask"} <= changed(model, before)


def test_a_fixed_mask_stays_and_a_fixed_weight_stays():
    model, before = train(Supermask(fixed_mask=True))
    assert changed(model, before) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    model, before = train(Supermask(fixed_weight=True))
    assert "0.weight" not in changed(model, before)
    assert "0.sparsity.scores" in changed(model, before)
    with pytest.raises(ValueError, match="leave nothing to train"):
        Supermask(fixed_mask=True, fixed_weight=True)


def test_scores_stay_in_their_range():
    model, _ = train(Supermask(score_range=(0.0, 1.0)), steps=40)
    scores = model[0].sparsity.scores
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_scores_that_are_nan_are_refused():
    model = nn.Sequential(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method="supermask")
    optimizer.add_param_group({"params": [model[0].sparsity.scores]})
    sparsifier.attach(optimizer)
    model(torch.randn(2, 16)).sum().mul(torch.nan).backward()
    with pytest.raises(ValueError, match="0: the learned scores hold nan, which has no rank"):
        optimizer.step()


def test_a_mask_chosen_anew_is_that_of_the_scores():
    for name in ("block:4", "unstructured", "2:4", "2:4-tile", "2:4-tile-greedy"):
        model, _ = train(Supermask(), density=None if name.startswith("2:4") else 0.25, pattern=name)
        for layer in (model[0], model[2]):
            pattern, scores = layer.sparsity.pattern, layer.sparsity.scores.detach()
            chosen = pattern.select(scores, pattern.count(layer.weight.shape, layer.sparsity.density))
            assert torch.equal(layer.sparsity.mask, pattern.spread(chosen, layer.weight.shape))


def test_scores_can_start_in_the_order_of_the_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    by_weight = cw.parse("block:4").project(model[0].weight.detach().abs(), 0.25)
    cw.sparsify(model, "block:4", density=0.25, method=Supermask(init="magnitude"))
    assert torch.equal(model[0].sparsity.mask, by_weight)


def test_density_can_fall_in_the_course_of_training():
    method = Supermask(start_density=1.0, until=8)
    model, _ = train(method, steps=0)
    assert model[0].sparsity.mask.all()
    model, _ = train(method, steps=12)
    assert kept_tiles(model) == 4
    with pytest.raises(ValueError, match="give both"):
        Supermask(start_density=0.5)


@pytest.mark.parametrize("transform", [None, (1.0, 2.0)])
@pytest.mark.parametrize("fixed", [False, True])
def test_binned_weights_take_few_values(transform, fixed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    method = Supermask(weight_bits=1, transform=transform, fixed_transform=fixed)
    cw.sparsify(model, "block:4", density=1.0, method=method)
    layer = model[0]
    effective = layer.sparsity(layer.weight)
    assert len(effective.unique()) == 2
    if transform:
        assert effective.unique().tolist() == [-1.0, 1.0]
    else:
        assert (effective - layer.weight).abs().max() <= 0.51 * (layer.weight.max() - layer.weight.min()) / 2
    model(torch.randn(4, 16)).square().sum().backward()
    assert layer.weight.grad.abs().min() > 0
    assert (layer.sparsity.scale.grad is None) == fixed
    with pytest.raises(ValueError, match="weight_bits"):
        Supermask(weight_bits=-1)


@pytest.mark.parametrize(("bits", "transform"), [(1, (0.0, -0.5)), (2, (0.1, 0.3)), (3, None)])
def test_binned_weights_get_the_gradients_of_the_original(bits, transform):
    """There the numbers of the bins are what trains, in units of a bin: a weight is as many times steeper."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8, bias=False)).double()
    method = Supermask(weight_bits=bits, transform=transform)
    cw.sparsify(model, "block:4", density=0.5, method=method)
    layer, x = model[0], torch.randn(5, 12).double()
    before = layer.weight.detach()
    width = (before.max() - before.min()) / 2**bits
    numbers = torch.full_like(before, -(2 ** (bits - 1)))
    for bin_number in range(1, 2**bits):
        numbers += before > before.min() + bin_number * width
    numbers.requires_grad_()
    shift, scale = (value.detach().clone().requires_grad_() for value in (layer.sparsity.shift, layer.sparsity.scale))
    gate = layer.sparsity.mask.double().requires_grad_()
    nn.functional.linear(x, (numbers * scale + shift) * gate).square().sum().backward()
    model(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, numbers.grad / width)
    torch.testing.assert_close(layer.sparsity.scale.grad, scale.grad)
    torch.testing.assert_close(layer.sparsity.shift.grad, shift.grad)
    torch.testing.assert_close(layer.sparsity.scores.grad, 16 * layer.sparsity.pattern.pool(gate.grad))


def test_weights_that_are_all_equal_can_be_binned():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model[0].weight, 0.5)
    cw.sparsify(model, "unstructured", density=0.5, method=Supermask(weight_bits=2))
    model(torch.ones(1, 4)).sum().backward()
    assert model[0].weight.grad.isfinite().all()


def test_costs():
    assert Supermask().dense_gradient_share == 1
    assert Supermask(fixed_mask=True).dense_gradient_share == 0
