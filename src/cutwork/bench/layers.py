"""Layers to measure: each in all passes, patterns and precisions that were chosen, at all densities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import final

from cutwork.bench.choices import check_densities, check_given, tiles
from cutwork.bench.passes import TILE, Problem, candidate_of
from cutwork.bench.results import BASE, DENSE_FORMS, Measurement
from cutwork.bench.run import Candidate, Group
from cutwork.patterns import Pattern

# The passes that each form is measured in, by precision.
PassTable = Mapping[str, Mapping[str, Sequence[str]]]


@final
@dataclass(frozen=True)
class Layer:
    """A dense layer of some size: how results call it, and its numbers, made from a seed."""

    what: str
    shape: str
    # How many tokens, or images, it is called with, and as what titles name them.
    count: int
    counted: str
    problem: Callable[[int], Problem]


@final
@dataclass(frozen=True)
class Choices:
    """What is sparse in layers, and in which passes, precisions and forms they are measured."""

    patterns: Sequence[str]
    densities: Sequence[float]
    precisions: Sequence[str]
    passes: Sequence[str]
    forms: Sequence[str]
    seed: int = 0

    def checked_patterns(self) -> list[Pattern]:
        """Return the patterns, if these and the densities can be measured."""
        check_given("pattern", self.patterns, "block:16")
        check_densities(self.densities)
        return [tiles(text) for text in self.patterns]


def groups(layers: Sequence[Layer], table: PassTable, choices: Choices) -> list[Group]:
    """Return what to measure: a group of all densities for each layer, precision, pass and pattern."""
    patterns = choices.checked_patterns()
    _check_measurable(table, choices.precisions, choices.passes)
    found = []
    for layer, precision, work, pattern in product(layers, choices.precisions, choices.passes, patterns):
        if work not in table[TILE].get(precision, ()):
            continue
        about = Measurement.dense(layer.what, layer.shape, layer.count, work)
        title = f"{layer.what} {layer.shape}, {layer.counted}, {work}, {precision}, {pattern}"
        problem = partial(layer.problem, choices.seed)
        found.append(Group(title, partial(candidates, about, problem, pattern, precision, table, choices)))
    return found


def _check_measurable(table: PassTable, precisions: Sequence[str], passes: Sequence[str]) -> None:
    """Raise ValueError unless tile kernels compute one of these passes in one of these precisions."""
    known = table[TILE]
    if not any(work in known.get(precision, ()) for precision in precisions for work in passes):
        raise ValueError(
            f"nothing to measure: no kernel computes {' or '.join(passes)} in {' or '.join(precisions)}; there are "
            + ", ".join(f"{precision} ({' '.join(works)})" for precision, works in known.items())
        )


def candidates(
    about: Measurement,
    problem: Callable[[], Problem],
    pattern: Pattern,
    precision: str,
    table: PassTable,
    choices: Choices,
) -> list[Candidate]:
    """Return the forms of one pass: dense ones, and at each density those that are sparse."""
    whole = problem()
    found = [candidate_of(about, whole, pattern)]
    for form, kind in dense_forms(choices.forms, precision):
        if about.work in table[form].get(kind, ()):
            found.append(candidate_of(replace(about, form=form, precision=kind), whole, pattern))
    same: dict[float, list[float]] = {}
    for density in choices.densities:
        masked = whole.masked(pattern, density)
        share = masked.kept / whole.kept
        same.setdefault(share, []).append(density)
        if len(same[share]) > 1:
            continue
        kept = replace(about, pattern=str(pattern), density=share, precision=precision, ideal=1 / share)
        found += [
            candidate_of(replace(kept, form=form), masked, pattern)
            for form in choices.forms
            if form not in DENSE_FORMS and about.work in table[form].get(precision, ())
        ]
    return [replace(found[0], note=_too_coarse(f"{pattern} on {about.what} {about.shape}", same)), *found[1:]]


def _too_coarse(what: str, same: Mapping[float, Sequence[float]]) -> str:
    """Say which densities keep the same share, if any do."""
    return " ".join(
        f"{what} is too coarse: {', '.join(map(str, densities))} all keep {share:.3g}; one is measured."
        for share, densities in same.items()
        if len(densities) > 1
    )


def dense_forms(forms: Sequence[str], precision: str) -> list[tuple[str, str]]:
    """Return the dense forms, besides the base, that something in a precision is compared with.

    >>> dense_forms(["dense", "compiled", "tile"], "bf16")
    [('dense', 'bf16'), ('compiled', 'bf16')]
    """
    kinds = {"fp32": ["fp32"], "bf16": ["bf16"], "int8": ["bf16", "int8"]}[precision]
    chosen = [(form, kind) for kind in kinds for form in DENSE_FORMS if form in forms]
    return [(form, kind) for form, kind in chosen if (form, kind) != BASE]
