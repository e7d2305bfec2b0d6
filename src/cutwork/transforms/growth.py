"""Which sizes of a model can grow together, and how large they become.

Every symbol has an exponent, 0 or 1: how often it is multiplied by the factor of the growth. Both sides of an equation
must come out at the same exponent, where those of a product add up, a division subtracts, and of a sum the largest
counts. As many sizes of parameters as possible get a 1; attributes only where an equation asks for it, numbers of heads
before the sizes of heads. Then symbols get whole numbers, the smallest first, so that every equation holds again. One
that has no size left comes first in the next try.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, final

from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from cutwork.transforms.sizes import HEAD, Expression, Sizes

Equation = tuple[Expression, Expression]
# The equations in which each symbol stands, with all symbols of each.
Near = Mapping[Expression, Sequence[tuple[Equation, set[Expression]]]]
# The largest share of a size by which rounding may change it; a coarser multiple is halved.
MOST_ROUNDING = 1 / 8
# How far from its own factor a size may be looked for that an equation decides, such as a sum with something fixed.
WIDEST_SEARCH = 1 / 2
# In the name of a number of heads, which grows before the size of a head does.
HEADS = "heads"


@final
@dataclass(frozen=True)
class Growth:
    """How large each size becomes: `roots` are the symbols, or numbers, that stand for all sizes equal to one.

    Of the roots `old` and `new` are the sizes before and after, in the model's `equations`.
    """

    roots: Mapping[Expression, Expression]
    equations: tuple[Equation, ...]
    old: Mapping[Expression, int]
    new: Mapping[Expression, int]

    def size(self, expression: Expression) -> int:
        """Return how large a size becomes."""
        return evaluate(expression.xreplace(self.roots), self.new)

    def grows(self, expression: Expression) -> bool:
        """Say whether a size becomes another."""
        root = self.roots.get(expression, expression)
        return root in self.new and self.new[root] != self.old[root]


def find_growth(sizes: Sizes, factor: float, multiple: int) -> Growth:
    """Return how large each size becomes if as many as possible grow by a factor.

    Sizes are rounded to a multiple, or to half of it, a quarter and so on where that would change them by more than an
    eighth. Raise ValueError where nothing can grow, or no whole sizes fit together.
    """
    roots, equations = _unite(sizes)
    wishes = _find_wishes(sizes, roots)
    exponents: dict[Expression, int] = {}
    near = _by_symbol(equations)
    for part in _connected(wishes, near):
        exponents |= _Choice(part, wishes, near).choose()
    if not any(exponents[root] for root, wish in wishes.items() if wish.weight):
        largest = max(sizes.parameters, key=lambda name: _numel(sizes, sizes.parameters[name]), default="")
        raise ValueError(
            f"nothing can grow: every width, {f'also of {largest}, ' * bool(largest)}is tied to a number that comes "
            "from outside of the parameters, such as the size of an input or a constant in the code of forward"
        )
    old = {root: int(sizes.values[root]) for root in wishes}
    new = {root: size for root, size in old.items() if not exponents[root]}
    order = sorted(
        (root for root in wishes if exponents[root]), key=lambda each: (not wishes[each].is_count, old[each])
    )
    steps = {root: 1 if wishes[root].is_count else multiple for root in order}
    tried: set[Expression] = set()
    while (failed := _round(order, near, {root: factor * old[root] for root in order}, steps, new)) is not None:
        if failed in tried:
            raise ValueError(
                f"{sizes.titles[failed]}: no whole size near {factor:.4g} * {old[failed]} fits the others it is "
                "tied to; a density with a whole factor, such as 0.25, may, or multiple=1"
            )
        # What could not follow the others leads them.
        tried.add(failed)
        order = [failed, *(root for root in order if root != failed)]
    if not any(new[root] != old[root] and wish.weight for root, wish in wishes.items()):
        root = max((root for root in order if wishes[root].weight), key=lambda each: wishes[each].weight)
        raise ValueError(
            f"{sizes.titles[root]}: {factor:.4g} * {old[root]} rounds to {new[root]}, and nothing else grows; use a "
            f"smaller density{', or a smaller multiple' * (multiple > 1)}"
        )
    return Growth(roots, tuple(equations), old, new)


def _round(
    order: Sequence[Expression],
    near: Near,
    targets: Mapping[Expression, float],
    steps: Mapping[Expression, int],
    sizes: dict[Expression, int],
) -> Expression | None:
    """Give sizes to roots, in this order; return the first for which none fits those before it, if there is one."""
    for root in order:
        sizes.pop(root, None)
    for root in order:
        decided = [equation for equation, symbols in near.get(root, ()) if symbols <= {*sizes, root}]
        fitting = (size for size in _candidates(targets[root], steps[root]) if _hold(decided, {**sizes, root: size}))
        if (size := next(fitting, None)) is None:
            return root
        sizes[root] = size
    return None


def evaluate(expression: Expression, values: Mapping[Expression, int]) -> int:
    """Return the whole number that an expression of sizes is."""
    if expression.is_Symbol:
        return values[expression]
    if expression.is_Integer:
        return int(expression)
    parts = [evaluate(part, values) for part in expression.args]
    if expression.is_Add:
        return sum(parts)
    if expression.is_Mul:
        return math.prod(parts)
    if isinstance(expression, FloorDiv):
        return parts[0] // parts[1]
    if isinstance(expression, Mod | PythonMod):
        return parts[0] % parts[1]
    return int(expression.func(*parts))


def symbols_of(equation: Equation) -> set[Expression]:
    """Return the symbols on both sides."""
    return equation[0].free_symbols | equation[1].free_symbols


def _hold(equations: Iterable[Equation], values: Mapping[Expression, int]) -> bool:
    return all(evaluate(left, values) == evaluate(right, values) for left, right in equations)


def _candidates(target: float, multiple: int) -> Iterator[int]:
    """Yield whole sizes: multiples first, those nearest to the target before others, then those of its half, and so on.

    >>> from itertools import islice
    >>> list(islice(_candidates(90.5, 32), 4))
    [96, 64, 128, 96]
    """
    while multiple > 1 and abs(_nearest(target, multiple) - target) > MOST_ROUNDING * target:
        multiple //= 2
    while multiple:
        first, last = (
            math.ceil((1 - WIDEST_SEARCH) * target / multiple),
            math.floor((1 + WIDEST_SEARCH) * target / multiple),
        )
        yield from sorted(
            (multiple * count for count in range(max(1, first), last + 1)), key=lambda size: abs(size - target)
        )
        multiple //= 2


def _nearest(target: float, multiple: int) -> int:
    return max(1, math.floor(target / multiple + 0.5)) * multiple


def _unite(sizes: Sizes) -> tuple[dict[Expression, Expression], list[Equation]]:
    """Return the symbol that stands for all that are equal to one, or their number, and the equations left."""
    order = {symbol: at for at, symbol in enumerate(sizes.values)}
    parents: dict[Expression, Expression] = {}

    def find(size: Expression) -> Expression:
        while size in parents:
            size = parents[size]
        return size

    left = sizes.equations
    while True:
        roots = {symbol: find(symbol) for symbol in order}
        current = dict.fromkeys(_reduced(a.xreplace(roots), b.xreplace(roots)) for a, b in left)
        left = [(a, b) for a, b in current if a != b]
        plain = [(a, b) for a, b in left if _is_plain(a) and _is_plain(b)]
        if not plain:
            return roots, left
        for a, b in plain:
            keep, lose = sorted((find(a), find(b)), key=lambda each: order.get(each, -1))
            if keep != lose:
                parents[lose] = keep


def _is_plain(expression: Expression) -> bool:
    return bool(expression.is_Symbol or expression.is_Integer)


def _reduced(left: Expression, right: Expression) -> Equation:
    """Return an equation without the whole number that both sides are multiples of."""
    (a, rest), (b, other) = left.as_coeff_Mul(), right.as_coeff_Mul()
    if not (a.is_Integer and b.is_Integer and a > 0 and b > 0):
        return left, right
    common = math.gcd(int(a), int(b))
    return a / common * rest, b / common * other


class _Wish(NamedTuple):
    """Whether a size is to grow if it can, and what is chosen first.

    `weight` is how many numbers of parameters have it, `is_head` says that it counts heads or measures one.
    """

    grows: bool
    weight: int
    is_head: bool
    is_count: bool


def _find_wishes(sizes: Sizes, roots: Mapping[Expression, Expression]) -> dict[Expression, _Wish]:
    """Return the wish for each root that is no number.

    Sizes of tensors are to grow, but not one that nothing is tied to: the rows of an embedding are not a width. Nor are
    those of whole numbers, such as places in a table.
    """
    weights: defaultdict[Expression, int] = defaultdict(int)
    for shape in sizes.parameters.values():
        for size in shape:
            weights[roots.get(size, size)] += _numel(sizes, shape)
    tied = {roots[symbol] for equation in sizes.equations for symbol in symbols_of(equation)}
    heads = {roots[symbol]: title.rpartition(".")[2] for symbol, title in sizes.titles.items() if HEAD in title}
    of_buffers = {roots.get(size, size) for shape in sizes.buffers.values() for size in shape}
    wishes: dict[Expression, _Wish] = {}
    for root in dict.fromkeys(roots.values()):
        if root.is_Symbol:
            is_head = root not in weights and HEAD in heads.get(root, "")
            is_count = is_head and HEADS in heads[root]
            grows = root in tied and (root in weights or is_count or (root in of_buffers and not is_head))
            wishes[root] = _Wish(grows, weights.get(root, 0), is_head, is_count)
    return wishes


def _numel(sizes: Sizes, shape: Sequence[Expression]) -> int:
    return math.prod(int(sizes.values.get(each, each)) for each in shape)


def _by_symbol(equations: Iterable[Equation]) -> Near:
    near: defaultdict[Expression, list[tuple[Equation, set[Expression]]]] = defaultdict(list)
    for equation in equations:
        symbols = symbols_of(equation)
        for symbol in symbols:
            near[symbol].append((equation, symbols))
    return near


def _connected(symbols: Iterable[Expression], near: Near) -> Iterator[list[Expression]]:
    """Yield the symbols in parts that no equation connects."""
    seen: set[Expression] = set()
    for first in symbols:
        part, queue = [], [first]
        while queue:
            symbol = queue.pop()
            if symbol not in seen:
                seen.add(symbol)
                part.append(symbol)
                queue += chain.from_iterable(others for _, others in near.get(symbol, ()))
        if part:
            yield part


@final
class _Choice:
    """The exponents of some symbols that satisfy their equations, those with the largest wishes chosen first."""

    def __init__(self, part: Sequence[Expression], wishes: Mapping[Expression, _Wish], near: Near) -> None:
        order = {symbol: at for at, symbol in enumerate(wishes)}
        self.wishes = wishes
        self.order = sorted(part, key=lambda each: (*_rank(wishes[each]), order[each]))
        self.place = {symbol: at for at, symbol in enumerate(self.order)}
        self.near = near

    def choose(self) -> dict[Expression, int]:
        """Return the exponents; all zero, which changes nothing, is always a choice."""
        chosen = self._search(0, {})
        assert chosen is not None
        return chosen

    def _search(self, at: int, chosen: dict[Expression, int]) -> dict[Expression, int] | None:
        while at < len(self.order) and self.order[at] in chosen:
            at += 1
        if at == len(self.order):
            return chosen
        symbol = self.order[at]
        wished = int(self.wishes[symbol].grows)
        for exponent in (wished, 1 - wished):
            more = self._follow(symbol, exponent, chosen)
            if more is not None and (found := self._search(at + 1, more)) is not None:
                return found
        return None

    def _follow(
        self, symbol: Expression, exponent: int, chosen: Mapping[Expression, int]
    ) -> dict[Expression, int] | None:
        """Return what is chosen with one more exponent and all that follow from it; None where nothing fits."""
        chosen = {**chosen, symbol: exponent}
        queue = [symbol]
        while queue:
            for equation, symbols in self.near.get(queue.pop(), ()):
                if not _can_hold(equation, chosen):
                    return None
                for other in sorted(symbols - {*chosen}, key=lambda each: self.place[each]):
                    fitting = [each for each in (0, 1) if _can_hold(equation, {**chosen, other: each})]
                    if not fitting:
                        return None
                    if len(fitting) == 1:
                        chosen[other] = fitting[0]
                        queue.append(other)
        return chosen


def _rank(wish: _Wish) -> tuple[bool, int, bool, bool]:
    """Return what sorts wishes: parameters, the most numbers first; then heads; then what else is to grow."""
    return not wish.weight, -wish.weight, not wish.is_head, not wish.grows


def _can_hold(equation: Equation, exponents: Mapping[Expression, int]) -> bool:
    """Say whether both sides can come out at the same exponent, whatever the symbols not yet chosen get."""
    left, right = equation
    if isinstance(left, Mod | PythonMod) and right == 0:
        (_, most), (least, _) = (_bounds(part, exponents) for part in left.args)
        return most >= least
    if 0 in equation:
        return True
    (least, most), (other_least, other_most) = _bounds(left, exponents), _bounds(right, exponents)
    return least <= other_most and other_least <= most


def _bounds(expression: Expression, exponents: Mapping[Expression, int]) -> tuple[int, int]:
    """Return the least and the largest exponent that an expression can have."""
    if expression.is_Symbol:
        return (exponents[expression],) * 2 if expression in exponents else (0, 1)
    if not expression.args:
        return 0, 0
    lows, highs = zip(*(_bounds(part, exponents) for part in expression.args), strict=True)
    if expression.is_Mul:
        return sum(lows), sum(highs)
    if isinstance(expression, FloorDiv):
        return lows[0] - highs[1], highs[0] - lows[1]
    if expression.is_Pow and expression.args[1].is_Integer:
        power = int(expression.args[1])
        return tuple(sorted((power * lows[0], power * highs[0])))
    # Of a sum, or the largest of several, the largest counts.
    return max(lows), max(highs)
