"""A larger model whose layers are to be sparse, so that it needs the operations of the dense one."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, final

from torch import nn

from cutwork.costs.flops import LayerFlops, flops
from cutwork.layers.attention import open_attention
from cutwork.layers.swap import candidates
from cutwork.patterns import Pattern, parse
from cutwork.text import in_columns, label
from cutwork.transforms.budget import Work, check_spent, round_to_units, solve_density

HEAD = ("layer", "old shape", "new shape", "density", "FLOPs before", "FLOPs after")
FLUSH = "<<<>>>"
WHOLE = "sizes are whole numbers, and one more or less makes too much of so small a model; try a density near by"
FIXED = (
    "{pattern} fixes the density of each layer at {fixed:.4g}, and here {wanted:.4g} would meet the budget; use a "
    "pattern whose density is free, or another density"
)


@final
@dataclass(frozen=True)
class Change:
    """What became of one layer: its shapes, its density, and the operations of a pass with what its mask keeps.

    One that stays dense has no density, one that is new no old shape. Where several came of one layer, the operations
    before are those of the first.
    """

    layer: str
    old_shape: tuple[int, ...]
    new_shape: tuple[int, ...]
    density: float | None
    flops_before: int
    flops_after: int


@final
@dataclass(frozen=True)
class Larger:
    """A larger model, still dense, and how much of which layers is to be kept; it prints as a table.

    What is left is one line: `sparsify(larger.model, larger.patterns("block:32"), density=larger.densities, ...)`.
    `skipped` says of layers that stay as they are why they do.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def densities(self) -> dict[str, float]:
        """Return how much is kept of each layer that is to be sparse."""
        return {each.layer: each.density for each in self.changes if each.density is not None}

    @property
    def flops_before(self) -> int:
        """Return the operations of a pass of the dense model, which are the budget."""
        return sum(each.flops_before for each in self.changes)

    @property
    def flops_after(self) -> int:
        """Return the operations of a pass of the larger model with what its masks keep."""
        return sum(each.flops_after for each in self.changes)

    def patterns(self, pattern: str | Pattern) -> dict[str, Pattern]:
        """Return this pattern for each layer that is to be sparse, as `sparsify` takes it; all else stays dense."""
        return dict.fromkeys(self.densities, parse(pattern))

    def __str__(self) -> str:
        """Write the changes as a table, and their sum."""
        total = ("total", "", "", "", f"{self.flops_before:,}", f"{self.flops_after:,}")
        return "\n".join(in_columns([HEAD, *map(_cells, self.changes), total], FLUSH))


def fit(
    old: nn.Module,
    new: nn.Module,
    *inputs: Any,
    sparse: Collection[str],
    origins: Mapping[str, str] | None = None,
    pattern: str | Pattern | None = None,
    counting: str = "products",
) -> Larger:
    """Return a larger model with the density of its `sparse` layers that spends what the old one needs for `inputs`.

    It is one density for all of them, within 0.1 % of the budget, or an error; with a pattern they keep whole units
    of that. `origins` says from which layer one came that has another name. Layers are named as `sparsify` names them,
    also the projections of an attention. `counting` is that of `flops`; a mapping given last holds inputs by name.
    """
    before, after = weigh(old, inputs, counting), weigh(new, inputs, counting)
    if missing := [name for name in sparse if name not in after]:
        raise ValueError(f"{label(missing[0])} is to be sparse, but computes nothing for these inputs; pass others")
    works = {name: each.work(is_sparse=name in sparse) for name, each in after.items()}
    budget = sum(each.cost.dense for each in before.values())
    densities = dict.fromkeys((name for name in works if name in sparse), solve_density(works, budget))
    if pattern is None:
        return _account(new, before, after, densities, origins or {})
    chosen = parse(pattern)
    num_units = _count_units(new, chosen, densities)
    if chosen.density is None:
        return _account(new, before, after, round_to_units(works, densities, num_units, budget), origins or {})
    advice = FIXED.format(pattern=chosen, fixed=chosen.density, wanted=next(iter(densities.values())))
    return _account(new, before, after, dict.fromkeys(densities, chosen.density), origins or {}, advice)


def account(
    old: nn.Module,
    new: nn.Module,
    *inputs: Any,
    origins: Mapping[str, str] | None = None,
    counting: str = "products",
) -> Larger:
    """Return a larger model that needs the operations of the old one as it is, all dense; raise ValueError if not."""
    return _account(new, weigh(old, inputs, counting), weigh(new, inputs, counting), {}, origins or {})


def _account(
    new: nn.Module,
    before: Mapping[str, "Weighed"],
    after: Mapping[str, "Weighed"],
    densities: Mapping[str, float],
    origins: Mapping[str, str],
    advice: str = "smaller tiles come closer",
) -> Larger:
    works = {name: each.work(is_sparse=name in densities) for name, each in after.items()}
    budget = sum(each.cost.dense for each in before.values())
    check_spent(works, densities, budget, advice if densities else WHOLE)
    named = {name: origins.get(name, name) for name in works}
    sources = [before.get(named[name]) for name in works]
    firsts = {named[name]: name for name in reversed(works)}
    changes = [
        Change(
            layer=name,
            old_shape=() if source is None else source.shape,
            new_shape=after[name].shape,
            density=densities.get(name),
            flops_before=0 if source is None or firsts[named[name]] != name else source.cost.dense,
            flops_after=work.at(densities.get(name, 1.0)),
        )
        for (name, work), source in zip(works.items(), sources, strict=True)
    ]
    gone = [
        Change(name, each.shape, (), None, each.cost.dense, 0) for name, each in before.items() if name not in firsts
    ]
    return Larger(new, (*changes, *gone))


class Weighed(NamedTuple):
    """A layer that computes something: the shape of its weight, if it has one, and its operations."""

    shape: tuple[int, ...]
    cost: LayerFlops

    def work(self, *, is_sparse: bool) -> Work:
        """Return its operations as a budget counts them."""
        return Work(self.cost.dense - self.cost.rest, self.cost.rest, is_sparse=is_sparse)


def weigh(model: nn.Module, inputs: tuple[Any, ...], counting: str) -> dict[str, Weighed]:
    """Return what each layer of a model computes, the projections of attentions by the names that `sparsify` gives."""
    opened = share(model)
    for module in [each for each in opened.modules() if type(each) is nn.MultiheadAttention]:
        open_attention(module)
    found = flops(opened, *inputs, counting=counting).layers
    return {each.name: Weighed(_shape_of(opened.get_submodule(each.name)), each) for each in found}


def _shape_of(module: nn.Module) -> tuple[int, ...]:
    weight = module._parameters.get("weight")
    return () if weight is None else tuple(weight.shape)


def share(model: nn.Module) -> nn.Module:
    """Return a copy of a model that has the same tensors, so that its modules can be changed and cost no memory."""
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _count_units(model: nn.Module, pattern: Pattern, names: Collection[str]) -> dict[str, int]:
    num_units: dict[str, int] = {}
    for name, each in candidates(model).items():
        if name in names:
            fitting, shape = pattern.for_kernel(each.layout.taps), each.layout.matrix_shape
            try:
                fitting.check(shape)
            except ValueError as error:
                raise ValueError(f"{label(name)}: {error}; use another pattern") from error
            num_units[name] = fitting.num_units(shape)
    return num_units


def _cells(change: Change) -> tuple[str, ...]:
    return (
        label(change.layer),
        "x".join(map(str, change.old_shape)),
        "x".join(map(str, change.new_shape)),
        "dense" if change.density is None else f"{change.density:.4g}",
        f"{change.flops_before:,}",
        f"{change.flops_after:,}",
    )
