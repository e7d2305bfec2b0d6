"""Running a model whose layers have taken other forms, and undoing those that break it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cutwork.evaluation import Call, in_evaluation
from cutwork.speed.forms import find_precisions, form_of
from cutwork.speed.tolerance import PACKED, loosest, precision_of


@final
class Trial:
    """What layers of a model are and what it returns, before the layers take other forms.

    A model may read an attribute of a layer that its other form does not have, or compute with its weight elsewhere.
    With `training` gradients are recorded and formed too, but never stored. What layers were is kept as long as this
    is: weights that a form of fewer bits has rounded are nowhere else.
    """

    def __init__(self, model: nn.Module, call: Call, groups: Mapping[str, Sequence[str]], *, training: bool) -> None:
        self._model, self._call, self._training = model, call, training
        self._before = {first: _places(model, names) for first, names in groups.items()}
        self._after: dict[str, list[_Place]] = {}
        self._expected: list[Tensor] | None = self._run()

    def take_back(self) -> dict[str, str]:
        """Give layers whose new forms break the model the forms they had; return these layers, and why.

        Changes are let in by halves, beside those that are in already: many that do no harm cost one pass.
        """
        now = {first: _places(self._model, [place.name for place in old]) for first, old in self._before.items()}
        self._after = {
            first: places
            for first, places in now.items()
            if not all(new.is_as(old) for new, old in zip(places, self._before[first], strict=True))
        }
        changed = list(self._after)
        if not changed or not self._why_not_keep(changed):
            return {}
        if self._why_not_keep([]):
            # The model does not return the same twice, whatever its layers do: all there is to see is that it runs.
            self._expected = None
        reasons: dict[str, str] = {}
        self._set(self._let_in(changed, [], reasons))
        return reasons

    def undo(self) -> None:
        """Give all layers the forms they had."""
        for places in self._before.values():
            for place in places:
                place.restore(self._model)

    def _let_in(self, names: list[str], kept: list[str], reasons: dict[str, str]) -> list[str]:
        """Return what was kept and those of the names that do no harm beside it."""
        if not names or not (reason := self._why_not_keep([*kept, *names])):
            return [*kept, *names]
        if len(names) == 1:
            reasons[names[0]] = reason
            return kept
        half = len(names) // 2
        return self._let_in(names[half:], self._let_in(names[:half], kept, reasons), reasons)

    def _set(self, changed: Sequence[str]) -> None:
        """Give these layers their new forms, and the others of which the form has changed those they had."""
        for first, new in self._after.items():
            for place in new if first in changed else self._before[first]:
                place.restore(self._model)

    def _why_not_keep(self, changed: Sequence[str]) -> str:
        """Say how the model breaks with only these layers in their new forms; empty where it does not."""
        self._set(changed)
        try:
            found = self._run()
        except Exception as error:
            what, _, _ = str(error).partition("\n")
            return f"the model fails with it: {type(error).__name__}: {what}"
        if self._expected is None:
            return ""
        forms = {form_of(place.module) for first in changed for place in self._after[first]}
        computed_in = [*(precision_of(output.dtype) for output in found), *find_precisions(forms)]
        error = _difference(found, self._expected)
        return (
            ""
            if error <= loosest(PACKED, computed_in).model
            else f"with it the outputs of the model differ by {error:.2g}"
        )

    def _run(self) -> list[Tensor]:
        with in_evaluation(self._model), torch.set_grad_enabled(self._training):
            outputs = _floats(self._call(self._model))
            learned = [output for output in outputs if output.requires_grad]
            trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
            if learned and trained:
                torch.autograd.grad(
                    learned, trained, [torch.ones_like(output) for output in learned], allow_unused=True
                )
            # A model may write to what it has returned before.
            return [output.detach().clone() for output in outputs]


@final
class _Place:
    """What stands in some places of a model, and what it is."""

    def __init__(self, name: str, names: Sequence[str], module: nn.Module) -> None:
        self.name, self.module, self._names = name, module, names
        self._parts = [(part, type(part), _copied(vars(part))) for part in module.modules()]
        # A parameter may get other numbers and stay the same.
        self._numbers = [(parameter, parameter.data) for parameter in module.parameters()]

    def is_as(self, other: "_Place") -> bool:
        """Say whether the same module stands there, with the same numbers."""
        addresses = ([data.data_ptr() for _, data in place._numbers] for place in (self, other))
        return self.module is other.module and len({*map(tuple, addresses)}) == 1

    def restore(self, model: nn.Module) -> None:
        """Let this stand there again, and be what it was."""
        for name in filter(None, self._names):
            model.set_submodule(name, self.module)
        for part, kind, held in self._parts:
            part.__class__ = kind
            vars(part).clear()
            vars(part).update(_copied(held))
        for parameter, data in self._numbers:
            parameter.data = data


def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with the tables of parameters, buffers and submodules copied, which change with the form."""
    return {name: dict(value) if type(value) is dict else value for name, value in attributes.items()}


def _places(model: nn.Module, names: Sequence[str]) -> list[_Place]:
    layers = {name: model.get_submodule(name) for name in names}
    return [_Place(name, _all_names(model, layer), layer) for name, layer in layers.items()]


def _all_names(model: nn.Module, layer: nn.Module) -> list[str]:
    """Return the names of a layer, of which it has one for each place that it stands in."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]


def _floats(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return how far tensors lie apart, relative to the size of all of them; infinite where they cannot be compared."""
    if [(each.shape, each.dtype) for each in found] != [(each.shape, each.dtype) for each in expected]:
        return math.inf
    apart, size = 0.0, 0.0
    for one, other in zip(found, expected, strict=True):
        finite = other.isfinite()
        if not torch.equal(one.isfinite(), finite):
            return math.inf
        apart += float((one[finite].double() - other[finite].double()).square().sum())
        size += float(other[finite].double().square().sum())
    return math.sqrt(apart / max(size, 1e-30))
