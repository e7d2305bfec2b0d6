from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

PATTERNS = ["block:4", "block:5x7", "vector:4", "shuffled:4", "shuffled:5x3", "shuffled:4x1", "block:64"]


@st.composite
def masks(draw: st.DrawFn):
    pattern = parse(draw(st.sampled_from(PATTERNS)))
    shape = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    return pattern, pattern.project(scores, draw(st.floats(0.02, 1))), scores


@given(masks())
def test_a_mask_comes_back_from_its_index(problem):
    pattern, mask, _ = problem
    topology = index_of(mask, pattern)
    assert torch.equal(topology.to_mask(), mask)
    assert topology.ptr.dtype == topology.col.dtype == torch.int32


@given(masks())
def test_values_go_in_and_come_back(problem):
    pattern, mask, matrix = problem
    topology = index_of(mask, pattern)
    values = topology.gather(matrix)
    assert tuple(values.shape) == (topology.num_units, topology.columns, topology.rows)
    assert torch.equal(topology.scatter(values), matrix * mask)
    assert torch.equal(topology.gather(topology.scatter(values)), values)


@given(masks())
def test_the_grid_tells_what_is_kept_and_makes_the_index_again(problem):
    pattern, mask, _ = problem
    topology = index_of(mask, pattern)
    assert tuple(topology.kept.shape) == topology.grid
    again = topology.keeping(topology.kept)
    assert torch.equal(again.ptr, topology.ptr) and torch.equal(again.col, topology.col)
    assert again.same_grid(topology)
    assert torch.equal(topology.spread(torch.ones(topology.num_units)).bool(), topology.kept)


@given(masks())
def test_means_count_what_a_unit_has_inside_the_matrix(problem):
    pattern, mask, matrix = problem
    topology = index_of(mask, pattern)
    inside = topology.gather(torch.ones(mask.shape))
    expected = (topology.gather(matrix).double() * inside).sum((1, 2)) / inside.sum((1, 2))
    torch.testing.assert_close(topology.means(topology.gather(matrix)).double(), expected, rtol=1e-5, atol=1e-6)


@given(masks())
def test_an_outer_product_has_its_values_without_being_formed(problem):
    pattern, mask, matrix = problem
    topology = index_of(mask, pattern)
    outer = torch.outer(matrix[:, 0], matrix[0])
    assert torch.equal(topology.outer(matrix[:, 0], matrix[0]), topology.gather(outer))


@given(masks())
def test_the_outputs_of_groups_are_the_rows_of_the_matrix_in_their_order(problem):
    pattern, mask, matrix = problem
    topology = index_of(mask, pattern)
    strips = [matrix[topology.outputs(group, group + 2)] for group in range(0, topology.grid[0], 2)]
    expected = matrix if topology.order is None else matrix[topology.order.long()]
    assert torch.equal(torch.cat(strips), expected)


@given(masks())
def test_an_index_made_from_a_mask_is_sound(problem):
    pattern, mask, _ = problem
    topology = index_of(mask, pattern)
    topology.check()
    assert topology.num_kept() == int(mask.sum())
    inside = topology.inside()
    everything = topology.gather(torch.ones(mask.shape)).bool()
    assert everything.all() if inside is None else torch.equal(inside, everything)


@pytest.mark.parametrize("damage", [torch.Tensor.tolist, lambda index: index.to("meta")])
@pytest.mark.parametrize("name", ["ptr", "col", "order"])
def test_an_index_that_is_no_tensor_with_memory_is_refused(name, damage):
    topology = index_of(torch.ones(4, 4, dtype=torch.bool), parse("shuffled:2"))
    topology.check()
    damaged = replace(topology, **{name: damage(getattr(topology, name))})
    with pytest.raises(ValueError, match=f"{name} must be a tensor with memory; got"):
        damaged.check()
