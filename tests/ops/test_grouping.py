import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops.grouping import group_rows, group_similar, mean_of_kept, pack, read_bits, read_groups
from cutwork.ops.topology import Topology
from cutwork.patterns import Shuffled


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (13, 4), (3, 4), (1, 1), (40, 7)])
def test_groups_are_balanced_and_take_every_row_once(rows, size):
    mask = torch.rand(rows, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    order = group_rows(pack(mask), size)
    assert sorted(order.tolist()) == list(range(rows))
    assert torch.equal(order, group_rows(pack(mask), size))


def test_identical_rows_come_together_even_when_a_short_group_looks_like_a_full_one():
    rows = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    groups = group_rows(pack(rows), 2).split(2)
    assert all(torch.equal(rows[group[0]], rows[group[-1]]) for group in groups)


def test_grouping_4096_rows_needs_no_cube_of_memory():
    mask = torch.rand(4096, 64, generator=torch.Generator().manual_seed(0)) < 0.1
    assert len(group_rows(pack(mask), 16)) == 4096


def test_masks_with_groups_are_read_back_whole():
    mask = Shuffled(4, 3).project(torch.rand(30, 50, generator=torch.Generator().manual_seed(0)), 0.3)
    order = read_groups(mask, 4)
    assert sorted(order.tolist()) == list(range(30))
    assert all(bool((mask[group] == mask[group[0]]).all()) for group in order.split(4))


def test_rows_that_share_most_come_together():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(8, 200, generator=generator) < 0.2
    mask = hidden.repeat_interleave(16, 0) & (torch.rand(128, 200, generator=generator) < 0.7)
    shuffled = torch.randperm(128, generator=generator)
    groups = (shuffled[group_rows(pack(mask[shuffled]), 16)] // 16).view(8, 16)
    assert bool((groups == groups[:, :1]).all())


@given(
    rows=st.integers(2, 70),
    columns=st.integers(1, 300),
    size=st.integers(1, 80),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_similar_rows_are_grouped_by_overlap_over_the_roots_of_their_sizes(rows, columns, size, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    order = group_similar(pack(mask), size)
    assert sorted(order.tolist()) == list(range(rows))
    overlap = mask.double() @ mask.double().T
    cosine = overlap / (overlap.diagonal()[:, None] * overlap.diagonal()).sqrt().clamp(min=1)
    for begin in range(0, rows, size):
        assert order[begin] == order[begin:].min()
        for place in range(begin + 1, min(begin + size, rows)):
            linkage = cosine[order[begin:place]].sum(0)
            assert linkage[order[place]] >= linkage[order[place:]].max() - 1e-4 * (place - begin)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_entries_of_a_packed_mask_can_be_read(step):
    mask = torch.rand(13, 21, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(read_bits(pack(mask), 21, step), mask.flatten()[::step])


def test_what_a_row_does_not_keep_counts_as_the_least():
    tiles = Topology.from_mask(torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]]).bool(), 2, 1)
    scores = torch.tensor([[[5.0, 3.0]], [[8.0, 2.0]], [[4.0, 1.0]]])
    means = mean_of_kept(scores, tiles, torch.tensor([0, 2, 1, 3]).int(), 2)
    assert means.tolist() == [[3.0, 6.0, -torch.inf], [2.0, 1.5, -torch.inf]]
