"""State dicts in files of others, read without running code that a file may hold."""

import argparse
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

# Where programs put the state dict of a model among other things; the first that is there counts.
PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params")
# What wrappers put before names: DataParallel and its like, and torch.compile.
PREFIX, INFIX = "module.", "_orig_mod."
# How folders of transformers name their files.
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
# What safetensors files of our own have in their head.
OURS = "cutwork"
ZIP, PICKLE = b"PK", b"\x80"
# What PyTorch raises of files that are not whole, or none of its own.
BROKEN = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError)

Found = tuple[dict[str, Tensor], dict[str, Any]]


def read_state(path: str | Path) -> Found:
    """Return the state dict in a file, or in a folder of transformers, and what else the file holds.

    Safetensors, and what `torch.save` wrote as far as it holds tensors and plain values only.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path), {}
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is a device; give the name of a file of weights")
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        raise ValueError(f"{path} is empty; copy it anew")
    value = _load_pickle(path, head) if head[:1] == PICKLE or head == ZIP else _load_safetensors(path)
    try:
        return find_state(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_state(value: Any) -> Found:
    """Return the state dict that a value is, or holds in one of the usual places, and what lies beside it.

    >>> find_state({"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(1)}})
    ({'fc.weight': tensor([1.])}, {'epoch': 3})
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"no state dict but a {type(value).__name__}; save model.state_dict()")
    if _is_state(value):
        return _without_wrappers(value), {}
    for place in PLACES:
        if _is_state(value.get(place)):
            rest = {key: held for key, held in value.items() if key != place}
            return _without_wrappers(value[place]), rest
    keys = ", ".join(map(repr, list(value)[:8])) or "nothing"
    raise ValueError(f"no state dict: it holds {keys}, and no tensors by name; save model.state_dict()")


def _is_state(value: Any) -> bool:
    """Say whether a value has tensors by name."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(held, Tensor) for held in value.values())
    )


def _without_wrappers(state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {key.replace(INFIX, ""): held for key, held in state.items() if isinstance(held, Tensor)}
    while all(key.startswith(PREFIX) for key in tensors):
        tensors = {key.removeprefix(PREFIX): held for key, held in tensors.items()}
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if OURS in (file.metadata() or {}):
                raise ValueError(f"{path} is a checkpoint of cutwork; load it with cutwork.load(path, model)")
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is neither a complete safetensors file ({error}) nor one of PyTorch; copy it anew"
        ) from None


def _load_pickle(path: Path, head: bytes) -> Any:
    try:
        # The options of a command line are plain values too; training programs save theirs beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head == ZIP)
    except BROKEN as error:
        told = " ".join(str(error).split())
        if "Unsupported global" in told or "was not an allowed global" in told:
            what = told.partition("GLOBAL ")[2].partition(" ")[0] or "an object"
            raise ValueError(
                f"{path} holds more than tensors ({what}), and to load that could run any code; if you trust it, load "
                "it with torch.load(path, weights_only=False) and give its state dict, or save that alone"
            ) from None
        raise ValueError(
            f"{path} is no complete file of PyTorch ({told.partition('. ')[0][:120]}); copy it anew"
        ) from None


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in INDICES:
        if (index := folder / name).exists():
            try:
                files = sorted({*json.loads(index.read_text())["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{index} does not say which files there are ({error!r}); copy it anew") from None
            state: dict[str, Tensor] = {}
            for file in files:
                state |= read_state(folder / file)[0]
            return state
    for name in WHOLE:
        if (file := folder / name).exists():
            return read_state(file)[0]
    raise FileNotFoundError(f"{folder} has no {' or '.join((*WHOLE, *INDICES))}; give the name of a file of weights")
