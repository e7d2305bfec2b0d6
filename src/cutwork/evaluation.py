"""Running a model in evaluation to look at what it does, and leaving it as it was."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


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


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model, also where it holds weights that a hook computes anew before each pass."""
    # Those carry gradients, and PyTorch copies no such tensors.
    held = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


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


def hooks_of(module: nn.Module) -> list[dict[int, Callable[..., Any]]]:
    """Return the hooks that run around a module's forward and backward, by kind; what is changed there is changed."""
    return [getattr(module, kind) for kind in HOOKS]


@final
@dataclass(frozen=True)
class Call:
    """What a model is called with: inputs in their order, and others by name."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, model: nn.Module) -> Any:
        """Call a model with it."""
        return model(*self.args, **self.kwargs)


def call_of(model: nn.Module, inputs: Sequence[Any]) -> Call:
    """Return how a model is called with inputs, of which a mapping at the end holds those that it takes by name.

    A mapping of which `forward` takes nothing by name is an input like others; one more, empty, says so of any.

    >>> class Scaled(nn.Module):
    ...     def forward(self, x, *, scale=1.0): ...
    >>> call_of(Scaled(), (2, {"scale": 3}))
    Call(args=(2,), kwargs={'scale': 3})
    >>> call_of(Scaled(), ({"pixels": 2},))
    Call(args=({'pixels': 2},), kwargs={})
    """
    *args, last = inputs or ({},)
    if isinstance(last, Mapping) and (not last or _takes_by_name(model, last)):
        return Call(tuple(args), dict(last))
    return Call((*args, last), {})


def _takes_by_name(model: nn.Module, given: Mapping[Any, Any]) -> bool:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return all(isinstance(name, str) for name in given)
    named = {parameter.name for parameter in parameters if parameter.kind in NAMED}
    return any(name in named for name in given)


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what a layer computes with: its first argument, whether it was given in its place or by its name."""
    return next(iter((*args, *kwargs.values())))
