"""Making the chosen layers sparse, in place: their first masks, and what holds these."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Generator, Tensor, nn

from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.initialised import make_initialised, take_over
from cutwork.layers.storage import store, to_index
from cutwork.layers.swap import SparseLayer, make_sparse, open_attentions, weight_of
from cutwork.methods import Method, View, generator_for
from cutwork.methods.scores import Score
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.compressed import FixedIndex, why_not_store
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.numbers import WholeNumbers, as_matrix
from cutwork.text import label
from cutwork.training.rescaling import rescale
from cutwork.training.selection import Choice

logger = logging.getLogger(__name__)


def install(
    model: nn.Module,
    choices: Mapping[str, Choice],
    method: Method,
    *,
    inits: Mapping[str, Score],
    masks: Mapping[str, Tensor] | None = None,
    rescales: bool = False,
    seed: int = 0,
    is_compressed: bool = False,
    device: torch.device | None = None,
) -> dict[str, SparseLayer]:
    """Make the chosen layers sparse, in place, and return them; all that can fail comes before the first change.

    One layer after the other is looked at, and then changed, so that memory for one of them is enough. Those on the
    meta device are initialised on `device`, and compressed at once.
    """
    chances = {name: generator_for(seed, 0, name) for name in choices}
    beginning = _Beginning(choices, method, inits, masks, rescales, chances)
    if is_compressed:
        _install_compressed(model, beginning, device)
    else:
        _install_masked(model, beginning)
    layers = {name: cast(SparseLayer, model.get_submodule(name)) for name in choices}
    with torch.no_grad():
        for layer in layers.values():
            layer.sparsity.after_update(layer.trained)
    return layers


def _install_masked(model: nn.Module, beginning: "_Beginning") -> None:
    choices = beginning.choices
    masks = {
        name: beginning.choose_mask(name, weight_of(model, each.candidate).detach()) for name, each in choices.items()
    }
    open_attentions(model, (choice.candidate for choice in choices.values()))
    sparsities: dict[str, Sparsity] = {}
    for name, choice in choices.items():
        weight = cast(nn.Parameter, model.get_submodule(name).weight)
        mask = masks.pop(name)
        beginning.rescale(name, mask, weight)
        sparsities |= dict.fromkeys(choice.names, beginning.hold(name, mask, weight))
    make_sparse(model, sparsities)


def _install_compressed(model: nn.Module, beginning: "_Beginning", device: torch.device | None) -> None:
    choices = beginning.choices
    decided = {name: _index_or_twins(model, beginning, choice, device) for name, choice in choices.items()}
    open_attentions(model, (choice.candidate for choice in choices.values()))
    for name, choice in choices.items():
        layers, form = [model.get_submodule(each) for each in choice.names], decided.pop(name)
        if isinstance(form, FixedIndex):
            beginning.rescale(name, form.mask_matrix(), cast(Tensor, layers[0].weight))
            store(layers, form)
        else:
            for layer, twin in zip(layers, form, strict=True):
                take_over(layer, twin)
    disable_fused_paths(model)


def _index_or_twins(
    model: nn.Module, beginning: "_Beginning", choice: Choice, device: torch.device | None
) -> FixedIndex | list[Any]:
    """Return the index of a layer's first mask; of layers on the meta device compressed copies that have numbers."""
    name = choice.candidate.name
    if device is None or not choice.candidate.is_meta:
        return beginning.make_index(name, weight_of(model, choice.candidate).detach())
    twins = [make_initialised(model.get_submodule(each), device) for each in choice.names]
    index = beginning.make_index(name, twins[0].weight.detach())
    beginning.rescale(name, index.mask_matrix(), twins[0].weight)
    store(twins, index)
    return twins


@final
@dataclass(frozen=True)
class _Beginning:
    """How the chosen layers begin: where their first masks come from, and what holds these."""

    choices: Mapping[str, Choice]
    method: Method
    inits: Mapping[str, Score]
    masks: Mapping[str, Tensor] | None
    rescales: bool
    chances: Mapping[str, Generator]

    def choose_mask(self, name: str, weight: Tensor) -> Tensor:
        """Return the first mask of a layer, as a matrix; that takes the time, so the log says how far it is."""
        names = list(self.choices)
        logger.info("making layer %d of %d sparse: %s", names.index(name) + 1, len(names), label(name))
        if self.masks is not None:
            return self.choices[name].layout.to_matrix(self.masks[name].to(weight.device))
        try:
            return as_matrix(self.method.start(self._view(name, weight), self.inits[name]))
        except ValueError as error:
            raise ValueError(f"{label(name)}: {error}") from error

    def hold(self, name: str, mask: Tensor, weight: nn.Parameter) -> Sparsity:
        """Return what holds the mask of a layer."""
        view = self._view(name, weight.detach())
        return self.method.hold(mask, weight, view=view)

    def rescale(self, name: str, mask: Tensor, weight: Tensor) -> None:
        """Make a first weight as large as its mask, a matrix, makes necessary, if that is wanted."""
        if self.rescales:
            rescale(weight, self.choices[name].layout.from_matrix(mask))

    def make_index(self, name: str, weight: Tensor) -> FixedIndex:
        """Return the first mask of a layer as compressed storage holds it; raise ValueError where that cannot."""
        if reason := why_not_store(self.choices[name].pattern):
            raise ValueError(f"{label(name)}: {reason}, or leave it dense with {{{name!r}: 'dense'}}")
        # To see how the method holds a mask costs no memory; the parameter is another, so nothing has changed.
        held = self.hold(name, self.choose_mask(name, weight), nn.Parameter(weight))
        if not isinstance(held, Fixed):
            raise ValueError(
                f"{label(name)}: {type(self.method).__name__} trains the whole weight behind the mask, which "
                "compressed storage does not have; use storage='dense', or a method with fixed masks such as RigL"
            )
        try:
            return to_index(held)
        except ValueError as error:
            raise ValueError(f"{label(name)}: {error}") from error

    def _view(self, name: str, weight: Tensor) -> View:
        choice, is_last = self.choices[name], name == list(self.choices)[-1]
        return first_view(choice, choice.layout.to_matrix(weight), generator=self.chances[name], is_last=is_last)


def first_view(choice: Choice, matrix: Tensor, *, generator: Generator, is_last: bool) -> View:
    """Return a layer as its method sees it before it has a mask: as if it kept everything."""
    # One number, expanded: it takes no memory.
    mask = torch.ones((), dtype=torch.bool, device=matrix.device).expand(matrix.shape)
    return View(
        pattern=choice.pattern,
        density=choice.density,
        layout=choice.layout,
        numbers=WholeNumbers(choice.pattern, matrix, mask),
        learned=None,
        step=0,
        generator=generator,
        is_last=is_last,
    )
