"""The command `cutwork evaluate`."""

from pathlib import Path
from typing import Literal


def evaluate(
    run: Path,
    /,
    *,
    checkpoint: Literal["best", "last"] = "best",
    packed: bool = False,
    batch: int | None = None,
    json: bool = False,
) -> None:
    """Judge the model of a run on its test data, as it was trained and in the forms that are fastest here.

    Args:
        run: Folder of the run, as 'cutwork train' wrote it, or a checkpoint, as 'cutwork pack' writes it.
        checkpoint: The model as it was when it was best, or last.
        packed: Fold and pack it too, and say what was chosen for each layer and why.
        batch: Examples at once; without it as in training.
        json: Write numbers for a program to read.
    """
    from cutwork.lab.evaluating import evaluate_run

    found = evaluate_run(run, checkpoint=checkpoint, packed=packed, batch=batch)
    print(found.to_json() if json else found)
