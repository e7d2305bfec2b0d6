"""The compiled choices of what is kept, for every instruction set that runs here, against the references."""

import pytest
import torch

from cutwork.kernels import DEVICES, cpu
from cutwork.ops import selection as ops
from cutwork.ops.dispatch import reference_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import selection

EVERY_ISA = pytest.mark.parametrize("isa", cpu.instruction_sets())
SIZES = [(0, 8), (4, 4), (4, 76), (8, 64), (64, 100), (12, 512)]
KINDS = [
    *((selection.keep_largest, ops.keep_largest, (count,)) for count in (1, 31, 300, 10**6)),
    *((selection.keep_best_tiles, ops.keep_best_tiles, (n,)) for n in (1, 2, 3)),
    *((selection.keep_tiles_greedily, ops.keep_tiles_greedily, (n,)) for n in (1, 2, 3)),
    *((selection.keep_in_groups, ops.keep_in_groups, kind) for kind in ((1, 2), (2, 4), (3, 4), (1, 1), (2, 257))),
]


def tied(size, seed):
    """Return scores with many ties, and some infinite ones."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(size, generator=generator)
    if seed % 2:
        made = made.mul(1.5).round()
    return made.masked_fill(torch.rand(size, generator=generator) < 0.05 * (seed % 3), (-1) ** seed * torch.inf)


@EVERY_ISA
@pytest.mark.parametrize(("kernel", "decision", "rest"), KINDS)
def test_kernels_keep_what_the_reference_keeps(isa, kernel, decision, rest):
    for seed, size in enumerate(SIZES * 3):
        width = rest[1] if decision is ops.keep_in_groups else 1
        scores = tied((size[0], size[1] * width), seed)
        assert torch.equal(kernel(isa, scores, *rest), reference_of(decision)(scores, *rest))


@EVERY_ISA
@pytest.mark.parametrize(("kernel", "decision", "rest"), KINDS)
def test_what_is_kept_does_not_depend_on_the_number_of_threads(isa, kernel, decision, rest):
    scores, results = tied((132, 1028 if decision is not ops.keep_in_groups else 257 * 4 * 15), 0), []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(kernel(isa, scores, *rest))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])
