"""The weight of a layer that stores none: its dtype, device and shape cost nothing to read."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from cutwork.patterns import Shape
from cutwork.sparsity.protected import version_of


@final
class MadeWeight(Tensor):
    """A tensor whose numbers are made when a function asks for them; read-only.

    Models read the weight of a layer past the layer: its dtype, to cast an input to it, or its device. Numbers come
    with their gradient, which goes to what the layer trains. Writing some would change nothing that the layer stores,
    so that is an error.
    """

    _make: Callable[[], Tensor]
    _described: str

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch with the numbers."""
        if func in FREE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        made: dict[int, tuple[MadeWeight, Tensor, int]] = {}

        def numbers_of(value: Any) -> Any:
            if isinstance(value, MadeWeight):
                if id(value) not in made:
                    numbers = value._make()
                    made[id(value)] = value, numbers, version_of(numbers)
                return made[id(value)][1]
            if isinstance(value, list | tuple) and any(isinstance(item, MadeWeight) for item in value):
                return type(value)(numbers_of(item) for item in value)
            return value

        if func in SETTERS or _is_in_place(func, args):
            raise read_only(args[0]._described)
        result = func(*map(numbers_of, args), **{key: numbers_of(value) for key, value in (kwargs or {}).items()})
        for weight, numbers, version in made.values():
            if version_of(numbers) != version:
                raise read_only(weight._described)
            if isinstance(result, Tensor) and _shares_memory(result, numbers):
                # A part of it, such as `.data`, `.T` or a slice, is read-only too.
                return make_weight(lambda: result, weight._described, shape=result.shape, like=result)
        return result

    @classmethod
    def __torch_dispatch__(  # pyrefly: ignore[bad-override]
        cls, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give the numbers also to what asks for them below Python."""
        args, kwargs = tree_map_only(MadeWeight, lambda weight: weight._make().detach(), (args, kwargs or {}))
        return func(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Travel as plain numbers."""
        return self._make().detach().__reduce_ex__(protocol)


FREE = {
    getattr(Tensor, name).__get__ for name in ("dtype", "device", "shape", "ndim", "requires_grad", "layout", "is_cuda")
} | {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.element_size, Tensor.is_floating_point, Tensor.is_complex),
    *(Tensor.get_device, Tensor.__len__),
    *(Tensor.is_meta.__get__, Tensor.is_sparse.__get__, Tensor.is_quantized.__get__, Tensor.is_leaf.__get__),  # pyrefly: ignore
    *(Tensor.grad.__get__, Tensor.itemsize.__get__, Tensor.nbytes.__get__, Tensor.is_cpu.__get__),  # pyrefly: ignore
}
SETTERS = {Tensor.data.__set__, Tensor.grad.__set__, Tensor.requires_grad.__set__}  # pyrefly: ignore


def make_weight(make: Callable[[], Tensor], described: str, *, shape: Shape, like: Tensor) -> Tensor:
    """Return a read-only tensor with the dtype and device of another, whose numbers `make` returns."""
    if torch.compiler.is_compiling():
        # A compiler leaves out what is never read.
        return make()
    requires_grad = like.requires_grad and torch.is_grad_enabled()
    weight = torch.Tensor._make_wrapper_subclass(  # pyrefly: ignore
        MadeWeight, shape, dtype=like.dtype, device=like.device, requires_grad=requires_grad
    )
    weight._make, weight._described = make, described
    return weight


def _is_in_place(func: Callable[..., Any], args: tuple) -> bool:
    name = getattr(func, "__name__", "")
    is_writing = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return is_writing and bool(args) and isinstance(args[0], MadeWeight)


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    return one.layout == torch.strided and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def read_only(described: str) -> ValueError:
    """Return the error for a write to the weight of a layer that stores none."""
    return ValueError(
        f"the weight of {described} is read-only: the layer stores only what its mask keeps; take the model as it was "
        "before pack(), or unpack() it, to write weights"
    )
