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


@EVERY_ISA
@pytest.mark.parametrize("columns", [1, 4, 16, 1500])
def test_runs_are_those_of_the_reference(isa, columns):
    for seed, (rows, width) in enumerate([(1, 1), (3, 5), (7, 100), (40, 300), (5, 2000)] * 6):
        scores = tied((rows, width), seed).clamp(-1e30, 1e30)
        allowed = (
            torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < (0.0, 0.1, 0.7, 1.0)[seed % 4]
        )
        num_runs = int((-(-allowed.sum(1) // columns)).sum())
        for share in (0.0, 0.01, 0.3, 1.0):
            rest = scores, allowed, columns, round(share * num_runs)
            assert torch.equal(selection.keep_best_runs(isa, *rest), reference_of(ops.keep_best_runs)(*rest))


def test_runs_do_not_depend_on_the_number_of_threads():
    scores, results = tied((100, 1000), 1), []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(ops.keep_best_runs(scores, scores < 1, 7, 500))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])
