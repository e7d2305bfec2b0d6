"""The command `cutwork plan`."""

from typing import Literal


def plan(
    model: str,
    /,
    *,
    pattern: str | None = None,
    density: float | None = None,
    layers: str | None = None,
    speedup: float | None = None,
    training: bool = False,
    precisions: tuple[Literal["bf16", "int8"], ...] = (),
    checkpoint: Literal["best", "last"] = "best",
    data: str | None = None,
    batch: int = 1,
    device: str = "auto",
    seconds: float = 0.2,
    json: bool = False,
) -> None:
    """Measure which form each sparse layer should take on this machine, and say why; or what would make a model faster.

    Args:
        model: Folder of a run, a checkpoint of one, a recipe, or a model by its name, such as resnet18.
        pattern: Which masks are legal, if the model was not trained: block:16 unless a recipe says otherwise.
        density: Share of the weights that is kept, likewise: a tenth.
        layers: Which layers are sparse, likewise: all, linears, mlp, convs, or globs over names.
        speedup: Take the model dense, and propose patterns and densities by which all of it is so many times faster;
            the pattern and density given are the only ones tried then.
        training: Measure backward passes too.
        precisions: Offer linear layers forms in fewer bits too.
        checkpoint: The model of a run as it was when it was best, or last.
        data: What gives the model its inputs, such as fake:3x224x224; without it what the run was judged by.
        batch: Examples at once.
        device: cpu, cuda, or auto.
        seconds: Seconds to measure each layer for.
        json: Write numbers for a program to read.
    """
    from cutwork.lab.planning import plan_subject

    options = {"pattern": pattern, "density": density, "layers": layers}
    found = plan_subject(
        *(model, options),
        speedup=speedup,
        training=training,
        precisions=precisions,
        checkpoint=checkpoint,
        data=data,
        batch=batch,
        device=device,
        seconds=seconds,
    )
    print(found.to_json() if json else found)
