"""Tensors that say which weights are kept: no average may mix them, and replacing them is noticed.

Code that averages models treats every tensor of their buffers or state dicts as if it were a weight. The average of two
masks would be their union, that of two indices some other index.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, final

import torch
from torch import Tensor

# These return the same numbers, perhaps on another device.
MOVING = {"detach", "to", "cpu", "cuda", "clone", "contiguous"}
# What averages are made of; the result remembers its sources.
MIXING = {"mul", "add", "sub", "rsub", "div", "true_divide", "lerp", "addcmul", "addcdiv"} | {
    f"__{side}{name}__" for side in ("", "r") for name in ("mul", "add", "sub", "truediv")
}
MIXING_IN_PLACE = {f"__i{name}__" for name in ("mul", "add", "sub", "truediv")}


@final
class Protected(Tensor):
    """A mask or an index among the buffers of a layer, whose numbers averages leave as they are.

    To average it with an equal one changes nothing. Where the other one differs, a mask that `may_follow` becomes
    that, since the weights of an average are zero or masked wherever those of the model are; an index refuses, since
    the numbers at its places are weights of other places. Numbers of unknown origin, as a file has them, are written.
    """

    described: str
    may_follow: bool
    # Whether its memory was exchanged, as by `tensor.data = ...`; any other write raises its version.
    was_exchanged: bool
    # The tensors that this one is a mixture of; empty if it is none.
    sources: tuple[Tensor, ...]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do what was asked, but mix nothing."""
        return _answer()(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Protected":
        """Copy the numbers too."""
        return memo.setdefault(id(self), _protect_like(self, plain(self).clone()))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel as a plain tensor: a state dict can be read where there is no cutwork."""
        return plain(self).__reduce_ex__(protocol)


def protect(tensor: Tensor, described: str, *, may_follow: bool) -> Tensor:
    """Return a plain tensor with the same memory as a protected one; any other kind of tensor as it is."""
    if type(tensor) is not Tensor:
        return tensor
    protected = tensor.as_subclass(Protected)
    protected.described, protected.may_follow = described, may_follow
    protected.was_exchanged, protected.sources = False, ()
    return protected


def plain(tensor: Any) -> Any:
    """Return a protected tensor as a plain one with the same memory, and anything else as it is."""
    return tensor.as_subclass(Tensor) if isinstance(tensor, Protected) else tensor


def version_of(tensor: Tensor | None) -> int:
    """Return how often a tensor was written to; 0 where PyTorch does not count, as under torch.inference_mode."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _answer() -> Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]:
    """Return what answers functions of torch, for compilers to call and not to trace.

    Traced, it forgets that it is running already, and calls itself without end.
    """
    dynamo = sys.modules.get("torch._dynamo")
    return _compute if dynamo is None else _hide(dynamo.disable)


@cache
def _hide(disable: Callable[..., Any]) -> Any:
    return disable(_compute)


def _compute(func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do what was asked, but mix nothing."""
    name = getattr(func, "__name__", "")
    with torch._C.DisableTorchFunctionSubclass():
        if name.startswith("_foreach_"):
            return _do_each(name, args, kwargs)
        if func == Tensor.data.__set__:  # pyrefly: ignore
            args[0].was_exchanged = True
        elif _writes(name, args, kwargs):
            return _write(name, func, args, kwargs)
        if name in MIXING and any(True for _ in _find_protected(args, kwargs)):
            # PyTorch cannot subtract masks.
            numbers = (arg.float() if isinstance(arg, Protected) and arg.dtype == torch.bool else arg for arg in args)
            return _protect_like(
                next(_find_protected(args, kwargs)), func(*numbers, **kwargs), sources=_find_sources(args, kwargs)
            )
        result = func(*args, **kwargs)
    if not isinstance(result, Tensor):
        return result
    if name in MOVING or func == Tensor.data.__get__:  # pyrefly: ignore
        return _protect_like(args[0], result, sources=getattr(args[0], "sources", ()))
    return result


def _protect_like(protected: "Protected", tensor: Tensor, sources: tuple[Tensor, ...] = ()) -> Protected:
    made = tensor.as_subclass(Protected)
    made.described, made.may_follow = protected.described, protected.may_follow
    made.was_exchanged, made.sources = False, sources
    return made


def _find_protected(*containers: Any) -> Iterator[Protected]:
    for container in containers:
        for value in container.values() if isinstance(container, dict) else container:
            if isinstance(value, Protected):
                yield value
            elif isinstance(value, list | tuple):
                yield from _find_protected(value)


def _find_sources(*containers: Any) -> tuple[Tensor, ...]:
    """Return the tensors, each once, that protected ones among these stand for."""
    found: list[Tensor] = []
    for protected in _find_protected(*containers):
        for source in protected.sources or (plain(protected),):
            if not any(_is_same(source, other) for other in found):
                found.append(source)
    return tuple(found)


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other.to(one.device))


def _writes(name: str, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Say whether this writes what may be an average into a protected tensor; one entry is no average."""
    is_in_place = name == "copy_" or name in MIXING_IN_PLACE or (name.endswith("_") and name.rstrip("_") in MIXING)
    target = kwargs.get("out", args[0] if is_in_place and args else None)
    return isinstance(target, Protected) and not target.sources


def _write(name: str, func: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Write into a protected tensor what an average or a loader gives."""
    target = kwargs.get("out", args[0])
    assert isinstance(target, Protected)
    given = [*args[1:], *(value for key, value in kwargs.items() if key != "out")]
    sources = _find_sources(given)
    if name == "copy_" and not sources:
        return func(*args, **kwargs)
    # Numbers by which averages multiply may come as tensors.
    if name != "copy_" and any(type(each) is Tensor and each.numel() > 1 for each in given):
        raise ValueError(
            f"{name} would mix other numbers into {target.described}, which says what the layer keeps; masks are moved "
            "by a sparsifier, and taken over by load_state_dict() or cutwork.copy_masks()"
        )
    others = [source for source in sources if not _is_same(source, plain(target))]
    if not others:
        return target
    if not target.may_follow:
        raise ValueError(
            f"{target.described} differs in the models that were to be averaged: the mask of one has moved, and an "
            "average would mix weights of different places; let the average move along, with "
            "sparsifier.take_along(average), or begin to average when masks have come to rest, or use storage='dense'"
        )
    plain(target).copy_(others[-1])
    return target


def _do_each(name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do what an operation on lists of tensors does, tensor by tensor."""
    single = getattr(torch.Tensor, name.removeprefix("_foreach_"))
    rows = [[arg[i] if isinstance(arg, list | tuple) else arg for arg in args] for i in range(len(args[0]))]
    results = [_compute(single, tuple(row), kwargs) for row in rows]
    return None if name.endswith("_") else results
