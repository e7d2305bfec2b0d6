"""The compiled grouping of rows, for every instruction set that runs here, against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.kernels import DEVICES, cpu
from cutwork.ops import grouping
from cutwork.ops.dispatch import KERNELS, reference_of
from cutwork.ops.grouping import group_similar, pack
from cutwork.patterns import Shuffled
from cutwork.sparsity.compressed import index_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import grouping as kernels
from cutwork.kernels.cpu.grouping import group


def test_the_kernel_has_entered_itself():
    assert (group_similar._qualname, "cpu") in KERNELS


@given(
    isa=st.sampled_from(cpu.grouping_instruction_sets()),
    rows=st.integers(1, 100),
    columns=st.one_of(st.integers(1, 200), st.integers(1900, 2200)),
    size=st.integers(1, 130),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_order_is_that_of_the_reference(isa, rows, columns, size, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    assert torch.equal(group(isa, pack(mask), size), reference_of(group_similar)(pack(mask), size))


@pytest.mark.parametrize("isa", cpu.grouping_instruction_sets())
def test_more_entries_than_16_bits_can_count_are_counted(isa):
    mask = torch.ones(6, 70000, dtype=torch.bool)
    mask[[1, 3, 4], :5000] = False
    assert group(isa, pack(mask), 3).tolist() == [0, 2, 5, 1, 3, 4]


def test_the_number_of_threads_makes_no_difference():
    mask = torch.rand(700, 900, generator=torch.Generator().manual_seed(0)) < 0.2
    before = torch.get_num_threads()
    orders = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        orders.append(group_similar(pack(mask), 16))
    torch.set_num_threads(before)
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


@pytest.mark.parametrize("isa", cpu.grouping_instruction_sets())
@pytest.mark.parametrize(("outputs", "inputs", "size"), [(1, 1, 1), (30, 21, 4), (64, 300, 16), (500, 130, 7)])
def test_what_groups_keep_is_that_of_the_reference(isa, outputs, inputs, size):
    torch.manual_seed(0)
    pattern = Shuffled(size, 1)
    tiles = index_of(pattern.project(torch.rand(outputs, inputs), 0.3), pattern)
    scores, order = torch.randn(tiles.num_units, 1, tiles.rows), torch.randperm(outputs).int()
    matrix = torch.randn(outputs, inputs)
    for kernel, decision, arguments in (
        (kernels.mark, grouping.mark, (scores > 0, tiles)),
        (kernels.mean_of_groups, grouping.mean_of_groups, (matrix, order, size)),
        (kernels.mean_of_kept, grouping.mean_of_kept, (scores, tiles, order, size)),
    ):
        assert torch.equal(kernel(isa, *arguments), reference_of(decision)(*arguments))
