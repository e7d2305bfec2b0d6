"""Running a model in evaluation to look at what it does, and leaving it as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation for a while, without gradients; each module's own mode and chance stay as they are.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(4).eval())
    >>> with in_evaluation(model):
    ...     print([module.training for module in model])
    [False, False]
    >>> [module.training for module in model]
    [True, False]
    """
    training = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        # Not through eval(): some modules do work there, such as merging weights.
        for module in training:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(sorted(devices, key=str)):
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def hooked(
    modules: Iterable[nn.Module], before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> Iterator[None]:
    """For a while call `before(module, args, kwargs)` and `after(module, args, kwargs, output)` around each forward."""
    with ExitStack() as hooks:
        for module in modules:
            if before is not None:
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            if after is not None:
                hooks.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer computes with: its first argument, whether it was given in its place or by its name."""
    return next(iter((*args, *kwargs.values())))
