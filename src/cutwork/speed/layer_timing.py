"""What a layer is called with in a model, and how long such a call takes in each form."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from cutwork.evaluation import Call, first_input, hooked, hooks_of, in_evaluation
from cutwork.layers.swap import SparseLayer
from cutwork.speed.cache import TimingCache
from cutwork.speed.forms import FORMS
from cutwork.speed.machine import identify_machine
from cutwork.speed.timing import Timing, measure
from cutwork.speed.tolerance import PACKED, loosest, precision_of

# The seconds that were asked for end a measurement, however short a call is.
MANY_ROUNDS = 100_000


@final
@dataclass(frozen=True)
class Usage:
    """What a layer is called with: the shape and memory format of its input, and how often in a pass."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False
    calls: int = 1

    def example(self, device: torch.device) -> Tensor:
        """Return some input of this kind."""
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(self.shape, device=device, generator=generator).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def find_usages(model: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> dict[str, Usage]:
    """Return what each of these layers is called with in a pass over the model; the largest of several shapes."""
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers.values()}

    def look(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        seen[layer].append(first_input(args, kwargs))

    with in_evaluation(model), hooked(layers.values(), before=look):
        call(model)
    return {name: _usage(seen[layer]) for name, layer in layers.items() if seen[layer]}


def _usage(called: list[Tensor]) -> Usage:
    x = max(called, key=Tensor.numel)
    is_image = x.dim() == 4
    return Usage(
        tuple(x.shape),
        x.dtype,
        channels_last=is_image and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous(),
        calls=len(called),
    )


@final
@dataclass(frozen=True)
class FormTimer:
    """Times layers in their forms, for some seconds each; for training with the backward pass.

    Equal layers are timed once. Only what is steady is kept for the next run: a number from a busy machine would be
    believed for ever.
    """

    training: bool
    seconds: float
    kept: TimingCache | None
    _timed: dict[str, dict[str, Timing]] = field(default_factory=dict)

    def time(self, layer: SparseLayer, usage: Usage, forms: Sequence[str]) -> dict[str, Timing]:
        """Return how long a call of a layer takes in each form; ValueError where two forms give different results."""
        key = _key(layer, usage, self.training)
        if key not in self._timed and self.kept is not None:
            self._timed[key] = {form: Timing(median_s, 0.0, 0) for form, median_s in self.kept.get(key).items()}
        if any(form not in self._timed.get(key, {}) for form in forms):
            self._timed[key] = self._measure(layer, usage, forms)
            if self.kept is not None and all(timing.is_steady for timing in self._timed[key].values()):
                self.kept.put(key, {form: timing.median_s for form, timing in self._timed[key].items()})
        return {form: self._timed[key][form] for form in forms}

    def _measure(self, layer: SparseLayer, usage: Usage, forms: Sequence[str]) -> dict[str, Timing]:
        twins = {form: self._twin(layer, form) for form in forms}
        x = usage.example(layer.trained.device)
        _check_equal(twins, x)
        calls = {form: self._call(twin, x) for form, twin in twins.items()}
        return measure(calls, seconds=self.seconds, max_rounds=MANY_ROUNDS)

    def _twin(self, layer: SparseLayer, form: str) -> nn.Module:
        twin = copy.deepcopy(layer).train(self.training)
        for hooks in hooks_of(twin):
            hooks.clear()
        holder = nn.ModuleDict({"layer": twin})
        FORMS[form].give(holder, ["layer"], training=self.training)
        return holder["layer"]

    def _call(self, twin: nn.Module, x: Tensor) -> Callable[[], object]:
        if not self.training:

            def infer() -> Tensor:
                with torch.no_grad():
                    return twin(x)

            return infer
        source = x.requires_grad_()
        dy = torch.ones_like(twin(source))

        def train() -> None:
            twin(source).backward(dy)
            source.grad = None
            for parameter in twin.parameters():
                parameter.grad = None

        return train


@torch.no_grad()
def _check_equal(twins: Mapping[str, nn.Module], x: Tensor) -> None:
    results = {form: twin(x) for form, twin in twins.items()}
    (first, expected), *others = results.items()
    for form, found in others:
        error = float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
        if not error <= loosest(PACKED, [precision_of(x.dtype), FORMS[form].precision]).layer:
            raise ValueError(
                f"the forms {first!r} and {form!r} of a layer give results that differ by {error:.2g} for an input of "
                f"{list(x.shape)}; this is a defect of a kernel on this machine: please report it, with the output of "
                f"'cutwork doctor', and forbid the form until then"
            )


def _key(layer: SparseLayer, usage: Usage, training: bool) -> str:
    sparsity = layer.sparsity
    matrix = sparsity.mask_matrix()
    density = float(matrix.double().mean())
    what = "training" if training else "inference"
    details = {
        name: value for name, value in vars(layer).items() if name in ("stride", "padding", "dilation", "groups")
    }
    return " | ".join(
        [
            identify_machine(layer.trained.device),
            f"{'x'.join(map(str, matrix.shape))} {sparsity.pattern} {density:.3f} {layer.trained.dtype} {details}",
            f"{'x'.join(map(str, usage.shape))} {usage.dtype} {'nhwc' if usage.channels_last else ''} {what}",
        ]
    )
