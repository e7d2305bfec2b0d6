"""One file of named tensors and a JSON description: safetensors, checked to the last byte, written whole or not at all.

The description is the metadata entry `cutwork`, and `sha256` beside it is its digest. In it stands the digest of the
tensors: their names, dtypes, shapes and bytes.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DESCRIPTION, DIGEST = "cutwork", "sha256"
SUFFIX = ".saving"
ALIGNMENT = 8
# Above this PyTorch cannot count the entries of a tensor, empty or not.
LARGEST = 2**62

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def write_file(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a file of CPU tensors; if this is cut short at any moment, the old file is still there in full.

    What a killed process left of an unfinished file is removed. A link stays a link, to the new file.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ValueError(
            f"{path} is a folder or a device; give the name of a file, such as {path / 'model.safetensors'}"
        )
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header = _header(tensors, {**description, DIGEST: _digest(tensors)})
    _remove_leftovers(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{SUFFIX}")
    try:
        with unfinished.open("xb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for tensor in tensors.values():
                file.write(_bytes_of(tensor))
            file.flush()
            os.fsync(file.fileno())
        _move_into_place(unfinished, path)
    except OSError as error:
        # What the system says names the unfinished file, or none.
        raise OSError(
            error.errno,
            f"{error.strerror or error}, so the checkpoint was not saved; a file that stood there before is as it was; "
            "make room, or give another path",
            str(path),
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    # The new name is safe from a power failure once its folder is written.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of a file; raise ValueError if a single byte is not as it was written."""
    with _opened(path) as file:
        description, digest = _checked(path, file.metadata())
        tensors = {name: _read_tensor(path, file, name) for name in file.keys()}  # noqa: SIM118, it has no other iterator
    if _digest(tensors) != digest:
        raise _damaged(path, "tensors")
    return tensors, description


def read_description(path: Path) -> dict[str, Any]:
    """Return the description of a file without reading its tensors."""
    with _opened(path) as file:
        return _checked(path, file.metadata())[0]


def is_described(path: Path) -> bool:
    """Say whether a file is one that `write_file` wrote, as far as its head tells."""
    try:
        with safe_open(path, framework="pt") as file:
            return DESCRIPTION in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of the format; whatever is wrong with it names it."""
    # Opened first by Python, whose errors name the file; asked first, because a pipe may never open.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder or a device; give the name of a file that save() has written")
    path.open("rb").close()
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no complete safetensors file ({error}); copy it anew or load an earlier one"
        ) from None


def _read_tensor(path: Path, file: Any, name: str) -> Tensor:
    entry = file.get_slice(name)
    dtype, shape = entry.get_dtype(), entry.get_shape()
    if dtype not in DTYPES.values() or math.prod(max(size, 1) for size in shape) > LARGEST:
        raise ValueError(
            f"{path} holds a tensor {name!r} of {dtype} {shape}, which no save() has written; copy it anew or load an "
            "earlier one"
        )
    return file.get_tensor(name)


def _header(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}

    def with_text(text: str) -> bytes:
        metadata = {DESCRIPTION: text, DIGEST: hashlib.sha256(text.encode()).hexdigest()}
        return json.dumps({"__metadata__": metadata, **entries}, ensure_ascii=False, separators=(",", ":")).encode()

    text = json.dumps(description, separators=(",", ":"))
    # Tensors begin at a multiple of 8 bytes. The usual filling, spaces after the header, would stand in no digest.
    return with_text(text + " " * (-len(with_text(text)) % ALIGNMENT))


def _checked(path: Path, metadata: dict[str, str] | None) -> tuple[dict[str, Any], Any]:
    """Return the description, and the digest that the tensors must have."""
    if not metadata or DESCRIPTION not in metadata:
        raise ValueError(
            f"{path} is a safetensors file without a description of sparse layers; load it into a dense model with "
            "safetensors.torch.load_model, then sparsify()"
        )
    text = metadata[DESCRIPTION]
    if metadata.get(DIGEST) != hashlib.sha256(text.encode()).hexdigest():
        raise _damaged(path, "description")
    try:
        description = json.loads(text, object_pairs_hook=_without_repetition)
        if not isinstance(description, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} has a description that cannot be read ({error}); copy it anew or load an earlier one"
        ) from None
    return description, description.pop(DIGEST, None)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _remove_leftovers(path: Path) -> None:
    for sibling in path.parent.iterdir():
        if sibling.name.startswith(f".{path.name}.") and sibling.name.endswith(SUFFIX):
            sibling.unlink(missing_ok=True)


def _move_into_place(unfinished: Path, path: Path) -> None:
    try:
        unfinished.replace(path)
    except FileNotFoundError:
        raise RuntimeError(
            f"{path} was being saved by two processes at once; save in one of them, or give each a path of its own"
        ) from None


def _damaged(path: Path, part: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: its {part} do not have the sha256 that was written; copy it anew or load an earlier one"
    )
