import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops.passage import Passage
from cutwork.ops.topology import Topology
from cutwork.patterns import Shuffled, parse
from cutwork.sparsity.compressed import index_of


@st.composite
def indices(draw: st.DrawFn):
    """Draw two indices of one matrix, and its numbers."""
    pattern = parse(
        draw(st.sampled_from(["block:4", "block:5x7", "vector:4", "shuffled:4", "shuffled:5x3", "block:64"]))
    )
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    seeds = draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31))
    matrices = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    old, new = (index_of(pattern.project(matrix, draw(st.floats(0.02, 1))), pattern) for matrix in matrices)
    return old, new, matrices[0]


@given(indices())
def test_what_both_keep_goes_along_and_the_rest_is_zero(problem):
    old, new, matrix = problem
    values = old.gather(matrix)
    assert torch.equal(Passage(old, new).carry(values), new.gather(old.scatter(values)))


def test_outputs_that_change_their_groups_take_their_entries_along_whatever_the_units_are():
    shape, kept = (10, 12), torch.ones(3, 4, dtype=torch.bool)
    orders = [torch.randperm(10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    old, new = (Topology.from_kept(kept, shape, 4, 3, order) for order in orders)
    matrix = torch.arange(120.0).view(shape)
    assert torch.equal(Passage(old, new).carry(old.gather(matrix)), new.gather(matrix))


def test_groups_that_stay_are_carried_unit_by_unit():
    pattern = Shuffled(4, 1)
    mask = pattern.project(torch.rand(16, 8, generator=torch.Generator().manual_seed(0)), 0.4)
    old = index_of(mask, pattern)
    new = old.keeping(~old.kept)
    assert not Passage(old, new).carry(old.gather(torch.rand(16, 8))).any()
