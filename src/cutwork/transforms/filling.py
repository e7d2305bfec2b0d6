"""The numbers of a parameter that has become larger: drawn anew, or copies by which the model computes the same."""

import math
from collections.abc import Iterator
from typing import final

import sympy
import torch
from torch import Tensor, nn
from torch.utils._sympy.functions import FloorDiv

from cutwork.transforms.checking import COPY, FRESH
from cutwork.transforms.drawing import draw
from cutwork.transforms.growth import Growth, evaluate, symbols_of
from cutwork.transforms.resizing import inputs_of
from cutwork.transforms.sizes import HEAD, Expression, Sizes, own_tensors


def fill(model: nn.Module, sizes: Sizes, growth: Growth, *, weights: str, seed: int) -> dict[str, Tensor]:
    """Return the tensors of a model that become larger, by name.

    Fresh weights of layers are drawn from the numbers that the layer has, scaled so that outputs vary as much as they
    did. All other tensors repeat
    their entries along what has grown: norms, tables of positions, scales. With `weights="copy"` weights do so too, and
    are divided where the layer sums, so that the model computes what it did.
    """
    repetition = _Repetition(model, sizes, growth)
    filled: dict[str, Tensor] = {}
    shapes = {**sizes.parameters, **sizes.buffers, **sizes.indices}
    summed: dict[int, tuple[str, int | None]] = {}
    for module_name, module in model.named_modules():
        for key, old in own_tensors(module):
            name = f"{module_name}.{key}" if module_name else key
            if not any(map(growth.grows, shapes[name])):
                continue
            inputs = inputs_of(module, key)
            first, before = summed.setdefault(id(old), (name, inputs))
            if weights == COPY and before != inputs:
                raise ValueError(
                    f"{name} is {first} too, and only one of the two sums over what has grown, so no copy serves both; "
                    "give them weights of their own, or use weights='fresh'"
                )
            if first != name:
                continue
            if not old.is_floating_point():
                raise ValueError(
                    f"{name} holds {old.dtype} and would have to grow from {tuple(old.shape)} to "
                    f"{tuple(map(growth.size, shapes[name]))}, but only weights can be made up; compute it from the "
                    "sizes in forward"
                )
            if weights == FRESH and (inputs is not None or _is_drawn(module, key)):
                new = draw(old.detach(), tuple(map(growth.size, shapes[name])), seed=seed, name=name)
                if inputs is not None:
                    # Smaller where more of them add up.
                    new.mul_((old.shape[inputs] / new.shape[inputs]) ** 0.5)
            else:
                new = repetition.repeat(old.detach(), shapes[name], inputs if weights == COPY else None)
            filled[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return filled


def _is_drawn(module: nn.Module, key: str) -> bool:
    return isinstance(module, nn.Embedding) or (key == "bias" and inputs_of(module, "weight") is not None)


@final
class _Repetition:
    """Which entry of the old tensor each entry along a size that has grown repeats.

    Neighbours repeat the same entry, as evenly as they can, so that parts that lie behind each other, such as those of
    a concatenation or of queries, keys and values, grow each by itself. Where a size is cut into heads whole heads
    are repeated, and where a linear layer reads a flattened image, whole channels.
    """

    def __init__(self, model: nn.Module, sizes: Sizes, growth: Growth) -> None:
        self.growth = growth
        self.blocks: dict[Expression, int] = {}
        heads = {growth.roots[symbol] for symbol, title in sizes.titles.items() if HEAD in title.rpartition(".")[2]}
        for equation in growth.equations:
            if symbols_of(equation) & heads:
                for symbol, block in self._find_blocks(equation):
                    self._set(symbol, block)
        for module_name, module in model.named_modules():
            for key, _ in own_tensors(module):
                name = f"{module_name}.{key}" if module_name else key
                if (at := inputs_of(module, key)) is not None:
                    self._flattened(sizes.parameters[name][at])
        known = -1
        while known < len(self.blocks):
            known = len(self.blocks)
            for equation in growth.equations:
                self._share(symbols_of(equation))

    def repeat(self, old: Tensor, shape: tuple[Expression, ...], inputs: int | None) -> Tensor:
        """Return a tensor that repeats its entries; along `inputs` they are divided by how often each stands there."""
        new = old
        for at, size in enumerate(shape):
            if self.growth.grows(size):
                places = self._places(size).to(old.device)
                new = new.index_select(at, places)
                if at == inputs:
                    counts = places.bincount(minlength=old.shape[at])[places]
                    new = new / counts.view([-1 if each == at else 1 for each in range(old.dim())])
        return new.clone(memory_format=torch.contiguous_format)

    def _places(self, size: Expression) -> Tensor:
        root = self.growth.roots[size]
        old, new, block = self.growth.old[root], self.growth.new[root], self.blocks.get(root, 1)
        at = torch.arange(new)
        return at // block * (old // block) // (new // block) * block + at % block

    def _share(self, symbols: set[Expression]) -> None:
        """Give the block of some sizes to the others in their equation, so that all are cut in the same places."""
        if known := [self.blocks[symbol] for symbol in symbols if symbol in self.blocks]:
            for symbol in symbols:
                self._set(symbol, max(known))

    def _set(self, symbol: Expression, block: int) -> None:
        old, new = self.growth.old[symbol], self.growth.new[symbol]
        if symbol not in self.blocks and old != new and old % block == 0 and new % block == 0:
            self.blocks[symbol] = block

    def _find_blocks(self, equation: tuple[Expression, Expression]) -> Iterator[tuple[Expression, int]]:
        """Yield sizes that an equation cuts into heads, with the size of a head."""
        for side, other in (equation, equation[::-1]):
            for part in sympy.preorder_traversal(side):
                if isinstance(part, FloorDiv):
                    whole, divisor = part.args
                    inner = divisor if not self._changes(divisor) else part
                    if inner.free_symbols and not self._changes(inner):
                        yield from ((symbol, self._old(inner)) for symbol in whole.free_symbols)
            if side.is_Mul and other.is_Symbol:
                inner = [each for each in side.args if each.free_symbols and not self._changes(each)]
                if inner and any(map(self._changes, side.args)):
                    yield other, math.prod(map(self._old, inner))

    def _flattened(self, size: Expression) -> None:
        """Note by how much a layer's inputs are channels times pixels."""
        root = self.growth.roots.get(size, size)
        for left, right in self.growth.equations:
            for side, other in ((left, right), (right, left)):
                if side == root and other.is_Mul and other.args[0].is_Integer and other.args[1].is_Symbol:
                    self._set(root, int(other.args[0]))

    def _old(self, expression: Expression) -> int:
        return evaluate(expression, self.growth.old)

    def _changes(self, expression: Expression) -> bool:
        return evaluate(expression, self.growth.old) != evaluate(expression, self.growth.new)
