"""A model by what people call it on the command line: a run, a checkpoint, a recipe, or a name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.data.feed import Feed
from cutwork.files.checkpoint import read_extra
from cutwork.lab.building import build_model, make_sparse
from cutwork.lab.opening import find_checkpoint, load_model, open_feed
from cutwork.lab.processes import Processes
from cutwork.lab.recipes import RECIPES, find_recipe
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.training import Training
from cutwork.models.zoo import EXAMPLES, PACKAGES, is_known
from cutwork.text import did_you_mean

SUFFIX = ".safetensors"
PATTERN, DENSITY = "block:16", 0.1
# What models of a name read, unless something else is said.
SMALL_IMAGES, IMAGES, TEXT = "fake:3x32x32:10", "fake:3x224x224", "text"
# What a checkpoint says of the run that it is of, and of the layers that were made one.
TRAINING, FOLDED = "training", "folded"
# No mask moves, so the length of the run is only a number.
STEPS = 1000


@final
@dataclass(frozen=True)
class Subject:
    """A model in evaluation, a batch of what it reads, and the options of its run.

    `file` is the checkpoint that it is from, if it was trained.
    """

    model: nn.Module
    inputs: Tensor
    training: Training
    file: Path | None


def find_subject(
    what: str,
    *,
    options: Mapping[str, Any] | None = None,
    checkpoint: str = "best",
    data: str | None = None,
    batch: int = 1,
    device: str = "auto",
) -> Subject:
    """Return the model of a run's folder or of a checkpoint, or one with random weights of a recipe or a name.

    The options are those of a run, and only for a model that was not trained. Without `data` a run's model is given
    what the run was judged by.
    """
    chosen = {name: value for name, value in (options or {}).items() if value is not None}
    file, training = find_trained(Path(what), checkpoint) if Path(what).exists() else (None, _untrained(what))
    if file is None:
        training = training.having(**chosen)
    elif differing := [name for name, value in chosen.items() if value != getattr(training.sparse, name)]:
        name = differing[0]
        raise ValueError(f"{what} was trained already, and {name} is as it was then; leave {name} out")
    if data is not None:
        training = training.having(data=data, data_folder=None)
    # It is looked at as if it was judged.
    plain = training.having(augment="", repeats=1, download=False, batch=batch, test_batch=batch, device=device)
    place = Processes.alone(device)
    feed = open_feed(plain, place)
    if file is None:
        model, larger = build_model(training, feed, place.device)
        make_sparse(model, _at_rest(training), STEPS, larger)
    else:
        model = load_checkpoint(file, training, feed, place.device)
    inputs = next(feed.testing())[0][:batch].to(place.device)
    return Subject(model.eval(), inputs, training, file)


def find_trained(path: Path, checkpoint: str) -> tuple[Path, Training]:
    """Return the checkpoint that a path means, a run's folder or the file itself, and the options of its run."""
    if not path.is_file():
        return find_checkpoint(path, checkpoint), RunFolder(path).read_config()
    told = read_extra(path).get(TRAINING)
    if isinstance(told, str):
        try:
            return path, Training.from_json(told)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
    if RunFolder(path.parent).is_begun:
        return path, RunFolder(path.parent).read_config()
    raise ValueError(
        f"{path} does not say which model it is of; only 'cutwork train' and 'cutwork pack' write that down. In "
        "Python: build the model, then cutwork.load(path, model) and cutwork.pack(model, inputs)"
    )


def load_checkpoint(file: Path, training: Training, feed: Feed, device: torch.device) -> nn.Module:
    """Return the model of a run's checkpoint, also of one that 'cutwork pack' has made of it."""
    folded = json.loads(read_extra(file).get(FOLDED, "[]"))
    return load_model(file, training, feed, device, folded=folded)


def _untrained(name: str) -> Training:
    kind, colon, _ = name.partition(":")
    if name.endswith(SUFFIX) or (not colon and "/" in name):
        raise FileNotFoundError(f"there is no {name}; give the folder of a run, or a checkpoint in it")
    if name in RECIPES:
        return find_recipe(name)
    if not is_known(name):
        near = did_you_mean(name, [*RECIPES, *EXAMPLES])
        raise ValueError(f"there is no run, no recipe and no model {name!r}{near}; 'cutwork ls' lists what there is")
    data = TEXT if kind == "gpt" else IMAGES if colon and kind in PACKAGES else SMALL_IMAGES
    return Training().having(model=name, data=data, pattern=PATTERN, density=DENSITY)


def _at_rest(training: Training) -> Training:
    """Return the options by which the model is sparse as it is between moves."""
    still = {"method": "static", "every": None, "begin": None, "until": None, "fraction": None, "init": None}
    return training.having(**still, sparse_from=0.0, dense_from=None)
