import itertools

import pytest
import torch

from cutwork.patterns import NM, parse
from cutwork.patterns.nm import best_tiles, greedy_tiles

EXAMPLE = torch.tensor([[9.0, 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])


def test_the_published_tile_example_comes_out():
    kept = EXAMPLE * parse("2:4-tile-greedy").project(EXAMPLE, 0.5)
    assert kept.tolist() == [[9, 0, 7, 0], [0, 2, 0, 0], [8, 0, 0, 4], [0, 0, 6, 2]]


def brute_force(tile, n):
    """Return the largest sum of a legal 4x4 tile by trying every one of the 65 536 masks."""
    masks = torch.tensor(list(itertools.product([False, True], repeat=16))).view(-1, 4, 4)
    legal = masks[(masks.sum(1) == n).all(1) & (masks.sum(2) == n).all(1)]
    return float((tile * legal).sum((1, 2)).max()), len(legal)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_best_tile_is_the_best_of_all_legal_ones(n):
    for seed in range(5):
        tile = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        chosen = best_tiles(tile.view(1, 16), n).view(4, 4)
        assert float((tile * chosen).sum()) == pytest.approx(brute_force(tile, n)[0], abs=1e-6)


def test_there_are_90_legal_tiles_of_2_to_4():
    assert brute_force(EXAMPLE, 2)[1] == 90


def test_the_best_tiles_keep_more_than_greedy_ones():
    tiles = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)).abs()
    best, greedy = best_tiles(tiles, 2), greedy_tiles(tiles, 2)
    whole = greedy.sum(1) == 8
    assert ((tiles * best).sum(1) >= (tiles * greedy).sum(1) - 1e-5)[whole].all()
    assert (tiles * best).sum() > 1.01 * (tiles * greedy).sum()
    assert (best.sum(1) == 8).all()
    assert set(greedy.sum(1).tolist()) == {7, 8}
    assert 0.80 < float(whole.float().mean()) < 0.90


def test_scores_far_apart_do_not_hide_the_forced_entries():
    tiles = torch.zeros(1, 16)
    tiles[0, 5] = torch.inf
    tiles[0, :4] = 1e30
    chosen = best_tiles(tiles, 2)[0]
    assert chosen[5]
    assert chosen[:4].sum() == 2


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
