import pytest
import torch

from cutwork.patterns import Block, Unstructured, keep_largest


@pytest.mark.parametrize(("density", "kept"), [(0.1, 1), (0.149, 1), (0.15, 2), (0.5, 5), (0.001, 1), (1.0, 10)])
def test_a_count_is_the_nearest_halves_up_and_at_least_one(density, kept):
    assert Unstructured().count((1, 10), density) == kept


def test_equal_scores_are_kept_in_row_major_order():
    mask = Unstructured().project(torch.zeros(3, 4), 0.5)
    assert mask.flatten().tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize(("count", "kept"), [(-1, 0), (0, 0), (2, 2), (3, 3), (9, 3)])
def test_keep_largest_bounds_its_count(count, kept):
    assert int(keep_largest(torch.tensor([1.0, 2.0, 3.0]), count).sum()) == kept


def test_infinite_scores_have_their_place():
    scores = torch.tensor([[-torch.inf, 0.0, torch.inf, 1.0]])
    assert Unstructured().project(scores, 0.5).tolist() == [[False, False, True, True]]


def test_chance_does_not_favour_the_tiles_cut_by_an_edge():
    from cutwork.methods import View, generator_for
    from cutwork.methods.scores import random
    from cutwork.sparsity.layout import Layout
    from cutwork.sparsity.numbers import WholeNumbers

    pattern, hits = Block(8, 8), torch.zeros(3, 5)
    for seed in range(2000):
        weight = torch.zeros(17, 33)
        numbers = WholeNumbers(pattern, weight, weight > 0)
        view = View(pattern, 0.2, Layout.of(weight), numbers, None, 0, generator_for(seed, 0, "a"), False)
        hits += pattern.units(pattern.project(view.score(random), 0.2))
    expected = 2000 * 0.2
    assert ((hits - expected).abs() < 5 * (expected * 0.8) ** 0.5).all()
