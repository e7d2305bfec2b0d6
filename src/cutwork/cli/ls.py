"""The command `cutwork ls`: what there is, by name."""

from collections.abc import Callable, Iterable
from pathlib import Path

from cutwork.text import did_you_mean, in_columns


def ls(what: str = "", /, *, runs: Path = Path("runs")) -> None:
    """List what there is: recipes, methods, patterns, models, data, or runs.

    Args:
        what: One of these; without it all but runs.
        runs: Folder that runs are looked for in.
    """
    lists: dict[str, Callable[[], Iterable[tuple[str, ...]]]] = {
        "recipes": _recipes,
        "methods": _methods,
        "patterns": _patterns,
        "models": _models,
        "data": _data,
        "runs": lambda: _runs(runs),
    }
    if what and what not in lists:
        raise ValueError(f"there are no {what!r} to list{did_you_mean(what, lists)}; write {', '.join(lists)}")
    for name in [what] if what else [each for each in lists if each != "runs"]:
        print(name)
        rows = [*lists[name]()]
        for line in in_columns(rows, "<" * len(rows[0])) if rows else ["none"]:
            print(f"  {line.rstrip()}")


def _recipes() -> Iterable[tuple[str, ...]]:
    from cutwork.lab.recipes import RECIPES

    return [(name, recipe.about) for name, recipe in RECIPES.items()]


def _methods() -> Iterable[tuple[str, ...]]:
    from cutwork.methods import METHODS

    return [(name, _first_line(method())) for name, method in METHODS.items()]


def _patterns() -> Iterable[tuple[str, ...]]:
    return PATTERNS.items()


def _models() -> Iterable[tuple[str, ...]]:
    return MODELS.items()


def _data() -> Iterable[tuple[str, ...]]:
    return DATA.items()


def _runs(folder: Path) -> Iterable[tuple[str, ...]]:
    from cutwork.lab.run_folder import RunFolder

    for path in sorted(folder.glob("**/config.json")):
        run = RunFolder(path.parent)
        if run.is_done:
            summary = run.read_summary()
            yield (str(run.path), f"{summary['test_accuracy']:.2%}", f"density {summary['density']:.3g}")
        else:
            steps = run.read_curves()
            yield (str(run.path), "not ended", f"step {steps[-1]['step']}" if steps else "not begun")


def _first_line(value: object) -> str:
    return (type(value).__doc__ or "").partition("\n")[0]


PATTERNS = {
    "unstructured": "single weights",
    "block:16, block:64x16": "tiles of outputs x inputs",
    "block:16-taps": "tiles of outputs and channels, with all taps of a kernel",
    "vector:16": "16 outputs of one input",
    "shuffled:16": "tiles of rows and columns that need not be neighbours",
    "2:4, 4:8, ...": "n of m weights that follow each other",
    "2:4-tile": "2:4 along both axes at once",
}
DATA = {
    "digits": "grey images 8x8, inside the package",
    "fashion-mnist": "grey images 28x28 of clothes",
    "cifar10, cifar100": "colour images 32x32",
    "tiny-imagenet": "photographs 64x64 of 200 classes",
    "imagenet": "photographs of 1000 classes",
    "folder:PATH": "images of yours, a folder for each class in train/ and val/",
    "fake:3x224x224": "random images, for timing",
    "text, text:FILE": "bytes of Python's standard library, or of a file",
}
MODELS = {
    "mlp": "linear layers",
    "resnet18": "also 8, 34, 50, 101, 152",
    "wrn-22-2": "wide residual networks of 6n+4 layers",
    "vgg-d": "also vgg-like, vgg-c",
    "alexnet-s": "also alexnet-b",
    "vit": "a small vision transformer",
    "gpt": "a small language model",
    "torchvision:NAME": "each that torchvision lists",
    "timm:NAME": "each that timm lists",
    "transformers:NAME": "a classifier of images by its name on the hub",
}
