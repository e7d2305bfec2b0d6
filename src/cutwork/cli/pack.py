"""The command `cutwork pack`."""

from pathlib import Path
from typing import Literal


def pack(
    run: Path,
    /,
    *,
    output: Path,
    checkpoint: Literal["best", "last"] = "best",
    precisions: tuple[Literal["bf16", "int8"], ...] = (),
    data: str | None = None,
    batch: int = 1,
    device: str = "auto",
    seconds: float = 0.2,
    json: bool = False,
) -> None:
    """Make a trained model ready for inference here: fold and pack it, see that it computes the same, and save it.

    Args:
        run: Folder of the run, or a checkpoint of it.
        output: File to write, which 'cutwork evaluate' and cutwork.load open; none is written over.
        checkpoint: The model of a run as it was when it was best, or last.
        precisions: Offer linear layers forms in fewer bits too.
        data: What gives the model its inputs, such as fake:3x224x224; without it what the run was judged by.
        batch: Examples at once, for which forms are chosen and measured.
        device: cpu, cuda, or auto.
        seconds: Seconds to measure each layer for.
        json: Write numbers for a program to read.
    """
    from cutwork.lab.packing import pack_trained

    found = pack_trained(
        *(str(run), output),
        checkpoint=checkpoint,
        precisions=precisions,
        data=data,
        batch=batch,
        device=device,
        seconds=seconds,
    )
    print(found.to_json() if json else found)
