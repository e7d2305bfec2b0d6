"""Opening what a run reads, and what it has trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cutwork.data import make_feed
from cutwork.data.feed import Feed, Feeding
from cutwork.files.checkpoint import load
from cutwork.lab.building import build_model
from cutwork.lab.processes import Processes
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.training import Training
from cutwork.speed.folding import fold_these

# What the options of a run say about data that batches are made by.
READ = ("repeats", "train_crop", "test_crop", "test_resize", "interpolation", "context", "workers")


def open_feed(training: Training, processes: Processes) -> Feed:
    """Return the batches of a run, of which each process gets its own."""
    given, running = training.reading, training.running
    asked = {name: getattr(given, name) for name in READ}
    feeding = Feeding(
        batch=running.batch,
        test_batch=running.test_batch,
        seed=running.seed,
        augment=tuple(name.strip() for name in given.augment.split(",") if name),
        rank=processes.rank,
        world=processes.world,
        **asked,
    )
    return make_feed(given.data, feeding, given.data_folder, download=given.download)


def load_trained(folder: Path, feed: Feed, device: torch.device, *, checkpoint: str = "best") -> nn.Module:
    """Return the model of a run, as it was when it was best, or last."""
    return load_model(find_checkpoint(folder, checkpoint), RunFolder(folder).read_config(), feed, device)


def find_checkpoint(folder: Path, name: str) -> Path:
    """Return the checkpoint of a run, best or last."""
    place = RunFolder(folder)
    training = place.read_config()
    file = {"best": place.best, "last": place.last}[name]
    if not file.exists() and training.running.shard and name == "last":
        raise FileNotFoundError(f"{folder} keeps its last model in parts, to go on with; take the best, which is whole")
    if not file.exists():
        raise FileNotFoundError(f"{folder} has no {file.name} yet; the run writes it after its first epoch")
    return file


def load_model(
    file: Path, training: Training, feed: Feed, device: torch.device, *, folded: Sequence[str] = ()
) -> nn.Module:
    """Return the model of a checkpoint, of a run with these options, in which some composites were made one layer."""
    model, _ = build_model(replace(training, weights=None), feed, device)
    fold_these(model.eval(), folded)
    load(file, model)
    return model.eval()
