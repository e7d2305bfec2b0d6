import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods.scores import (
    NEED_NO_GRADIENT,
    SCORES,
    balanced,
    energy,
    gradient,
    magnitude,
    random,
    relative_gradient,
    taylor,
)
from cutwork.patterns import parse

WEIGHT, GRAD = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 0.5]])


def test_scores_are_what_their_names_say():
    assert magnitude(WEIGHT).tolist() == [[1, 2]]
    assert energy(WEIGHT).tolist() == [[1, 4]]
    assert gradient(WEIGHT, GRAD).tolist() == [[3, 0.5]]
    assert taylor(WEIGHT, GRAD).tolist() == [[3, 1]]


def test_squares_of_small_numbers_in_half_precision_do_not_vanish():
    small = torch.tensor([1e-4, -2e-4], dtype=torch.float16)
    assert energy(small)[1] > energy(small)[0] > 0


def test_a_relative_gradient_finds_what_is_more_than_its_row_and_column_explain():
    learned = torch.tensor([4.0, 3, 3, 3])
    grad = -torch.outer(learned, learned)
    grad[2, 3] *= 1.5
    assert gradient(grad, grad).argmax() == 0
    assert relative_gradient(grad, grad).argmax() == 2 * 4 + 3


def test_a_quiet_output_is_not_chosen_for_its_noise():
    grad = torch.ones(4, 4)
    grad[3] = torch.tensor([1e-9, 0, 0, 0])
    assert relative_gradient(grad, grad)[3].max() < 1e-8 * relative_gradient(grad, grad)[0].max()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_relative_gradients_do_not_depend_on_the_scale_of_the_loss(scale):
    grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    grad[3], grad[:, 5] = 0, 0
    found = relative_gradient(grad, scale * grad) * scale
    torch.testing.assert_close(found, relative_gradient(grad, grad))
    assert not found[3].any() and not found[:, 5].any()
    assert not relative_gradient(grad, torch.zeros(8, 8)).any()
    assert relative_gradient(grad, grad * torch.nan).isnan().any()


@pytest.mark.parametrize("pattern", ["2:4-tile", "block:4"])
def test_by_energy_more_of_the_squares_is_kept(pattern):
    weight, pattern = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), parse(pattern)
    by_magnitude, by_energy = (pattern.project(score(weight), 0.5) for score in (magnitude, energy))
    assert weight[by_energy].square().sum() > 1.002 * weight[by_magnitude].square().sum()
    assert weight[by_energy].abs().sum() < weight[by_magnitude].abs().sum()


def test_chance_repeats_for_the_same_generator():
    first, again = (random(WEIGHT, None, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("shape", [(32, 32), (32, 49), (48, 32), (7, 1), (1, 7), (5, 64)])
def test_the_best_of_a_balanced_score_lie_evenly_over_rows_and_columns(shape):
    scores = balanced(torch.empty(shape), None, torch.Generator().manual_seed(0))
    ranks = scores.flatten().argsort(descending=True)
    assert len(scores.unique()) == scores.numel()
    for count in range(1, scores.numel() + 1):
        best = torch.zeros(scores.numel(), dtype=torch.bool)
        best[ranks[:count]] = True
        for dim in (0, 1):
            per_line = best.view(shape).sum(dim)
            assert per_line.max() - per_line.min() <= 1


@pytest.mark.parametrize("pattern", ["unstructured", "block:16", "vector:16", "shuffled:16"])
def test_a_balanced_first_mask_leaves_no_output_without_inputs(pattern):
    layer = nn.Linear(512, 512)
    cw.sparsify(layer, pattern, density=0.05, init="balanced")
    assert layer.sparsity.mask.any(dim=1).all()
    assert layer.sparsity.mask.float().mean().item() == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("score", [score for score in SCORES.values() if score not in NEED_NO_GRADIENT])
def test_a_score_that_needs_a_gradient_says_so(score):
    with pytest.raises(ValueError, match="needs a gradient"):
        score(WEIGHT, None, None)
