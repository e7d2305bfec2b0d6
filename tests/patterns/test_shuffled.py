import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops.topology import Topology
from cutwork.patterns import Shuffled
from cutwork.patterns.shuffled import group_rows


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


@pytest.mark.parametrize(("rows", "size"), [(12, 4), (13, 4), (3, 4), (1, 1), (40, 7)])
def test_groups_are_balanced_and_take_every_row_once(rows, size):
    mask = torch.rand(rows, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    order = group_rows(mask, size)
    assert sorted(order.tolist()) == list(range(rows))
    assert torch.equal(order, group_rows(mask, size))


def test_identical_rows_come_together_even_when_a_short_group_looks_like_a_full_one():
    rows = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    groups = group_rows(rows, 2).split(2)
    assert all(torch.equal(rows[group[0]], rows[group[-1]]) for group in groups)


def test_grouping_4096_rows_needs_no_cube_of_memory():
    mask = torch.rand(4096, 64, generator=torch.Generator().manual_seed(0)) < 0.1
    assert len(group_rows(mask, 16)) == 4096


def test_regrowth_leaves_the_groups_alone_and_exchanges_the_fraction():
    scores = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    pattern = Shuffled(4, 4)
    mask = pattern.project(scores, 0.25)
    new = pattern.regrow(mask, scores, torch.rand(32, 64, generator=torch.Generator().manual_seed(1)), 0.5)
    order = group_rows(mask, 4)
    assert torch.equal(new[order][::4].repeat_interleave(4, 0), new[order])
    runs = 0.25 * 8 * 16
    assert int((mask & ~new).sum()) <= 0.5 * runs * 16
    assert int((mask & ~new).sum()) > 0.25 * runs * 16


@given(outputs=st.integers(1, 30), inputs=st.integers(1, 5), rows=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_groups_that_came_to_be_alike_share_their_rows_as_the_mask_alone_tells(outputs, inputs, rows, seed):
    generator, rows = torch.Generator().manual_seed(seed), min(rows, outputs)
    kept = torch.rand(-(-outputs // rows), inputs, generator=generator) < 0.5
    order = torch.randperm(outputs, generator=generator)
    topology = Topology.from_kept(kept, (outputs, inputs), rows, 1, order)
    settled = Shuffled(rows, 1).settle(topology)
    assert torch.equal(settled.to_mask(), topology.to_mask())
    assert torch.equal(settled.order, Shuffled(rows, 1).tiling.order(topology.to_mask()).int())


def test_a_full_group_gives_up_its_short_run_first():
    pattern = Shuffled(2, 4)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    mask[2:, :4] = True
    new = pattern.regrow(mask, torch.arange(6.0).flip(0).expand(4, 6), torch.zeros(4, 6), 0.34)
    assert pattern.allows(new)
    assert new.any(1).all()


def test_a_mask_of_other_shape_is_not_legal():
    scattered = torch.eye(8, dtype=torch.bool)
    assert not Shuffled(4, 4).allows(scattered)
    three_columns = torch.zeros(8, 8, dtype=torch.bool)
    three_columns[:, :3] = True
    assert not Shuffled(4, 4).allows(three_columns)
    assert Shuffled(4, 3).allows(three_columns)
