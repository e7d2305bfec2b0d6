"""What is kept of groups and of 4x4 tiles, against rules written down anew, and kernels against the references."""

import itertools
import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops.dispatch import KERNELS, reference_of
from cutwork.ops.selection import keep_best_runs, keep_best_tiles, keep_in_groups, keep_largest, keep_tiles_greedily

BOTH = [reference_of, lambda decision: decision]
INF = math.inf


@st.composite
def scores(draw: st.DrawFn, m: int = 4, dtypes=(torch.float32, torch.float64)) -> torch.Tensor:
    """Draw scores of any height and width, often with many ties, infinities and both zeros among them."""
    shape = 4 * draw(st.integers(0, 12)), m * draw(st.integers(1, 24))
    made = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    made = made.to(draw(st.sampled_from(dtypes)))
    if draw(st.booleans()):
        made = made.mul(2).round()
    for value in draw(st.lists(st.sampled_from([INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-45]), max_size=3)):
        made[torch.rand(shape, generator=torch.Generator().manual_seed(made.numel())) < 0.3] = value
    return made


@cache
def legal_tiles(n: int) -> torch.Tensor:
    """Return all 4x4 tiles with n entries a row and column, found among all, in falling order of their bits."""
    tiles = torch.tensor(list(itertools.product([True, False], repeat=16))).view(-1, 4, 4)
    return tiles[(tiles.sum(1) == n).all(1) & (tiles.sum(2) == n).all(1)]


def sum_in_order(tile: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    rows = []
    for row, chosen in zip(tile, kept, strict=True):
        first, *rest = row[chosen]
        for entry in rest:
            first = first + entry
        rows.append(first)
    return (rows[0] + rows[1]) + (rows[2] + rows[3])


def best_of(tile: torch.Tensor, n: int) -> torch.Tensor:
    bound = torch.finfo(tile.dtype).max / 16
    finite = tile.masked_fill(tile.isinf(), 0).clamp(-bound, bound)

    def rank(kept):
        return int((tile[kept] == INF).sum()), -int((tile[kept] == -INF).sum()), float(sum_in_order(finite, kept))

    # The first of the largest.
    return max(legal_tiles(n), key=rank)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("spread", [1.0, 3.0, 1e3])
@pytest.mark.parametrize("decide", BOTH)
def test_the_best_tile_is_the_first_of_the_largest_among_all_legal_ones(n, spread, decide):
    generator = torch.Generator().manual_seed(n)
    for _ in range(4):
        tile = torch.randn(4, 4, generator=generator).mul(spread)
        tile = tile if spread == 1 else tile.round()
        tile[torch.rand(4, 4, generator=generator) < 0.1] = INF
        tile[torch.rand(4, 4, generator=generator) < 0.3] = -INF
        assert torch.equal(decide(keep_best_tiles)(tile, n), best_of(tile, n))


@pytest.mark.parametrize("decide", BOTH)
def test_sums_of_huge_scores_do_not_overflow(decide):
    tile = torch.full((4, 4), -3e38)
    tile[torch.arange(4), torch.arange(4)] = 3e38
    tile[0, 0] = INF
    kept = decide(keep_best_tiles)(tile, 2)
    assert kept.diagonal().all() and kept.sum() == 8


def greedy_of(tile: list[float], n: int) -> list[bool]:
    """Sort places by a network that puts equal scores the other way round, then take them from the end."""
    places = list(range(16))

    def compare(i, j):
        if not tile[places[i]] < tile[places[j]]:
            places[i], places[j] = places[j], places[i]

    def merge(i, x, j, y):
        if x == 1 and y == 1:
            compare(i, j)
        elif x == 1 and y == 2:
            compare(i, j + 1), compare(i, j)
        elif x == 2 and y == 1:
            compare(i, j), compare(i + 1, j)
        else:
            a, b = x // 2, y // 2 if x % 2 else (y + 1) // 2
            merge(i, a, j, b), merge(i + a, x - a, j + b, y - b), merge(i + a, x - a, j, b)

    def sort(i, m):
        if m > 1:
            sort(i, m // 2), sort(i + m // 2, m - m // 2), merge(i, m // 2, i + m // 2, m - m // 2)

    sort(0, 16)
    kept = [False] * 16
    for place in reversed(places):
        row, column = place // 4, place % 4
        in_row, in_column = sum(kept[4 * row : 4 * row + 4]), sum(kept[column::4])
        kept[place] = in_row < n and in_column < n and tile[place] > -INF
    return kept


@given(scores(), st.integers(1, 3))
def test_greedy_tiles_are_what_the_rule_says_tile_by_tile(matrix, n):
    matrix = matrix[:4, :12]
    for decide in BOTH:
        kept = decide(keep_tiles_greedily)(matrix, n)
        for i, j in itertools.product(range(0, matrix.shape[0], 4), range(0, matrix.shape[1], 4)):
            tile = matrix[i : i + 4, j : j + 4].flatten().tolist()
            assert kept[i : i + 4, j : j + 4].flatten().tolist() == greedy_of(tile, n)


@pytest.mark.parametrize("decide", BOTH)
def test_where_all_are_equal_the_network_decides(decide):
    # Of four equal scores it puts the first last: exchanging 01, 23, 02, 13 and 12 leaves 3, 1, 2, 0.
    row = torch.zeros(4, 4)
    row[3], row[:3] = 1, -INF
    assert decide(keep_tiles_greedily)(row, 1)[3].tolist() == [True, False, False, False]
    kept = decide(keep_tiles_greedily)(torch.ones(4, 4), 2)
    assert kept.int().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]]


@given(scores(), st.integers(1, 3))
def test_kernels_and_references_keep_the_same(matrix, n):
    for decision in (keep_best_tiles, keep_tiles_greedily):
        assert torch.equal(decision(matrix, n), reference_of(decision)(matrix, n))


@given(st.sampled_from([(1, 2), (2, 4), (3, 4), (2, 8), (5, 7), (16, 32), (3, 33), (100, 256), (7, 257)]), st.data())
def test_kernels_and_references_keep_the_same_of_groups(kind, data):
    n, m = kind
    matrix = data.draw(scores(m=m))
    expected = matrix.reshape(-1, m).argsort(dim=1, descending=True, stable=True).argsort(dim=1) < n
    for decide in BOTH:
        assert torch.equal(decide(keep_in_groups)(matrix, n, m), expected.view(matrix.shape))


@given(scores(), st.integers(-1, 400))
def test_kernels_and_references_keep_the_same_of_all(matrix, count):
    ranks = matrix.flatten().argsort(descending=True, stable=True).argsort().view(matrix.shape)
    for decide in BOTH:
        assert torch.equal(decide(keep_largest)(matrix, count), ranks < count)


def test_scores_may_lie_in_memory_as_they_like():
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    for decision, rest in (
        (keep_best_tiles, (2,)),
        (keep_largest, (99,)),
        (keep_tiles_greedily, (2,)),
        (keep_in_groups, (2, 4)),
    ):
        for strange in (matrix.T, matrix[4:20, 8:36], matrix[:, ::2][:, :20]):
            assert torch.equal(decision(strange, *rest), decision(strange.contiguous(), *rest))


def test_a_mode_sees_the_reference(monkeypatch):
    monkeypatch.setitem(KERNELS, ("cutwork::keep_in_groups", "cpu"), lambda *_: pytest.fail("a kernel was called"))

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        assert keep_in_groups(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("by", BOTH)
def test_runs_take_what_their_rows_have_left(by):
    scores = torch.tensor([[9.0, 1, 8, 7, 2], [6.0, 6, 5, 6, 0]])
    allowed = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    expected = {
        1: [[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]],
        2: [[1, 0, 1, 0, 0], [1, 1, 0, 0, 0]],
        3: [[1, 0, 1, 0, 0], [1, 1, 1, 1, 0]],
        4: [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]],
        5: [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    }
    for count, kept in expected.items():
        assert by(keep_best_runs)(scores, allowed, 2, count).int().tolist() == kept
