"""The command `cutwork demo`."""

from pathlib import Path


def demo(
    *,
    epochs: int = 30,
    density: float | None = None,
    pattern: str = "block:16",
    method: str = "rigl",
    seed: int = 0,
    output: Path = Path("demo-output"),
) -> None:
    """Train a small network on handwritten digits, dense and sparse side by side, and compare the two.

    Args:
        epochs: How often each network sees the training images.
        density: Share of the weights that is kept, above 0 and up to 1; without it the pattern's own, or else 0.1.
        pattern: Which masks are legal: unstructured, block:16, vector:16, shuffled:16, 2:4 and others.
        method: How the mask moves during training: static, rigl, set, gradual, granet, srigl, dsb, ssb, supermask,
            spartan, ste, srste.
        seed: Fixes every random choice.
        output: Folder for both networks, the numbers and a picture of the masks.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cutwork.lab.demo import run

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    task = bar.add_task("")

    def show(done: int, total: int, losses: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, description=losses)

    try:
        result = run(
            epochs=epochs, density=density, pattern=pattern, method=method, seed=seed, output=output, progress=show
        )
    finally:
        # Stopping a bar that has not started prints an empty line.
        if bar.live.is_started:
            bar.stop()
    print(result)
    if not result.reload_is_equal:
        raise SystemExit(1)
