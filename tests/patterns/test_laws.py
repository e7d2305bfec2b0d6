"""What holds for every pattern, tried on many shapes and scores."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.ops.topology import Topology
from cutwork.patterns import NM, Shuffled, TapBlock, parse

PATTERNS = [
    "unstructured", "block:4", "block:16x3", "block:5x7", "vector:4", "shuffled:4", "shuffled:4x1", "shuffled:5x3",
    "2:4", "1:4", "2:8", "2:4-tile", "1:4-tile", "2:4-tile-greedy", "block:4-2taps", "block:3x2-4taps",
]  # fmt: skip

patterns = st.sampled_from(PATTERNS).map(parse)
densities = st.floats(0.02, 1.0)
seeds = st.integers(0, 2**31)


@st.composite
def shapes(draw: st.DrawFn, pattern) -> tuple[int, int]:
    if isinstance(pattern, NM):
        return 4 * draw(st.integers(1, 9)), pattern.m * draw(st.integers(1, 9))
    if isinstance(pattern, TapBlock):
        return draw(st.integers(1, 20)), pattern.taps * draw(st.integers(1, 9))
    return draw(st.integers(1, 40)), draw(st.integers(1, 40))


@st.composite
def problems(draw: st.DrawFn):
    """Draw a pattern, scores with or without ties, and a density that the pattern can have."""
    pattern = draw(patterns)
    shape, seed = draw(shapes(pattern)), draw(seeds)
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if draw(st.booleans()):
        scores = scores.mul(2).round()
    return pattern, scores, max(draw(densities), pattern.density or 0)


def num_kept(pattern, mask):
    """Count the units that a mask keeps, without asking the pattern's own arithmetic."""
    if isinstance(pattern, Shuffled):
        rows, left = list(mask), 0
        groups: list[torch.Tensor] = []
        while rows:
            first = rows[0]
            alike = [row for row in rows if torch.equal(row, first)]
            left += -(-len(alike) // pattern.rows) * -(-int(first.sum()) // pattern.columns)
            groups.append(first)
            rows = [row for row in rows if not torch.equal(row, first)]
        return left
    if isinstance(pattern, NM) or str(pattern) == "unstructured":
        return int(mask.sum())
    if isinstance(pattern, TapBlock):
        mask = mask[:, : mask.shape[1] // pattern.taps]
    return sum(
        bool(mask[i : i + pattern.rows, j : j + pattern.columns].any())
        for i, j in itertools.product(range(0, mask.shape[0], pattern.rows), range(0, mask.shape[1], pattern.columns))
    )


@pytest.mark.parametrize("text", PATTERNS)
def test_the_text_form_reads_back(text):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_a_pattern_passes_through_parse():
    assert parse(parse("2:4")) == NM(2, 4)


@pytest.mark.parametrize("text", ["blok:4", "2:4-", "", "2:4-tiles", "blocks:4"])
def test_an_unknown_pattern_names_the_legal_ones(text):
    with pytest.raises(ValueError, match=r"unknown pattern .*; write 'unstructured', 'block:32'"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "example"),
    [
        *((text, "'block:32' or 'block:64x16'") for text in ("block", "block:4x", "block:-1")),
        *((text, "'vector:16'") for text in ("vector:-1", "vector", "vector:4x4")),
        *((text, "'shuffled:16'") for text in ("shuffled", "shuffled:4x4x4")),
    ],
)
def test_a_pattern_without_its_sizes_names_an_example(text, example):
    with pytest.raises(
        ValueError, match=rf"pattern '{text}' needs sizes in whole numbers after a colon; write {example}"
    ):
        parse(text)


@pytest.mark.parametrize("given", [None, 4, ["block:4"]])
def test_what_is_no_pattern_at_all_is_a_type_error(given):
    with pytest.raises(TypeError, match=r"a pattern is a text or a Pattern; got .* \(\w+\); write 'unstructured'"):
        parse(given)


@given(problems())
def test_a_projection_is_legal_at_the_patterns_own_density(problem):
    pattern, scores, density = problem
    mask = pattern.project(scores, pattern.density or density)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert pattern.allows(mask)


@given(problems())
def test_projection_is_idempotent(problem):
    pattern, scores, density = problem
    if pattern == NM(2, 4, "tile-greedy"):
        density = 0.5
    mask = pattern.project(scores, density)
    assert torch.equal(pattern.project(mask.float(), density), mask)


@given(problems())
def test_density_is_exact_to_one_unit(problem):
    pattern, scores, density = problem
    if pattern == NM(2, 4, "tile-greedy"):
        return
    mask = pattern.project(scores, density)
    wanted = density * pattern.num_units(scores.shape)
    kept = num_kept(pattern, mask)
    # The rows of a shuffled group that happen to look like those of another count as one group, so less than exact.
    if not isinstance(pattern, Shuffled):
        assert kept == pattern.count(scores.shape, density)
        assert abs(kept - wanted) <= 0.5 or kept == 1
    else:
        assert kept <= pattern.count(scores.shape, density)


@given(problems(), seeds, st.floats(0, 1))
def test_regrowth_keeps_the_count_and_stays_legal(problem, seed, fraction):
    pattern, scores, density = problem
    density = pattern.density or density
    mask = pattern.project(scores, density)
    grow = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    new = pattern.regrow(mask, scores.abs(), grow, fraction)
    assert pattern.allows(new)
    if pattern != NM(2, 4, "tile-greedy") and not isinstance(pattern, Shuffled):
        assert num_kept(pattern, new) == num_kept(pattern, mask)
    if fraction == 0:
        assert torch.equal(new, mask)


@given(problems())
def test_regrowing_everything_by_the_same_scores_is_a_projection(problem):
    pattern, scores, density = problem
    if isinstance(pattern, Shuffled):
        return
    density = pattern.density or density
    mask = pattern.project(torch.rand(scores.shape), density)
    if pattern == NM(2, 4, "tile-greedy"):
        return
    assert torch.equal(pattern.regrow(mask, scores, scores, 1.0), pattern.project(scores, density))


@given(problems())
def test_growth_goes_where_the_scores_point(problem):
    pattern, scores, density = problem
    if not pattern.every_choice_is_legal:
        return
    mask = pattern.project(scores, density)
    new = pattern.regrow(mask, scores.abs(), torch.where(mask, 0.0, 1.0), 0.5)
    dropped = int(0.5 * num_kept(pattern, mask))
    free = pattern.num_units(scores.shape) - num_kept(pattern, mask)
    assert num_kept(pattern, new & ~mask) == min(free, dropped)


@given(problems())
def test_units_that_are_said_to_be_tiles_are_these(problem):
    pattern, scores, _ = problem
    if pattern.tiling is None or not pattern.units_are_tiles:
        return
    tiles = Topology.from_mask(scores > 0, pattern.tiling.rows, pattern.tiling.columns)
    assert tiles.grid == pattern.grid(scores.shape)
    units = pattern.pool(torch.arange(1.0, scores.numel() + 1).view(scores.shape))
    everything = tiles.keeping(torch.ones(tiles.grid, dtype=torch.bool))
    values = everything.gather(pattern.spread(units, scores.shape))
    assert torch.equal(values.amax((1, 2)).view(tiles.grid), units)


@pytest.mark.parametrize("text", PATTERNS)
def test_nan_scores_are_refused(text):
    scores = torch.zeros(16, 16)
    scores[3, 3] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        parse(text).project(scores, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("text", PATTERNS)
def test_every_float_dtype_has_an_order(text, dtype):
    scores = torch.arange(256).view(16, 16).to(dtype)
    mask = parse(text).project(scores, 0.5)
    assert torch.equal(mask, parse(text).project(scores.double(), 0.5))


@pytest.mark.parametrize("shape", [(6, 5), (1, 1)])
@pytest.mark.parametrize(
    "name", ["block:{}", "vector:{}", "block:2x{}", "shuffled:{}", "shuffled:{}x2", "shuffled:2x{}"]
)
def test_sizes_beyond_the_matrix_mean_the_matrix_and_take_no_memory(name, shape):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    fitting, huge = parse(name.format(6)), parse(name.format(10**30))
    mask = fitting.project(scores, 0.5)
    assert torch.equal(huge.project(scores, 0.5), mask)
    assert huge.allows(mask)
    assert torch.equal(huge.regrow(mask, scores, scores, 1.0), fitting.regrow(mask, scores, scores, 1.0))
