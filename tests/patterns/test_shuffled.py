import pytest
import torch

from cutwork.ops import grouping
from cutwork.ops.grouping import read_groups
from cutwork.patterns import Shuffled


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


def test_regrowth_leaves_the_groups_alone_and_exchanges_the_fraction():
    scores = torch.rand(32, 64, generator=torch.Generator().manual_seed(0))
    pattern = Shuffled(4, 4)
    mask = pattern.project(scores, 0.25)
    new = pattern.regrow(mask, scores, torch.rand(32, 64, generator=torch.Generator().manual_seed(1)), 0.5)
    order = read_groups(mask, 4)
    assert torch.equal(new[order][::4].repeat_interleave(4, 0), new[order])
    runs = 0.25 * 8 * 16
    assert int((mask & ~new).sum()) <= 0.5 * runs * 16
    assert int((mask & ~new).sum()) > 0.25 * runs * 16


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
    assert pattern.allows(pattern.regrow(mask, scores, scores.flip(0), 0.5))
    assert not pattern.allows(mask ^ torch.eye(rows, 64, dtype=torch.bool))
    assert torch.equal(pattern.tiling.order(mask).sort().values, torch.arange(rows))


def test_a_mask_of_other_shape_is_not_legal():
    scattered = torch.eye(8, dtype=torch.bool)
    assert not Shuffled(4, 4).allows(scattered)
    three_columns = torch.zeros(8, 8, dtype=torch.bool)
    three_columns[:, :3] = True
    assert not Shuffled(4, 4).allows(three_columns)
    assert Shuffled(4, 3).allows(three_columns)
