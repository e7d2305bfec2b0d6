"""Nested values with tensors anywhere inside, as JSON beside a table of plain tensors."""

import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from cutwork.tensor_file import DTYPES

Json = Any
Mask = tuple[str, Tensor]

# JSON objects that stand for something else have one of these keys; all others are dicts as they are.
TENSOR, BITS, KEPT, TUPLE, PAIRS = "$tensor", "$bits", "$kept", "$tuple", "$pairs"


@final
class TensorTable:
    """Plain tensors by name: `put` fills the table from a value and returns JSON, from which `take` makes it again.

    A value is None, a number, text, a tensor, or a list, tuple or dict of values. A tensor that stands in several
    places is stored once and comes back as one. A bool tensor is stored as bits.

    >>> table = TensorTable({})
    >>> table.put({"rate": 0.1, "betas": (0.9, 0.99), "mean": torch.ones(2)}, "optimizer")
    {'rate': 0.1, 'betas': {'$tuple': [0.9, 0.99]}, 'mean': {'$tensor': 'optimizer/mean'}}
    >>> table.take({"$tensor": "optimizer/mean"})
    tensor([1., 1.])
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        # The tensors themselves are held too, or their ids could come to mean others.
        self._put: dict[int, tuple[Tensor, Json]] = {}
        self._taken: dict[str, Tensor] = {}

    def put(self, value: Any, name: str, mask: Mask | None = None) -> Json:
        """Return JSON for a value whose tensors get names that begin with `name`.

        Of tensors shaped like the mask, given with its own name, only what is inside is stored if the rest is zero.
        """
        if isinstance(value, Tensor):
            if id(value) not in self._put:
                self._put[id(value)] = value, self._put_tensor(value, name, mask)
            return self._put[id(value)][1]
        if isinstance(value, list | tuple):
            items = [self.put(item, f"{name}/{place}", mask) for place, item in enumerate(value)]
            return {TUPLE: items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            pairs = [(key, self.put(item, f"{name}/{key}", mask)) for key, item in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
                return dict(pairs)
            return {PAIRS: [[self.put(key, f"{name}/key"), item] for key, item in pairs]}
        if value is None or isinstance(value, str | int | float):
            return value
        raise ValueError(
            f"{name} is a {type(value).__qualname__}, which a file that can hold no code cannot hold; give numbers, "
            "text, tensors, or lists, tuples and dicts of these"
        )

    def take(self, node: Json) -> Any:
        """Return the value that this JSON stands for, its tensors copied out of the table."""
        if isinstance(node, list):
            return [self.take(item) for item in node]
        if not isinstance(node, dict):
            return node
        if TUPLE in node:
            return tuple(self.take(node[TUPLE]))
        if PAIRS in node:
            return {self.take(key): self.take(item) for key, item in node[PAIRS]}
        for form in (TENSOR, BITS, KEPT):
            if form in node:
                if node[form] not in self._taken:
                    self._taken[node[form]] = self._take_tensor(node, form)
                return self._taken[node[form]]
        return {key: self.take(item) for key, item in node.items()}

    def _put_tensor(self, tensor: Tensor, name: str, mask: Mask | None) -> Json:
        assert name not in self.tensors, f"{name} stands for two tensors"
        tensor = tensor.detach()
        if tensor.dtype == torch.bool:
            self.tensors[name] = torch.from_numpy(np.packbits(tensor.reshape(-1).cpu().numpy()))
            return {BITS: name, "shape": list(tensor.shape)}
        if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
            raise ValueError(
                f"{name} is a tensor of {tensor.dtype} in the layout {tensor.layout}, which the file cannot hold; "
                f"convert it to strided and one of {', '.join(map(str, DTYPES))}"
            )
        if mask is not None and mask[1].shape == tensor.shape:
            # An optimizer may keep its state on another device than the model.
            inside = mask[1].to(tensor.device)
            if not tensor[~inside].any():
                self.tensors[name] = tensor[inside].cpu()
                return {KEPT: name, "mask": self.put(mask[1], mask[0])}
        self.tensors[name] = tensor.cpu()
        return {TENSOR: name}

    def _take_tensor(self, node: Json, form: str) -> Tensor:
        stored = self.tensors[node[form]]
        if form == TENSOR:
            return stored.clone()
        if form == BITS:
            bits = np.unpackbits(stored.numpy(), count=math.prod(node["shape"]))
            return torch.from_numpy(bits).bool().view(node["shape"])
        mask = self.take(node["mask"])
        return stored.new_zeros(mask.shape).masked_scatter_(mask, stored)
