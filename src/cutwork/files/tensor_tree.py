"""Nested values with tensors anywhere inside, as JSON beside a table of plain tensors."""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from cutwork.files.tensor_file import DTYPES, LARGEST

Json = Any
Mask = tuple[str, Tensor]

# JSON objects that stand for something else have one of these keys; all others are dicts as they are.
TENSOR, BITS, KEPT, TUPLE, PAIRS = "$tensor", "$bits", "$kept", "$tuple", "$pairs"
FORMS = {TENSOR: {TENSOR}, BITS: {BITS, "shape"}, KEPT: {KEPT, "mask"}, TUPLE: {TUPLE}, PAIRS: {PAIRS}}
# Python itself gives up at some depth, which depends on who calls.
DEEPEST = 100


@final
class TensorTable:
    """Plain tensors by name: `put` fills the table from a value and returns JSON, from which `take` makes it again.

    A value is None, a number, text, a tensor, or a list, tuple or dict of values. A tensor that stands in several
    places is stored once and comes back as one. A bool tensor is stored as bits. Numbers of numpy become Python's, and
    paths text.

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
        # What has been checked: the JSON of each name, and how many bits of it are set.
        self._nodes: dict[str, Json] = {}
        self._ones: dict[str, int] = {}

    def put(self, value: Any, name: str, mask: Mask | None = None, depth: int = 0) -> Json:
        """Return JSON for a value whose tensors get names that begin with `name`.

        Of tensors shaped like the mask, given with its own name, only what is inside is stored if the rest is zero.
        """
        if isinstance(value, Tensor):
            if id(value) not in self._put:
                self._put[id(value)] = value, self._put_tensor(value, name, mask)
            return self._put[id(value)][1]
        if depth > DEEPEST:
            raise ValueError(f"{name} lies {depth} deep, or in itself; a file holds what is at most {DEEPEST} deep")
        if isinstance(value, list | tuple):
            items = [self.put(item, f"{name}/{place}", mask, depth + 1) for place, item in enumerate(value)]
            return {TUPLE: items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            pairs = [(key, self.put(item, f"{name}/{key}", mask, depth + 1)) for key, item in value.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
                return dict(pairs)
            nodes = [[self.put(key, f"{name}/key", None, depth + 1), item] for key, item in pairs]
            if not all(_is_hashable(key, depth) for key, _ in nodes):
                raise ValueError(f"{name} has a key with a tensor; give keys of numbers, text or tuples of these")
            return {PAIRS: nodes}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, PurePath):
            return str(value)
        if value is None or isinstance(value, str | int | float):
            return value
        raise ValueError(
            f"{name} is a {type(value).__qualname__}, which a file that can hold no code cannot hold; give numbers, "
            "text, tensors, or lists, tuples and dicts of these"
        )

    def check(self, node: Json, name: str, depth: int = 0) -> None:
        """Raise ValueError unless this JSON stands for a value, all of whose tensors are there and fit.

        A file is as small as it likes; so what it asks for is compared with what it holds before anything is made.
        """
        if depth > DEEPEST:
            raise ValueError(f"{name} lies more than {DEEPEST} deep")
        if isinstance(node, list):
            self._check_all(node, name, depth)
        if not isinstance(node, dict):
            return
        form = next((key for key in node if key.startswith("$")), None)
        if form is None:
            self._check_all(node.values(), name, depth)
        elif FORMS.get(form) != set(node):
            raise ValueError(f"{name} has the form {', '.join(sorted(node))}, which is unknown")
        elif form in (TUPLE, PAIRS) and not isinstance(node[form], list):
            raise ValueError(f"{name} has a {form} that is no list")
        elif form == TUPLE:
            self._check_all(node[form], name, depth)
        elif form == PAIRS:
            for pair in node[form]:
                if not isinstance(pair, list) or len(pair) != 2 or not _is_hashable(pair[0], depth):
                    raise ValueError(f"{name} has an entry that is no key with a value")
                self._check_all(pair, name, depth)
        else:
            self._check_tensor(node, form, name)

    def outline(self) -> "TensorTable":
        """Return a table from which tensors of the same types and shapes are taken, but without memory."""
        return TensorTable({name: tensor.to("meta") for name, tensor in self.tensors.items()})

    @property
    def bytes_taken(self) -> int:
        """Return how large the tensors are that have been taken."""
        return sum(tensor.nbytes for tensor in self._taken.values())

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

    def _check_all(self, nodes: Any, name: str, depth: int) -> None:
        for node in nodes:
            self.check(node, name, depth + 1)

    def _check_tensor(self, node: Json, form: str, name: str) -> None:
        stored = self.tensors.get(node[form]) if isinstance(node[form], str) else None
        if stored is None:
            raise ValueError(f"{name} is the tensor {node[form]!r}, which the file does not hold")
        if self._nodes.setdefault(node[form], node) != node:
            raise ValueError(f"{name} is the tensor {node[form]!r} in another form than elsewhere")
        if form == BITS:
            shape = node["shape"]
            if not isinstance(shape, list) or not all(type(size) is int and 0 <= size <= LARGEST for size in shape):
                raise ValueError(f"{name} has the shape {shape!r}, which is none")
            count = math.prod(shape)
            if (
                stored.dtype != torch.uint8
                or stored.shape != (-(-count // 8),)
                or math.prod(filter(None, shape)) > LARGEST
            ):
                raise ValueError(f"{name} needs {count} bits for its shape {shape}; the file holds {8 * stored.nbytes}")
        elif form == KEPT:
            mask = node["mask"]
            if not isinstance(mask, dict) or BITS not in mask:
                raise ValueError(f"{name} is what a mask keeps, but has none")
            self.check(mask, name)
            if stored.shape != (self._num_ones(mask[BITS], math.prod(mask["shape"])),):
                raise ValueError(f"{name} holds {list(stored.shape)} numbers, which is not what its mask keeps")

    def _num_ones(self, name: str, count: int) -> int:
        if name not in self._ones:
            self._ones[name] = int(np.unpackbits(self.tensors[name].numpy(), count=count).sum(dtype=np.int64))
        return self._ones[name]

    def _take_tensor(self, node: Json, form: str) -> Tensor:
        stored = self.tensors[node[form]]
        if form == TENSOR:
            return stored.clone()
        if form == BITS and stored.is_meta:
            return torch.empty(node["shape"], dtype=torch.bool, device="meta")
        if form == BITS:
            bits = np.unpackbits(stored.numpy(), count=math.prod(node["shape"]))
            return torch.from_numpy(bits).view(torch.bool).view(node["shape"])
        mask = self.take(node["mask"])
        return stored.new_zeros(mask.shape).masked_scatter_(mask, stored)


def _is_hashable(node: Json, depth: int) -> bool:
    """Say whether what this JSON stands for can be a key."""
    if isinstance(node, dict):
        items = node.get(TUPLE)
        return depth < DEEPEST and isinstance(items, list) and all(_is_hashable(item, depth + 1) for item in items)
    return not isinstance(node, list)
