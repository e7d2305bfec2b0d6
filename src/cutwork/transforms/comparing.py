"""Running a changed model beside the one it was, to see that it fits into its place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cutwork.evaluation import Call, copy_model, hooked, in_evaluation
from cutwork.text import label
from cutwork.transforms.sizes import tensors_in

# How far, relative to the largest, the outputs of a model with copied weights may lie from those it had.
MOST_DIFFERENCE = 1e-5


def compare(
    model: nn.Module,
    changed: nn.Module,
    call: Call,
    *,
    what: str,
    is_copy: bool,
    why_fails: str = "",
    why_differs: str = "",
) -> None:
    """Run both models; raise ValueError where the changed one fails, or returns what it should not.

    `what` names the changed one in errors, `why_fails` says what it means that it does not run, and `why_differs` what
    a copy needs.
    """
    if is_copy:
        # Rounding in single precision could hide how little the inputs of a new model change its outputs.
        model, changed, call = copy_model(model).double(), copy_model(changed).double(), _doubled(call)
        with _double_by_default():
            expected = _run(model, call, "does not run in double precision, in which copies are compared")
            found = _run(changed, call, f"does not run in the {what} model{why_fails}")
    else:
        with in_evaluation(model):
            expected = list(tensors_in(call(model)))
        found = _run(changed, call, f"does not run in the {what} model{why_fails}")
    for before, after in zip(expected, found, strict=True):
        if before.shape != after.shape:
            raise ValueError(f"the {what} model returns {tuple(after.shape)} where it returned {tuple(before.shape)}")
        if not after.isfinite().all() and before.isfinite().all():
            raise ValueError(f"the {what} model returns numbers that are not finite; its first weights do not fit it")
        if is_copy and not _are_close(before, after):
            raise ValueError(f"copies of the weights do not compute the same here{why_differs}; use weights='fresh'")


def _run(model: nn.Module, call: Call, failure: str) -> list[Tensor]:
    """Return what a model returns; raise ValueError with the name of the module that fails."""
    running: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        running.append(names[module])

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()

    try:
        with in_evaluation(model), hooked(model.modules(), enter, leave):
            return list(tensors_in(call(model)))
    except Exception as error:
        raise ValueError(
            f"{label(running[-1] if running else '')} {failure}: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _double_by_default() -> Iterator[None]:
    """For a while make new tensors in double precision, such as a constant in the code of forward."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _doubled(call: Call) -> Call:
    def double(given: Tensor) -> Tensor:
        return given.double() if given.is_floating_point() else given

    return Call(*tree_map_only(Tensor, double, (call.args, dict(call.kwargs))))


def _are_close(before: Tensor, after: Tensor) -> bool:
    if not before.is_floating_point():
        return torch.equal(before, after)
    return bool((before - after).abs().max() <= MOST_DIFFERENCE * before.abs().max())
