"""The compiled grouping of rows, for every instruction set that runs here, against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.kernels import DEVICES, cpu
from cutwork.ops.dispatch import KERNELS, reference_of
from cutwork.ops.grouping import group_similar

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu.grouping import group


def test_the_kernel_has_entered_itself():
    assert (group_similar._qualname, "cpu") in KERNELS


@given(
    isa=st.sampled_from(cpu.instruction_sets()),
    rows=st.integers(1, 100),
    columns=st.one_of(st.integers(1, 200), st.integers(1900, 2200)),
    size=st.integers(1, 130),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_order_is_that_of_the_reference(isa, rows, columns, size, density, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
    assert torch.equal(group(isa, mask, size), reference_of(group_similar)(mask, size))


@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_more_entries_than_16_bits_can_count_are_counted(isa):
    mask = torch.ones(6, 70000, dtype=torch.bool)
    mask[[1, 3, 4], :5000] = False
    assert group(isa, mask, 3).tolist() == [0, 2, 5, 1, 3, 4]


def test_the_number_of_threads_makes_no_difference():
    mask = torch.rand(700, 900, generator=torch.Generator().manual_seed(0)) < 0.2
    before = torch.get_num_threads()
    orders = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        orders.append(group_similar(mask, 16))
    torch.set_num_threads(before)
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
