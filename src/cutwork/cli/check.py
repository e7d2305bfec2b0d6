"""The command `cutwork check`."""

from pathlib import Path


def check(
    source: str,
    /,
    *,
    weights: Path | None = None,
    time: bool = False,
    tokens: tuple[int, ...] = (1, 197),
    seconds: float = 0.2,
    json: bool = False,
) -> None:
    """Say which patterns the zeros of a model follow, and which of its layers would be faster for it on this machine.

    Args:
        source: A file of weights (.safetensors, .pt, .pth, .bin), a folder of transformers, a checkpoint or a run of
            cutwork, masks in an .npz, or a model by name, such as torchvision:resnet18:weights=DEFAULT.
        weights: File of the weights that masks belong to which are alone in theirs.
        time: Measure the layers as tiles beside dense: of a run or a model as it calls them, of a file the linear ones.
        tokens: Numbers of tokens that linear layers of a file are measured with.
        seconds: How long each distinct layer is measured with each input.
        json: Print a JSON object instead of a table.
    """
    from cutwork.lab.checks.check import check as find
    from cutwork.lab.checks.source import open_source

    opened, inputs = open_source(source, with_model=time)
    found = find(opened, *inputs, weights=weights, time=time, tokens=tokens, seconds=seconds)
    print(found.to_json() if json else found)
