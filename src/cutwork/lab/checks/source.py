"""What the name stands for that somebody wants to have checked: a file, a folder of weights, a run, or a model."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutwork.lab.opening import load_trained, open_feed
from cutwork.lab.processes import join
from cutwork.lab.run_folder import RunFolder
from cutwork.models.zoo import EXAMPLES, FAMILIES, PACKAGES, make_model
from cutwork.text import did_you_mean

# What models of packages take, and those of papers; and bytes, for a model of language.
LARGE, SMALL, TOKENS = (1, 3, 224, 224), (1, 3, 32, 32), (1, 64)
CLASSES = {LARGE: 1000, SMALL: 10, TOKENS: 256}


def open_source(name: str, *, with_model: bool) -> tuple[Path | nn.Module, tuple[Any, ...]]:
    """Return the file or folder of weights of this name, or the model, with inputs to call it with.

    Of a run it is the model that was best on test data, and its file unless the model itself is wanted.
    """
    path = Path(name)
    if path.is_dir() and (run := RunFolder(path)).is_begun and (run.best.exists() or run.last.exists()):
        file = run.best if run.best.exists() else run.last
        return _open_run(path, file.stem) if with_model else (file, ())
    if path.is_dir() and (whole := path / "model.safetensors").exists():
        return whole, ()
    if path.exists():
        return path, ()
    prefix = name.partition(":")[0]
    if prefix not in PACKAGES and not any(re.fullmatch(form, prefix) for form in FAMILIES):
        near = did_you_mean(prefix, [*EXAMPLES, *PACKAGES])
        raise FileNotFoundError(
            f"there is no file or folder {name}, and no model of that name{near}; give a file of weights, a run, or a "
            "model such as torchvision:NAME"
        )
    shape = TOKENS if prefix == "gpt" else LARGE if prefix in PACKAGES else SMALL
    example = torch.zeros(shape, dtype=torch.long if shape == TOKENS else None)
    return make_model(name, num_classes=CLASSES[shape], example=example).eval(), (example,)


def _open_run(folder: Path, checkpoint: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    training = RunFolder(folder).read_config()
    with join("cpu") as processes:
        feed = open_feed(training, processes)
        model = load_trained(folder, feed, processes.device, checkpoint=checkpoint)
        return model, (next(feed.testing())[0],)
