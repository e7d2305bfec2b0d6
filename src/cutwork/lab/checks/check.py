"""What the zeros of a model are good for: which patterns they follow, and what would be faster for it here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.compat import pruned
from cutwork.costs.zeros import BOTH, DENSE, EMPTY, FLAT, INPUTS, OUTPUTS, Zeros, find_order, mask_of
from cutwork.evaluation import copy_model
from cutwork.files.checkpoint import Description, describe
from cutwork.files.tensor_file import is_described
from cutwork.kernels import REFERENCE, kernel_name, survey
from cutwork.lab.checks.result import Check, CheckedWeight
from cutwork.layers.compressed import CompressedConv2d, CompressedLinear
from cutwork.layers.swap import candidates, sparse_layers, weight_of
from cutwork.patterns import NM, Pattern, parse
from cutwork.speed.forms import TILES
from cutwork.speed.plan import LayerPlan
from cutwork.speed.planning import plan
from cutwork.speed.timing import MARGIN
from cutwork.training.baking import bake
from cutwork.training.selection import describe_reasons, match_layers
from cutwork.training.sparsify import sparsify

# With so many tokens linear layers of a file are timed: as a model of language writes, and as an image has them.
USUAL_TOKENS = (1, 197)
# How many times faster than dense a form is, by the shape of the input, and whether the runs agree.
Gains = tuple[dict[str, float], bool]


def check(
    source: str | Path | Mapping[str, Any] | nn.Module,
    *inputs: Any,
    weights: pruned.Source | None = None,
    time: bool = False,
    tokens: Sequence[int] = USUAL_TOKENS,
    seconds: float = 0.2,
) -> Check:
    """Say which patterns the zeros of a model follow, and which of its layers would be faster for it on this machine.

    `source` is whatever `compat.pruned.read` reads, a checkpoint of cutwork, SuperBlock's weights, or a model. Masks
    that lie beside the weights count as zeros. `weights` are those that masks alone in a file belong to.

    With `time` layers are measured, each distinct one for `seconds` with each input, as by `plan`: those of a model
    with its `inputs`, linear layers of a file in single precision with these numbers of `tokens`.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[:, 1::2].zero_()
    >>> print(check(model))
    Sequential: 2 weights, zeros told by the weights themselves
    <BLANKLINE>
    weight  shape  density  zeros     also  here
    ...
    """
    if isinstance(source, nn.Module):
        return _check_model(source, inputs, time=time, seconds=seconds)
    if inputs:
        raise ValueError("inputs are those of a model, and the source is none; give the model, or leave them out")
    name = str(source) if isinstance(source, str | Path) else "the state dict"
    if isinstance(source, str | Path) and Path(source).is_file() and is_described(Path(source)):
        if time:
            raise ValueError(
                f"{name} says what is sparse, but not what computes; to time it, give the folder of its run, or load "
                "it into its model and check that"
            )
        return _of_checkpoint(name, describe(source))
    told_by, state = pruned.fold(source, weights=weights)
    held = {key.removesuffix(".weight"): tensor for key, tensor in state.items() if _is_matrix(tensor)}
    if not held:
        raise ValueError(f"{name} holds no matrix of floating point numbers among its {len(state)} tensors")
    orders = {key: find_order(tensor) for key, tensor in held.items()}
    timed = _time_weights(held, orders, tokens, seconds) if time else {}
    return _sum_up(name, told_by, orders, {key: tensor.dtype for key, tensor in held.items()}, timed)


def _is_matrix(tensor: Tensor) -> bool:
    """Say whether a tensor may be the weight of a layer: not a vector, nor one that stands for all of a batch."""
    return tensor.is_floating_point() and 2 <= tensor.ndim <= 5 and min(tensor.shape[:2]) > 1


def _check_model(model: nn.Module, inputs: tuple[Any, ...], *, time: bool, seconds: float) -> Check:
    told_by, masks = pruned.ZEROS, {}
    if pruned.is_marked(model):
        model = copy_model(model)
        told_by = pruned.bake(model).origin
    if sparse_layers(model):
        model, told_by = copy_model(model), "cutwork"
        masks = bake(model)
    present = candidates(model)
    found = {name: each for name, each in present.items() if not each.obstacle}
    if not found:
        reasons = "; ".join(describe_reasons({name: each.obstacle for name, each in present.items()}))
        raise ValueError(
            "this model has no linear layer or 2-d convolution whose zeros could be looked at"
            + (f"; {reasons}" if reasons else "")
        )
    weights = {name: weight_of(model, each) for name, each in found.items()}
    # Of layers that share a weight the first stands for all.
    firsts = {id(weight): name for name, weight in reversed(weights.items())}
    first_of = {name: firsts[id(weight)] for name, weight in weights.items()}
    held = {name: weight.detach() for name, weight in weights.items() if first_of[name] == name}
    orders = {name: find_order(masks.get(name, weight), found[name].layout) for name, weight in held.items()}
    kept = {name: masks.get(name, mask_of(weight, orders[name], found[name].layout)) for name, weight in held.items()}
    timed = _time_model(model, orders, kept, first_of, inputs, seconds) if time else {}
    dtypes = {name: weight.dtype for name, weight in held.items()}
    obstacles = {name: each.obstacle for name, each in present.items() if each.obstacle}
    return replace(_sum_up(type(model).__name__, told_by, orders, dtypes, timed), obstacles=obstacles)


def _of_checkpoint(name: str, description: Description) -> Check:
    """Return what a checkpoint says of its layers; the weights that are not sparse are not told apart."""
    orders = {
        layer: Zeros((), record.mask_density, record.pattern, _axis(parse(record.pattern)))
        for layer, record in description.layers.items()
    }
    return _sum_up(name, "cutwork", orders, dict.fromkeys(orders, torch.float32), {})


def _axis(pattern: Pattern) -> str:
    return "" if not isinstance(pattern, NM) else BOTH if pattern.form else INPUTS


def _sum_up(
    source: str,
    told_by: str,
    orders: Mapping[str, Zeros],
    dtypes: Mapping[str, torch.dtype],
    timed: Mapping[str, Gains],
) -> Check:
    weights = []
    for name, zeros in orders.items():
        if zeros.pattern == DENSE:
            continue
        gains, is_steady = timed.get(name, ({}, True))
        form, reason = _compare(gains) if gains else _judge(zeros, dtypes[name])
        weights.append(CheckedWeight(name, zeros, form, reason, gains, is_steady))
    return Check(source, told_by, tuple(weights), tuple(n for n, zeros in orders.items() if zeros.pattern == DENSE))


def _judge(zeros: Zeros, dtype: torch.dtype) -> tuple[str, str]:
    """Return the form that is best for such a weight, as far as that is known without measuring, and why."""
    pattern = zeros.trains_as
    if pattern == EMPTY:
        return "", "all of it is zero, so its layer returns its bias alone"
    if zeros.axis in (OUTPUTS, FLAT):
        return DENSE, f"not faster on this CPU; n:m is of use along inputs, this is along {zeros.axis}"
    if parse(pattern).tiling is None:
        on_gpus = next((f" ({pattern} on GPUs: {each.reason})" for each in survey() if each.name == pattern), "")
        return DENSE, f"not faster on this CPU; there is no kernel here that skips such zeros{on_gpus}"
    operator = (CompressedConv2d if len(zeros.shape) == 4 else CompressedLinear).operator
    kernel = kernel_name(operator, torch.device("cpu"), dtype)
    if kernel == REFERENCE:
        kind = str(dtype).removeprefix("torch.")
        return DENSE, f"not faster on this CPU; there is no tile kernel for {kind} here, and cutwork doctor says why"
    where = " in its model" if len(zeros.shape) == 4 else ""
    return "", f"it can be stored as tiles, which {kernel} multiplies; whether that is faster, --time measures{where}"


def _compare(gains: Mapping[str, float]) -> tuple[str, str]:
    """Return the form that measured fastest, and what was measured."""
    told = ", ".join(f"{gain:.2f}x for {shape}" for shape, gain in gains.items())
    if min(gains.values()) >= MARGIN:
        return TILES, f"faster as tiles: {told}"
    if max(gains.values()) < MARGIN:
        return DENSE, f"not faster as tiles: {told}"
    return "", f"it depends on the input; as tiles {told}"


def _time_weights(
    held: Mapping[str, Tensor], orders: Mapping[str, Zeros], tokens: Sequence[int], seconds: float
) -> dict[str, Gains]:
    """Return how much faster linear layers with these weights are as tiles; equal ones are measured once."""
    if not tokens or min(tokens) < 1:
        raise ValueError(f"tokens={tuple(tokens)}; give at least one number of tokens, each of 1 or more")
    known: dict[Any, Gains] = {}
    timed = {}
    for name, zeros in orders.items():
        weight = held[name]
        if weight.ndim != 2 or not _can_gain(zeros):
            continue
        key = (zeros.shape, zeros.trains_as, round(zeros.density, 2))
        if key not in known:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.load_state_dict({"weight": weight.float()})
            model = nn.Sequential(layer)
            sparsify(model, zeros.trains_as, masks={"0": mask_of(weight, zeros)}, rescale=False)
            plans = [plan(model, torch.randn(number, weight.shape[1]), seconds=seconds) for number in tokens]
            known[key] = _gains([each.rows[0] for each in plans])
        timed[name] = known[key]
    return timed


def _time_model(
    model: nn.Module,
    orders: Mapping[str, Zeros],
    masks: Mapping[str, Tensor],
    first_of: Mapping[str, str],
    inputs: tuple[Any, ...],
    seconds: float,
) -> dict[str, Gains]:
    """Return how much faster the layers of a model are as tiles, with what they see of its inputs."""
    gaining = {name: orders[first].trains_as for name, first in first_of.items() if _can_gain(orders[first])}
    if not gaining:
        return {}
    timed = copy_model(model).eval()
    # What shares its weight with something that stays dense cannot be sparse, whatever its zeros.
    able = match_layers(timed, _only(gaining), {})
    chosen = {name: str(choice.pattern) for choice in able.values() for name in choice.names}
    sparsify(timed, _only(chosen), masks={name: masks[name] for name in able}, rescale=False)
    return {row.layer: _gains([row]) for row in plan(timed, *inputs, seconds=seconds).rows}


def _only(patterns: Mapping[str, str]) -> dict[str, str]:
    """Return what makes these layers sparse, and no others."""
    return {"*": DENSE, **{escape(name): pattern for name, pattern in patterns.items()}}


def _gains(rows: Sequence[LayerPlan]) -> Gains:
    measured = [row for row in rows if {DENSE, TILES} <= {*row.seconds}]
    gains = {"x".join(map(str, row.input)): row.seconds[DENSE] / row.seconds[TILES] for row in measured}
    return gains, all(row.is_steady for row in measured)


def _can_gain(zeros: Zeros) -> bool:
    return zeros.pattern not in (DENSE, EMPTY) and parse(zeros.trains_as).tiling is not None
