import torch

import cutwork as cw
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.learned import Learned


def learned(**options):
    torch.manual_seed(0)
    weight, pattern = torch.nn.Parameter(torch.randn(8, 6)), cw.parse("block:2")
    scores = torch.rand(pattern.grid((8, 6)))
    mask = pattern.spread(pattern.select(scores, 6), (8, 6))
    made = Learned(mask, Layout((8, 6)), pattern=pattern, density=0.5, scores=scores, **options)
    return made, weight, mask


def test_the_gradient_of_a_score_sums_weight_times_gradient_over_its_unit():
    sparsity, weight, mask = learned()
    gradient = torch.randn(8, 6)
    sparsity(weight).backward(gradient)
    products = (weight * gradient).detach().view(4, 2, 3, 2).sum((1, 3))
    torch.testing.assert_close(sparsity.scores.grad, products)
    torch.testing.assert_close(weight.grad, gradient * mask)


def test_the_gradient_of_the_weight_may_be_dense():
    sparsity, weight, mask = learned(dense_weight_gradient=True)
    effective = sparsity(weight)
    torch.testing.assert_close(effective, weight * mask)
    effective.sum().backward()
    assert torch.equal(weight.grad, torch.ones(8, 6))


def test_scores_stay_in_their_range():
    sparsity, weight, _ = learned(score_range=(0.25, 0.5))
    with torch.no_grad():
        sparsity.after_update(weight)
    assert sparsity.learned_scores().min() == 0.25 and sparsity.learned_scores().max() == 0.5


def test_a_mask_whose_scores_train_is_not_frozen():
    sparsity, weight, _ = learned()
    weight.requires_grad_(False)
    assert not sparsity.is_frozen(weight)
    sparsity.scores.requires_grad_(False)
    assert sparsity.is_frozen(weight)
