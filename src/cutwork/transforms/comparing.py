"""Running a changed model beside the one it was, to see that it fits into its place."""

from typing import Any

import torch
from torch import Tensor, nn

from cutwork.evaluation import Call, hooked, in_evaluation
from cutwork.text import label
from cutwork.transforms.sizes import tensors_in

# How far, relative to the largest, the outputs of a model with copied weights may lie from those it had.
MOST_DIFFERENCE = 1e-3


def compare(model: nn.Module, changed: nn.Module, call: Call, *, what: str, is_copy: bool) -> None:
    """Run both models; raise ValueError where the changed one fails, or returns what it should not."""
    running: list[str] = []
    names = {module: name for name, module in changed.named_modules()}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        running.append(names[module])

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()

    with in_evaluation(model):
        expected = list(tensors_in(call(model)))
    try:
        with in_evaluation(changed), hooked(changed.modules(), enter, leave):
            found = list(tensors_in(call(changed)))
    except Exception as error:
        raise ValueError(
            f"{label(running[-1] if running else '')} does not run in the {what} model: {type(error).__name__}: {error}"
        ) from error
    for before, after in zip(expected, found, strict=True):
        if before.shape != after.shape:
            raise ValueError(f"the {what} model returns {tuple(after.shape)} where it returned {tuple(before.shape)}")
        if not after.isfinite().all() and before.isfinite().all():
            raise ValueError(f"the {what} model returns numbers that are not finite; its first weights do not fit it")
        if is_copy and not _are_close(before, after):
            raise ValueError("copies of the weights do not compute the same in this model; use weights='fresh'")


def _are_close(before: Tensor, after: Tensor) -> bool:
    if not before.is_floating_point():
        return torch.equal(before, after)
    return bool((before - after).abs().max() <= MOST_DIFFERENCE * before.abs().max())
