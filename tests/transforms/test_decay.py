import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cutwork as cw


def explicit(first, second, weight_decay):
    product = second.flatten(1) @ first.flatten(1)
    return weight_decay / 2 * product.square().sum()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3, 20), (16, 3)),
        ((24, 20), (16, 24)),
        ((4, 6, 3, 3), (10, 4, 1, 1)),
        ((40, 6, 3, 3), (10, 40)),
        ((1, 1), (1, 1)),
    ],
)
def test_it_is_the_decay_of_the_product_with_its_gradients(first, second):
    torch.manual_seed(0)
    one, two = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in (first, second))
    found, expected = cw.folded_decay(one, two, weight_decay=0.3), explicit(one, two, 0.3)
    torch.testing.assert_close(found, expected)
    for slope, other in zip(
        torch.autograd.grad(found, (one, two)), torch.autograd.grad(expected, (one, two)), strict=True
    ):
        torch.testing.assert_close(slope, other)


@pytest.mark.parametrize("rank", [2, 8, 64])
def test_it_forms_what_is_cheaper(rank):
    first, second = torch.randn(rank, 32), torch.randn(16, rank)
    with FlopCounterMode(display=False) as counter:
        cw.folded_decay(first, second, weight_decay=0.1)
    assert counter.get_total_flops() == 2 * min(rank * rank * (32 + 16), rank * 32 * 16)


def test_half_precision_is_summed_in_single():
    first, second = torch.full((2, 300), 4.0).half(), torch.full((300, 2), 4.0).half()
    assert float(cw.folded_decay(first, second, weight_decay=1.0)) == 300 * 300 * 32**2 / 2


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_the_gradient_of_sparse_factors_stays_behind_their_masks(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 24, bias=False)).double()
    cw.sparsify(model, "block:4", density=0.5, storage=storage)
    weights = [layer.weight if storage == "compressed" else layer.sparsity(layer.weight) for layer in model]
    expected = explicit(*(layer.sparsity.matrix(layer.trained) for layer in model), 0.1)
    decay = cw.folded_decay(*weights, weight_decay=0.1)
    torch.testing.assert_close(decay.detach(), expected)
    decay.backward()
    whole = [layer.sparsity.matrix(layer.trained).requires_grad_() for layer in model]
    explicit(*whole, 0.1).backward()
    for layer, weight in zip(model, whole, strict=True):
        found = layer.sparsity.matrix(layer.trained.grad)
        torch.testing.assert_close(found, weight.grad * layer.sparsity.mask_matrix())


def test_what_does_not_multiply_is_refused():
    with pytest.raises(ValueError, match=r"shapes \[3, 20\] and \[16, 4\] do not multiply; give the weights"):
        cw.folded_decay(torch.ones(3, 20), torch.ones(16, 4), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"shapes \[3, 20\] and \[16, 3, 3, 3\] do not multiply"):
        cw.folded_decay(torch.ones(3, 20), torch.ones(16, 3, 3, 3), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"shapes \[3\] and \[3, 3\]"):
        cw.folded_decay(torch.ones(3), torch.ones(3, 3), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"weight_decay=-0.1 would make the product larger"):
        cw.folded_decay(torch.ones(3, 20), torch.ones(16, 3), weight_decay=-0.1)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_all_factors_of_a_model_decay_in_one_line(storage):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4))), torch.rand(1, 16)
    larger = cw.transforms.factorized(model, 0.5, inputs=x)
    cw.sparsify(larger.model, larger.patterns("block:4"), density=larger.densities, storage=storage)
    pairs = [larger.model[1], larger.model[2]]
    expected = sum(
        explicit(*(part.sparsity.layout.from_matrix(part.sparsity.matrix(part.trained)) for part in each), 0.1)
        for each in ((pair.first, pair.second) for pair in pairs)
    )
    found = cw.transforms.decay_of_factors(larger.model, weight_decay=0.1)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(part.trained.grad.any() for pair in pairs for part in (pair.first, pair.second))
    groups = cw.param_groups(larger.model, lr=0.1, weight_decay=0.1, folded=True)
    decayed = {id(each) for group in groups if group["weight_decay"] for each in group["params"]}
    assert decayed == {id(larger.model[0].weight), id(larger.model[3].weight)}


def test_pairs_beside_a_sparse_layer_decay_and_those_with_a_norm_do_not():
    model, x = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3))), torch.rand(1, 16)
    doped = cw.transforms.doped(model, 0.5, inputs=x).model
    pair = doped[1].pair
    expected = explicit(pair.first.weight, pair.second.weight, 0.1)
    torch.testing.assert_close(cw.transforms.decay_of_factors(doped, weight_decay=0.1), expected)
    normed = cw.transforms.factorized(model, 0.5, inputs=x, between="norm").model
    with pytest.raises(ValueError, match="no factors with nothing between them"):
        cw.transforms.decay_of_factors(normed, weight_decay=0.1)
