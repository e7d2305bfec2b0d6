import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops import grouping
from cutwork.ops.grouping import pack, read_groups
from cutwork.ops.topology import Topology
from cutwork.patterns import Shuffled, shuffled


def planted(groups, rows, columns, width, seed):
    """Make scores with hidden blocks: groups of rows, far apart, with large columns of their own; and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(groups * rows, width, dtype=torch.bool)
    for group in range(groups):
        chosen = torch.randperm(width, generator=generator)[:columns]
        mask[group * rows : (group + 1) * rows, chosen] = True
    mask = mask[torch.randperm(len(mask), generator=generator)]
    noise = torch.rand(mask.shape, generator=generator)
    return mask * (1 + noise) + 0.5 * noise, mask


@pytest.mark.parametrize("seed", range(5))
def test_hidden_blocks_are_found(seed):
    scores, hidden = planted(groups=8, rows=4, columns=8, width=64, seed=seed)
    assert torch.equal(Shuffled(4, 4).project(scores, 8 / 64), hidden)


def test_hidden_blocks_are_found_under_noise_that_hides_a_fifth_of_them():
    scores, hidden = planted(groups=8, rows=8, columns=16, width=128, seed=1)
    blurred = scores * (torch.rand(scores.shape, generator=torch.Generator().manual_seed(2)) > 0.2)
    assert torch.equal(Shuffled(8, 8).project(blurred, 16 / 128), hidden)


def test_grouping_keeps_more_than_rows_as_they_come():
    scores, _ = planted(groups=8, rows=8, columns=16, width=128, seed=3)
    grouped = Shuffled(8, 1).project(scores, 0.125)
    neighbours = scores.view(8, 8, 128).mean(1).flatten().topk(128).values.sum() * 8
    assert float((scores * grouped).sum()) > 1.5 * float(neighbours)


def num_runs(mask, rows, columns):
    return int((-(-mask[read_groups(mask, rows)][::rows].sum(1) // columns)).sum())


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.floats(0, 1),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_regrowth_keeps_the_number_of_runs_and_all_of_them_at_fraction_zero(shape, tile, density, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    pattern = Shuffled(*tile)
    mask = pattern.project(torch.rand(shape, generator=generator), density)
    drop, grow = torch.randn(2, *shape, generator=generator)
    new = pattern.regrow(mask, drop, grow, fraction)
    assert pattern.allows(new)
    assert num_runs(new, *tile) == num_runs(mask, *tile)
    assert torch.equal(pattern.regrow(mask, drop, grow, 0.0), mask)


def test_rows_stay_together_where_growth_says_nothing():
    generator = torch.Generator().manual_seed(0)
    pattern = Shuffled(8, 1)
    mask = pattern.project(torch.rand(64, 128, generator=generator), 0.2)
    new = pattern.regrow(mask, torch.rand(64, 128, generator=generator), torch.rand(64, 128, generator=generator), 0.3)
    groups = read_groups(mask, 8).view(8, 8)
    assert all(bool((new[group] == new[group[0]]).all()) for group in groups)
    assert int((mask & ~new).sum()) > 0.2 * int(mask.sum())


def test_rows_change_groups_where_growth_asks_for_it():
    scores, hidden = planted(groups=8, rows=8, columns=16, width=128, seed=0)
    pattern = Shuffled(8, 1)
    mask = start = pattern.project(torch.rand(64, 128, generator=torch.Generator().manual_seed(1)), 16 / 128)
    for _ in range(20):
        # What is kept has the weight that it deserves.
        mask = pattern.regrow(mask, scores * mask, scores, 0.3)
    assert int((mask & hidden).sum()) > 0.9 * int(hidden.sum()) > 2 * int((start & hidden).sum())


def test_at_fraction_one_all_is_chosen_anew():
    scores, hidden = planted(groups=8, rows=8, columns=16, width=128, seed=0)
    start = Shuffled(8, 1).project(torch.rand(64, 128, generator=torch.Generator().manual_seed(1)), 16 / 128)
    assert torch.equal(Shuffled(8, 1).regrow(start, scores, scores, 1.0), hidden)


def test_a_full_group_gives_up_its_short_run_first():
    pattern = Shuffled(2, 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    mask[2:, :4] = True
    new = pattern.regrow(mask, torch.arange(6.0).flip(0).expand(4, 6), torch.zeros(4, 6), 0.34)
    assert pattern.allows(new)
    assert new.any(1).all()


@pytest.fixture
def no_similarity(monkeypatch):
    """Fail where rows are compared by how similar they are."""

    def compare(mask, size):
        raise AssertionError("rows were compared")

    monkeypatch.setattr(grouping, "group_similar", compare)


@pytest.mark.parametrize("rows", [32, 30])
def test_rows_that_have_their_groups_are_not_compared(rows, request):
    scores = torch.rand(rows, 64, generator=torch.Generator().manual_seed(0))
    pattern = Shuffled(4, 4)
    mask = pattern.project(scores, 0.25)
    request.getfixturevalue("no_similarity")
    assert pattern.allows(mask)
    assert not pattern.allows(mask ^ torch.eye(rows, 64, dtype=torch.bool))
    assert torch.equal(pattern.tiling.order(mask).sort().values, torch.arange(rows))


def test_a_mask_of_other_shape_is_not_legal():
    scattered = torch.eye(8, dtype=torch.bool)
    assert not Shuffled(4, 4).allows(scattered)
    three_columns = torch.zeros(8, 8, dtype=torch.bool)
    three_columns[:, :3] = True
    assert not Shuffled(4, 4).allows(three_columns)
    assert Shuffled(4, 3).allows(three_columns)


@pytest.mark.parametrize("width", [70, 500])
def test_of_a_large_matrix_a_sample_says_what_is_marked(width, monkeypatch):
    monkeypatch.setattr(shuffled, "SAMPLE", 2000)
    monkeypatch.setattr(shuffled, "PART", 999)
    torch.manual_seed(0)
    # Columns that differ in size, so that a sample of a few of them would be wrong.
    scores = torch.randn(300, width).abs() * torch.linspace(0.1, 1, width)
    kept = torch.rand(300, width) < 0.3
    marked = torch.from_numpy(np.unpackbits(shuffled._mark_largest(scores, 0.1, pack(kept)).numpy(), axis=1)[:, :width])
    grown = marked.bool() & ~kept
    assert bool(marked[kept].all())
    assert int(grown.sum()) == pytest.approx(0.1 * scores.numel(), rel=0.15)
    assert scores[grown].min() >= scores[~marked.bool()].max()


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 40)),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_index_is_settled_in_the_order_that_its_mask_tells(shape, tile, seed):
    generator = torch.Generator().manual_seed(seed)
    pattern = Shuffled(*tile)
    mask = pattern.project(torch.rand(shape, generator=generator), 0.3)
    rows, order = min(tile[0], shape[0]), read_groups(mask, tile[0])
    settled = Topology.from_mask(mask, rows, 1, order)
    # The same groups, and in each the same rows, otherwise ordered.
    groups = order[: shape[0] // rows * rows].view(-1, rows)
    groups = groups[torch.randperm(len(groups), generator=generator)].flip(1)
    other = torch.cat([groups.flatten(), order[groups.numel() :]])
    found = pattern.settle(Topology.from_mask(mask, rows, 1, other))
    assert found.same_grid(settled)
    assert torch.equal(found.ptr, settled.ptr) and torch.equal(found.col, settled.col)


def test_scores_without_bounds_make_no_nan():
    pattern = Shuffled(4, 4)
    mask = pattern.project(torch.rand(32, 32), 0.25)
    for value in (torch.inf, -torch.inf):
        scores = torch.rand(32, 32).masked_fill(torch.rand(32, 32) < 0.2, value)
        assert pattern.allows(pattern.regrow(mask, scores, torch.rand(32, 32), 0.3))
        assert pattern.allows(pattern.regrow(mask, torch.rand(32, 32), scores, 0.3))
