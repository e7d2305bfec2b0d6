"""The scores of first masks that come from a look at the whole model, and how much of each layer they keep."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Generator, Tensor, nn

from cutwork.evaluation import copy_model
from cutwork.layers.swap import open_attentions
from cutwork.methods import View, generator_for
from cutwork.methods.foresight import Foresight
from cutwork.methods.gradual import share_by_score, thin_out
from cutwork.methods.scores import Score
from cutwork.patterns.base import widened
from cutwork.sparsity.gradient import all_finite
from cutwork.text import counted, label
from cutwork.training.install import first_view
from cutwork.training.selection import Choice

logger = logging.getLogger(__name__)


def find_scores(
    model: nn.Module, choices: Mapping[str, Choice], init: Score | Foresight, *, seed: int
) -> tuple[dict[str, Choice], dict[str, Score]]:
    """Return the score of each layer's first mask, and the choices with the densities that a foresight gives them.

    It looks at a copy of the model, so that nothing of the model changes, its running statistics included; chance
    begins anew for the copy and goes on afterwards where it was. In round r of n a layer keeps its density to the power
    r / n.
    """
    if not isinstance(init, Foresight):
        return dict(choices), dict.fromkeys(choices, init)
    _check_not_meta(choices, init)
    twin = copy_model(model)
    open_attentions(twin, (choice.candidate for choice in choices.values()))
    init.prepare(twin)
    weights = {name: cast(Tensor, twin.get_submodule(name).weight).requires_grad_() for name in choices}
    first = {name: widened(weight).clone() for name, weight in weights.items()}
    masks: dict[str, Tensor] = {}
    views: dict[str, View] = {}
    densities: dict[str, float] = {}
    with _chance_of_its_own(weights.values(), seed):
        for number in range(1, init.rounds + 1):
            _hide(weights, first, masks, choices)
            scores = _look(twin, weights, first, init)
            views = {
                name: _view(choice, scores[name], None if init.may_return else masks.get(name))
                for name, choice in choices.items()
            }
            densities = _share_out(views, init, share=number / init.rounds)
            masks = {name: cast(Tensor, thin_out(view, _given, densities[name])) for name, view in views.items()}
    _warn_of_collapse(densities, init)
    return {name: _at_least_one_unit(choice, densities[name]) for name, choice in choices.items()}, {
        name: _score_of(view) for name, view in views.items()
    }


def _check_not_meta(choices: Mapping[str, Choice], foresight: Foresight) -> None:
    for name, choice in choices.items():
        if choice.candidate.is_meta:
            raise ValueError(
                f"{label(name)} is on the meta device, where a model cannot run, which {foresight.name} has to; "
                "materialise it, or take another init"
            )


@contextmanager
def _chance_of_its_own(weights: Iterable[Tensor], seed: int) -> Iterator[None]:
    """Let chance begin anew for a while, and then go on where it was."""
    devices = {weight.device for weight in weights if weight.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)):
        torch.manual_seed(generator_for(seed, 0, "").initial_seed())
        yield


def _look(
    twin: nn.Module, weights: Mapping[str, Tensor], first: Mapping[str, Tensor], foresight: Foresight
) -> dict[str, Tensor]:
    """Return the scores of all weights, each shaped like it."""
    with torch.enable_grad():
        gradients = foresight.look(twin, list(weights.values()))
    scores: dict[str, Tensor] = {}
    for (name, weight), gradient in zip(first.items(), gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"{label(name)}: {foresight.name} finds no way from its weight to the result; call the whole model, or "
                f"leave the layer out with {{{name!r}: 'dense'}}"
            )
        scores[name] = foresight.score(weight, widened(gradient), None)
        if not all_finite(scores[name]):
            raise ValueError(
                f"{label(name)}: its scores by {foresight.name} are not all finite; look for inf and nan in "
                "the weights, the inputs and the loss"
            )
        if not scores[name].any():
            raise ValueError(
                f"{label(name)}: its scores by {foresight.name} are all zero, so they rank nothing: every way through "
                "it is cut, by masks that keep too little, or as by a norm whose weight begins at zero; give a larger "
                f"density, across_layers=False, or {{{name!r}: 'dense'}}"
            )
    return scores


def _share_out(views: Mapping[str, View], foresight: Foresight, *, share: float) -> dict[str, float]:
    """Return how dense each layer is after a share of the rounds."""

    def own(view: View) -> float:
        return view.density if view.pattern.density is not None else view.density**share

    if foresight.across_layers:
        return dict(zip(views, share_by_score(views.values(), _given, own), strict=True))
    return {name: own(view) for name, view in views.items()}


@torch.no_grad()
def _hide(
    weights: Mapping[str, Tensor],
    first: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    choices: Mapping[str, Choice],
) -> None:
    """Let the copy have only the weights that are kept."""
    for name, mask in masks.items():
        weights[name].copy_(first[name] * choices[name].layout.from_matrix(mask))


def _view(choice: Choice, scores: Tensor, mask: Tensor | None) -> View:
    """Return a layer as methods see it, with its scores in the place of the weight."""
    view = first_view(choice, choice.layout.to_matrix(scores), generator=Generator(), is_last=False)
    return view if mask is None else view.under(mask)


def _given(weight: Tensor, grad: Tensor | None, generator: Generator | None) -> Tensor:
    """Return the scores that stand in the place of the weight."""
    return weight


def _score_of(view: View) -> Score:
    """Return a score that gives each weight what it has in a view, where what was left out stays so."""
    scores = torch.where(view.mask, view.weight, -torch.inf)
    return lambda weight, grad, generator: scores


def _at_least_one_unit(choice: Choice, density: float) -> Choice:
    return replace(choice, density=max(density, 1 / choice.pattern.num_units(choice.layout.matrix_shape)))


def _warn_of_collapse(densities: Mapping[str, float], foresight: Foresight) -> None:
    if empty := [label(name) for name, density in densities.items() if density == 0]:
        logger.warning(
            "by %s %s would keep nothing, so its best unit stays: %s; a larger density, or across_layers=False, leaves "
            "them more",
            foresight.name,
            counted(len(empty), "layer"),
            ", ".join(empty),
        )
