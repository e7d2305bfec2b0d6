"""Models in folders and on the hub of Hugging Face: a checkpoint, and beside it what builds the model again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cutwork.files.checkpoint import describe, load, save
from cutwork.version import __version__

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
LIBRARY = "cutwork"


def save_pretrained(model: nn.Module, folder: str | Path, *, config: Mapping[str, Any] | None = None) -> None:
    """Save a model with its masks, in the storage that it has, to a folder: weights, config and a card.

    `config` is what `from_pretrained` builds the model from, as JSON. A card that is there already stays.

    >>> import tempfile
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25, storage="compressed")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(model, folder, config={"width": 64})
    ...     again = from_pretrained(folder, lambda width: nn.Sequential(nn.Linear(width, width)))
    >>> type(again[0]).__name__
    'CompressedLinear'
    """
    place, given = Path(folder), dict(config or {})
    try:
        text = json.dumps({"library_name": LIBRARY, "cutwork_version": __version__, "config": given}, indent=2)
    except TypeError as error:
        raise ValueError(f"config must be JSON: {error}; give numbers, text, lists and dicts of these") from error
    place.mkdir(parents=True, exist_ok=True)
    save(model, place / WEIGHTS)
    (place / CONFIG).write_text(text + "\n")
    card = place / CARD
    if not card.exists():
        card.write_text(_write_card(place / WEIGHTS))


def from_pretrained(
    place: str | Path,
    build: Callable[..., nn.Module],
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """Return the model in a folder, or in a repository of the hub, in evaluation and as sparse as it was saved.

    `build` is called with the entries of the config by name, and returns the dense model: a class, or a function. On
    `device` a model that it builds on the meta device gets its tensors, as in `load`.
    """
    if not callable(build) or isinstance(build, nn.Module):
        raise TypeError(f"build is a class or a function that returns the dense model; got {type(build).__name__}")
    folder = Path(place)
    if not folder.is_dir():
        folder = _download(str(place), revision)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} has no {missing[0]}; save_pretrained() writes it")
    model = build(**_read_config(folder / CONFIG))
    load(folder / WEIGHTS, model, device=device)
    return model.eval()


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    config: Mapping[str, Any] | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload a model saved by cutwork",
) -> str:
    """Save a model to a repository of the hub, which is made if it is not there, and return the address of the commit.

    Needs the package huggingface-hub, from the extra `hub`, and an account: `hf auth login`, or `token`.
    """
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        # What cannot be saved is found out before anything is made.
        save_pretrained(model, folder, config=config)
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))


def _download(repository: str, revision: str | None) -> Path:
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no folder {repository}; a repository of the hub is written OWNER/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[WEIGHTS, CONFIG]))
    except (HfHubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"there is no folder {repository}, and it cannot be fetched from the hub: "
            f"{' '.join(str(error).split()).partition('. ')[0]}; download it elsewhere and give the folder"
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what save_pretrained() writes ({error!r}); save the model again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} has a config that is no object, {config!r}; save the model again")
    return config


def _write_card(file: Path) -> str:
    """Return a card that says what is sparse, and how to load it."""
    layers = describe(file).layers
    rows = [f"| `{name or 'the model itself'}` | {record} |" for name, record in layers.items()]
    table = ["| layer | sparse as |", "|---|---|", *rows] if rows else ["No layer is sparse."]
    return "\n".join(
        [
            *("---", f"library_name: {LIBRARY}", "tags:", "- sparse", "---", ""),
            "A sparse model, saved by `cutwork.save_pretrained`.",
            *("", "```python", "import cutwork", ""),
            *(
                'model = cutwork.from_pretrained("OWNER/NAME", build)  # build(**config) returns the dense model',
                "```",
                "",
            ),
            *table,
            "",
        ]
    )
