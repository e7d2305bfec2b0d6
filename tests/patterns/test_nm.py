import pytest
import torch
from torch.sparse._semi_structured_conversions import _sparse_semi_structured_tile

from cutwork.patterns import NM, parse

EXAMPLE = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])


def test_the_published_tile_example_comes_out_but_for_its_tie():
    # PyTorch's documentation draws the other one of two equal scores in the last row; neither the network of its
    # operator nor its own reference in Python takes that.
    kept = [[9, 0, 7, 0], [0, 2, 0, 0], [8, 0, 0, 4], [0, 2, 6, 0]]
    assert (EXAMPLE * parse("2:4-tile-greedy").project(EXAMPLE, 0.5)).tolist() == kept
    assert _sparse_semi_structured_tile(EXAMPLE.clone()).tolist() == kept


def test_greedy_tiles_are_those_of_pytorch_where_no_scores_are_equal():
    scores = torch.randperm(32 * 48, generator=torch.Generator().manual_seed(0)).view(32, 48) + 1.0
    expected = _sparse_semi_structured_tile(scores.clone()) != 0
    assert torch.equal(parse("2:4-tile-greedy").project(scores, 0.5), expected)


def tiles_of(matrix):
    return matrix.view(-1, 4, matrix.shape[1] // 4, 4).transpose(1, 2).reshape(-1, 16)


def test_the_best_tiles_keep_more_than_greedy_ones():
    scores = torch.randn(160, 200, generator=torch.Generator().manual_seed(0)).abs()
    tiles = tiles_of(scores)
    best, greedy = (tiles_of(parse(name).project(scores, 0.5)) for name in ("2:4-tile", "2:4-tile-greedy"))
    whole = greedy.sum(1) == 8
    assert ((tiles * best).sum(1) >= (tiles * greedy).sum(1) - 1e-5)[whole].all()
    assert (tiles * best).sum() > 1.01 * (tiles * greedy).sum()
    assert (best.sum(1) == 8).all()
    assert set(greedy.sum(1).tolist()) == {7, 8}
    assert 0.80 < float(whole.float().mean()) < 0.90


def test_scores_far_apart_do_not_hide_the_forced_entries():
    scores = torch.zeros(4, 4)
    scores[1, 1] = torch.inf
    scores[0] = 1e30
    chosen = parse("2:4-tile").project(scores, 0.5)
    assert chosen[1, 1]
    assert chosen[0].sum() == 2


def test_a_density_on_the_way_keeps_the_largest_of_each_group_and_fills_up():
    scores = torch.tensor([[4.0, 3, 2, 1, 8, 7, 6, 5]])
    assert NM(2, 4).project(scores, 0.75).int().tolist() == [[1, 1, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NM(4, 4), "0 < n < m"),
        (lambda: NM(0, 4), "0 < n < m"),
        (lambda: NM(2, 8, "tile"), "a tile is 4x4"),
        (lambda: NM(2, 4, "tiles"), "unknown form"),
        (lambda: parse("2:4").check((4, 6)), "cannot tile 6 inputs; it needs a multiple of 4"),
        (lambda: parse("2:4-tile").check((6, 4)), "cannot tile 6 outputs; it needs a multiple of 4"),
    ],
)
def test_what_cannot_tile_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_transposable_mask_is_legal_along_both_axes():
    mask = parse("2:4-tile").project(torch.randn(32, 24), 0.5)
    assert parse("2:4").allows(mask)
    assert parse("2:4").allows(mask.T)
    assert not parse("2:4-tile").allows(parse("2:4").project(torch.randn(32, 24), 0.5))
