"""Train small models dense and sparse, many times, and write how often they are right, piece by piece.

    python benchmarks/accuracy.py                 what no piece has yet
    python benchmarks/accuracy.py digits          what this piece has not yet
    python benchmarks/accuracy.py --list          what there is, and how much of it was run
    python benchmarks/accuracy.py --render        the pages anew, from what was run

Each run is one row of benchmarks/accuracy/PIECE/results.csv, written when the run ends. What stands there is not run
again, so the program may be stopped at any time; nor is a run that stands in the file of another piece.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cutwork as cw
from cutwork.data import load_data
from cutwork.data.images import Images
from cutwork.layers.storage import compress, why_not_compress
from cutwork.layers.swap import sparse_layers
from cutwork.models.resnet import make_resnet
from cutwork.speed.machine import Machine

FOLDER = Path(__file__).parent / "accuracy"
# Masks move so often in each run, however long it is.
MOVES_OF_A_RUN = 40
WARM_UP = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 1e-2}
LARGEST_BATCH = {"digits": 64, "fashion-mnist": 256}
# Of the training data this share is kept apart to choose learning rates by.
HELD_OUT = 0.1


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its outcome.

    A `lr` of None is the best one of a dense model, by the piece "learning-rates"; sparse layers have that divided
    by their density to a `power`. With `held_out` the run is judged by a part of the training data. A `model` like
    "resnet-wide" is the "resnet" made larger by that member of Sparse-IFT, which decides the density of each layer.
    """

    data: str = "fashion-mnist"
    model: str = "mlp"
    pattern: str = "block:16"
    method: str = "static"
    density: float = 0.05
    allocation: str = "erk"
    init: str = "random"
    rescale: bool = False
    optimizer: str = "adamw"
    power: float = 0.0
    lr: float | None = None
    epochs: int = 3
    held_out: bool = False
    seed: int = 0

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "Run":
        """Read a run from a row of a table."""
        kinds = {
            "density": float,
            "power": float,
            "lr": lambda text: float(text) if text else None,
            "epochs": int,
            "seed": int,
        }
        kinds |= dict.fromkeys(("rescale", "held_out"), "True".__eq__)
        return cls(**{field.name: kinds.get(field.name, str)(row[field.name]) for field in fields(cls)})


DENSE = {"pattern": ("dense",), "method": ("dense",), "density": (1.0,), "allocation": ("",), "init": ("",)}
NAMES = [field.name for field in fields(Run)]
OUTCOMES = ("accuracy", "test_loss", "train_loss", "seconds", "date")


@dataclass(frozen=True)
class Piece:
    """Runs that are read together, and the field that has a column for each of its values."""

    what: str
    runs: Sequence[Run]
    columns: str = "density"


def grid(**values: Sequence[Any]) -> list[Run]:
    """Return a run for each combination of these values."""
    return [Run(**dict(zip(values, chosen, strict=True))) for chosen in product(*values.values())]


BOTH = (False, True)
OPTIMIZERS = ("sgd", "adamw")
STARTS = ("random", "magnitude")
METHODS = ("static", "rigl")
EACH = {"optimizer": OPTIMIZERS}
DIGITS = EACH | {"data": ("digits",), "epochs": (30,)}
RECIPE = {"rescale": (True,), "seed": range(3)}
BALANCED = RECIPE | {"init": ("balanced",), "power": (1.0,)}
STEPS = ((False, 0.0, "random"), (True, 0.0, "random"), (True, 1.0, "random"), (True, 1.0, "balanced"))
CONV = {"model": ("conv",), "epochs": (1,)}
RESNET = BALANCED | {
    "pattern": ("block:8",),
    "allocation": ("",),
    "optimizer": ("sgd",),
    "lr": (0.2,),
    "power": (0.5,),
    "epochs": (2,),
}
MEMBERS: dict[str, Callable[..., cw.transforms.Larger]] = {
    "wide": cw.transforms.wide,
    "parallel": cw.transforms.parallel,
    "factorized": partial(cw.transforms.factorized, between="norm+relu"),
    "doped": cw.transforms.doped,
    "wide-factorized": partial(cw.transforms.wide_factorized, between="norm+relu"),
}
RATES = (0.1, 0.2, 0.4)
ONCE = {"epochs": (1,), "held_out": (True,), "seed": (0,)}


def members_at(density: float) -> list[Run]:
    """Return runs of a dense model, of each member of Sparse-IFT, and of what is pruned from a wider one."""
    given = RESNET | {"density": (density,)}
    sparse = [f"resnet-{name}" for name in MEMBERS if name != "wide-factorized"]
    return sorted(
        [
            *grid(**RESNET | DENSE, model=("resnet",)),
            *grid(**given, model=sparse, method=METHODS),
            *grid(**given, model=("resnet-wide",), method=("gradual",)),
            *grid(**given, model=("resnet-wide-factorized",), method=("dense",)),
        ],
        key=lambda run: run.seed,
    )


# Seeds first, so that a piece that is not done yet has something of everything.
SEEDS_FIRST = {
    "seed": range(5),
    "density": (0.1, 0.05, 0.2, 0.5),
    "rescale": (True,),
    "optimizer": ("sgd",),
    "lr": (0.1,),
}
# Each with its number of epochs and the learning rates to choose from.
MODELS = (
    ("digits", "mlp", 30, (0.01, 0.03, 0.1, 0.3), (3e-4, 1e-3, 3e-3, 1e-2)),
    ("fashion-mnist", "mlp", 5, (0.03, 0.1, 0.3), (3e-4, 1e-3, 3e-3)),
    ("fashion-mnist", "conv", 1, (0.1, 0.3), (1e-3, 3e-3)),
)

PIECES = {
    "learning-rates": Piece(
        "Dense models, judged by a part of the training data. All pieces below take the best learning rate of each.",
        [
            run
            for data, model, epochs, *choices in MODELS
            for optimizer, rates in zip(OPTIMIZERS, choices, strict=True)
            for run in grid(
                **DENSE | {"data": (data,), "model": (model,), "epochs": (epochs,), "optimizer": (optimizer,)},
                lr=rates,
                held_out=(True,),
            )
        ],
        columns="lr",
    ),
    "fashion-steps": Piece(
        "One thing after the other: first weights scaled to their masks, learning rates divided by the density, and "
        "first masks that spread blocks evenly. Masks do not move.",
        [
            run
            for optimizer, rate in (("adamw", 3e-3), ("sgd", 0.1))
            for run in (
                *grid(optimizer=(optimizer,), **DENSE, lr=(rate,), seed=range(3)),
                *(
                    step
                    for rescale, power, init in STEPS
                    for step in grid(
                        optimizer=(optimizer,),
                        rescale=(rescale,),
                        power=(power,),
                        init=(init,),
                        lr=(rate,),
                        density=(0.05, 0.1, 0.02, 0.2),
                        seed=range(3),
                    )
                ),
            )
        ],
    ),
    "fashion-start": Piece(
        "The first mask, and first weights scaled to it or not, at a twentieth of the weights.",
        [
            *grid(**EACH, method=METHODS, init=STARTS, rescale=BOTH, seed=range(3)),
            *grid(**EACH, method=METHODS, rescale=BOTH, seed=(3, 4)),
            *grid(**EACH, method=("set",), rescale=BOTH, seed=range(3)),
            *grid(**EACH, method=("gradual",), seed=range(3)),
            *grid(**EACH, **DENSE, seed=range(3)),
        ],
    ),
    "fashion-rates": Piece(
        "Whether the best learning rate of a dense model is the best of a sparse one, too: with one rate for all "
        "layers, and with those of `cutwork.param_groups`.",
        [
            run
            for optimizer, rates in (("adamw", (3e-4, 1e-3, 3e-3, 1e-2)), ("sgd", (0.03, 0.1, 0.3, 1.0)))
            for run in (
                *grid(optimizer=(optimizer,), density=(0.1, 0.05), rescale=(True,), power=(0, 0.5, 1), lr=rates),
                *grid(optimizer=(optimizer,), density=(0.5,), rescale=(True,), power=(0, 1), lr=rates),
                *grid(optimizer=(optimizer,), **DENSE, lr=rates),
            )
        ],
        columns="lr",
    ),
    "fashion-recipe": Piece(
        "With first weights scaled to their masks and the learning rates of `cutwork.param_groups`, from a rate at "
        "which the dense model is as good as at its best.",
        [
            run
            for optimizer, rate in (("adamw", 3e-3), ("sgd", 0.1))
            for run in (
                *grid(
                    **RECIPE, density=(0.05, 0.1), power=(1.0, 0.5), method=METHODS, optimizer=(optimizer,), lr=(rate,)
                ),
                *grid(**RECIPE, density=(0.02,), power=(1.0,), method=METHODS, optimizer=(optimizer,), lr=(rate,)),
            )
        ],
    ),
    "fashion-balanced": Piece(
        "First masks by chance that spread blocks evenly over outputs and inputs; weights and learning rates as in "
        "fashion-recipe.",
        [
            *grid(**BALANCED, optimizer=("adamw",), method=("static", "set", "rigl"), lr=(3e-3,)),
            *grid(**BALANCED | {"power": (0.5,)}, optimizer=("adamw",), method=("static", "set", "rigl"), lr=(3e-3,)),
            *grid(**BALANCED | {"power": (0.0,)}, optimizer=("adamw",), method=("static", "set", "rigl"), lr=(3e-3,)),
            *grid(**BALANCED, optimizer=("sgd",), lr=(0.1,)),
            *grid(**BALANCED, optimizer=("adamw",), density=(0.5, 0.2, 0.1, 0.02), lr=(3e-3,)),
        ],
    ),
    "fashion-relative": Piece(
        "RigL by cutwork.gradient, in moves of three tenths and, half as often, of one tenth (rigl-tenth), and such by "
        "cutwork.relative_gradient (rigl-relative), beside masks that stay.",
        [
            run
            for seed in range(5)
            for optimizer, rate in (("adamw", 3e-3), ("sgd", 0.1))
            for density in (0.05, 0.02)
            # With SGD, a fiftieth at rates divided by the density diverges.
            for run in grid(
                **BALANCED | {"seed": (seed,), "power": (0.5 if optimizer == "sgd" and density < 0.05 else 1.0,)},
                method=("static", "rigl", "rigl-tenth", "rigl-relative"),
                density=(density,),
                optimizer=(optimizer,),
                lr=(rate,),
            )
        ],
    ),
    "fashion-longer": Piece(
        "The same at a fiftieth in ten epochs.",
        [
            run
            for seed in range(10)
            for run in grid(
                **BALANCED | {"seed": (seed,)},
                method=("static", "rigl-tenth", "rigl-relative"),
                density=(0.02,),
                epochs=(10,),
                lr=(3e-3,),
            )
        ],
    ),
    "fashion-shuffled-recipe": Piece(
        "Shuffled blocks with AdamW and the learning rates of `cutwork.param_groups`: masks that stay, those of "
        "fashion-shuffled, and those that grow by cutwork.relative_gradient.",
        [
            run
            for seed in range(5)
            for run in grid(
                **RECIPE | {"seed": (seed,)},
                power=(1.0,),
                pattern=("shuffled:16",),
                method=("static", "dsb", "dsb-relative"),
                density=(0.1, 0.05),
                lr=(3e-3,),
            )
        ],
    ),
    "fashion-unstructured": Piece(
        "Single weights instead of blocks, at a twentieth.",
        [
            *grid(pattern=("unstructured",), method=METHODS, init=STARTS, rescale=BOTH),
            *grid(pattern=("unstructured",), rescale=(True,), power=(0, 0.5, 1), lr=(1e-3, 3e-3)),
            *grid(pattern=("unstructured",), **BALANCED, lr=(3e-3,)),
        ],
    ),
    "fashion-shuffled": Piece(
        "Shuffled blocks that stay (static: SSB) and whose rows change groups (dsb: RigL that first chooses all by the "
        "gradient, and then a tenth at half as many moves), beside vectors and single weights.",
        sorted(
            [
                *grid(**SEEDS_FIRST, pattern=("shuffled:16", "vector:16"), method=("static", "dsb")),
                *grid(**SEEDS_FIRST, pattern=("unstructured",), method=("rigl", "dsb")),
            ],
            key=lambda run: run.seed,
        ),
    ),
    "digits": Piece(
        "The same as fashion-start with less data: one test image is 0.28 %.",
        [
            *grid(**DIGITS, method=METHODS, init=STARTS, rescale=BOTH, seed=range(3)),
            *grid(**DIGITS, **DENSE, seed=range(3)),
        ],
    ),
    "fashion-conv-shuffled": Piece(
        "Shuffled blocks in a convolutional model with batch norm, one epoch.",
        [
            run
            for seed in range(5)
            for run in grid(
                **CONV | RECIPE | {"seed": (seed,)},
                pattern=("shuffled:16",),
                method=("static", "dsb", "dsb-relative", "rigl-relative"),
                optimizer=("sgd",),
            )
        ],
    ),
    "sparse-ift-rates": Piece(
        "A small ResNet, and Sparse-IFT's wide member at its operations, judged by a part of the training data after "
        "one epoch.",
        [
            *grid(**RESNET | DENSE | ONCE | {"power": (0.0,), "lr": RATES}, model=("resnet",)),
            *grid(**RESNET | ONCE | {"power": (0.0, 0.5), "lr": RATES}, model=("resnet-wide",), density=(0.25,)),
        ],
        columns="lr",
    ),
    "sparse-ift-quarter": Piece(
        "A small ResNet and all members of Sparse-IFT at its operations, where layers keep a quarter of their weights, "
        "in two epochs; with masks that stay and with RigL. Gradual is the baseline: as wide, begun whole and pruned "
        "to the same operations, so that its training takes several times as many. Wide-factorized has no masks.",
        members_at(0.25),
    ),
    "sparse-ift-tenth": Piece("The same where layers keep a tenth.", members_at(0.1)),
    "fashion-conv": Piece(
        "A convolutional model with batch norm, one epoch, also with the learning rates of `cutwork.param_groups`.",
        [
            *grid(**EACH, **CONV, method=METHODS, rescale=BOTH),
            *grid(**EACH, **CONV, power=(0.0, 1.0), rescale=BOTH, seed=range(3)),
            *grid(**EACH, **CONV, **DENSE),
        ],
    ),
}


def main(names: list[str]) -> int:
    """Run what pieces of these names lack, or what all do."""
    if names == ["--list"]:
        for name, piece in PIECES.items():
            done = {run for run, _ in results_of(name)}
            print(f"{len(done.intersection(piece.runs)):5} of {len(piece.runs):4} runs  {name:20} {piece.what}")
        return 0
    if names == ["--render"]:
        write_page()
        return 0
    if unknown := [name for name in names if name not in PIECES]:
        print(f"unknown piece {unknown[0]!r}; write {', '.join(PIECES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in names or PIECES:
        run_piece(name)
        write_page()
    return 0


def run_piece(name: str) -> None:
    """Run what a piece has not yet, and say how far it is."""
    done = {run for run, _ in results_of(name)}
    left = [run for run in PIECES[name].runs if run not in done]
    if not left:
        return
    file = FOLDER / name / "results.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    machine = Machine.here(f"python benchmarks/accuracy.py {name}")
    (file.parent / "machine.json").write_text(json.dumps(asdict(machine), indent=2) + "\n")
    known = {run: outcome for other in PIECES for run, outcome in results_of(other)}
    start = perf_counter()
    for count, run in enumerate(left, 1):
        outcome = known[run] if run in known else train(run)
        is_new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, [*NAMES, *OUTCOMES], lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow({**asdict(run), **outcome})
        minutes = (perf_counter() - start) / count * (len(left) - count) / 60
        differing = ", ".join(f"{field} {getattr(run, field)}" for field in varying(PIECES[name].runs))
        print(
            f"{name} {count}/{len(left)}: {outcome['accuracy']} %  {outcome['seconds']} s  ({differing}); "
            f"about {minutes:.0f} min left",
            flush=True,
        )


def results_of(name: str) -> list[tuple[Run, dict[str, str]]]:
    """Return the runs of a piece that have ended, with their outcomes."""
    file = FOLDER / name / "results.csv"
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [(Run.from_row(row), {key: row[key] for key in OUTCOMES}) for row in csv.DictReader(stream)]


def train(run: Run) -> dict[str, Any]:
    """Train one model and return its accuracy in percent, its losses, and how long it took."""
    images = load_images(run.data, run.held_out)
    torch.manual_seed(run.seed)
    model, larger = build(run, images)
    size = LARGEST_BATCH[run.data]
    steps = run.epochs * (len(images.train_images) // size)
    sparsifier = make_sparse(model, run, steps, larger)
    optimizer = make_optimizer(model, run)
    if sparsifier:
        sparsifier.attach(optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warm_up_and_cosine(step / steps))
    start, losses = perf_counter(), []
    for x, y in batches(images, size, run):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if not torch.isfinite(loss):
            # It diverged. What it says now is what it would say in the end.
            losses.append(loss.detach())
            break
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    accuracy, test_loss = judge(model, images)
    return {
        "accuracy": round(accuracy, 3),
        "test_loss": round(test_loss, 5),
        "train_loss": round(float(torch.stack(losses[-steps // 10 :]).mean()), 5),
        "seconds": round(perf_counter() - start, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


@cache
def load_images(name: str, held_out: bool) -> Images:
    """Return a data set with pixels of mean 0 and variance 1; or only its training part, a share of it for testing."""
    data = load_data(name)
    average, spread = data.train_images.mean(), data.train_images.std()
    train, test = ((images - average) / spread for images in (data.train_images, data.test_images))
    if not held_out:
        return Images(train, data.train_labels, test, data.test_labels)
    kept = round(len(train) * (1 - HELD_OUT))
    return Images(train[:kept], data.train_labels[:kept], train[kept:], data.train_labels[kept:])


def build(run: Run, images: Images) -> tuple[nn.Module, cw.transforms.Larger | None]:
    """Return the model of a run, and what is known of it if a member of Sparse-IFT made it."""
    name, _, member = run.model.partition("-")
    model = make_resnet(8, channels=1, width=16, stem="pooled") if name == "resnet" else build_plain(name, images)
    if not member:
        return model, None
    larger = MEMBERS[member](model, run.density, inputs=images.train_images[:1], seed=run.seed)
    return larger.model, larger


def build_plain(name: str, images: Images) -> nn.Sequential:
    """Return a model whose first numbers are PyTorch's own; what should stay dense is called so."""
    size = images.train_images[0].numel()
    if name == "mlp":
        widths = (size, 512, 512, 512) if size < 512 else (size, 512, 512)
        parts: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            parts |= {f"linear{number}": nn.Linear(inputs, outputs), f"relu{number}": nn.ReLU()}
    else:
        channels = (64, 64, 128)
        parts = {"dense_stem": nn.Conv2d(1, 64, 3, stride=2, padding=1)}
        for number, (inputs, outputs) in enumerate(pairwise(channels)):
            parts |= {
                f"norm{number}": nn.BatchNorm2d(inputs),
                f"relu{number}": nn.ReLU(),
                f"conv{number}": nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            }
        parts |= {"norm": nn.BatchNorm2d(128), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
        widths = channels
    model = nn.Sequential()
    for part, module in {**parts, "dense_head": nn.Linear(widths[-1], 10)}.items():
        model.add_module(part, module)
    return model


def make_sparse(
    model: nn.Module, run: Run, steps: int, larger: cw.transforms.Larger | None = None
) -> cw.Sparsifier | None:
    """Make a model sparse as a run says, and compress what can be: that trains the same, faster."""
    if run.method == "dense":
        return None
    every = max(1, steps // MOVES_OF_A_RUN)
    method = {
        "static": cw.Static(),
        "set": cw.set_(every=every),
        "rigl": cw.RigL(every=every),
        "rigl-tenth": cw.RigL(every=2 * every, fraction=0.1),
        "rigl-relative": cw.RigL(every=2 * every, fraction=0.1, grow=cw.relative_gradient),
        "dsb": cw.RigL(every=2 * every, fraction=0.1, first=1.0),
        "dsb-relative": cw.RigL(every=2 * every, fraction=0.1, first=1.0, grow=cw.relative_gradient),
        "gradual": cw.Gradual(every=every),
        "supermask": cw.Supermask(),
        "ste": cw.STE(),
    }[run.method]
    has_own_density = cw.parse(run.pattern).density is not None
    sparsifier = cw.sparsify(
        model,
        larger.patterns(run.pattern) if larger else {"*": run.pattern, "dense_*": "dense"},
        density=larger.densities if larger else None if has_own_density else run.density,
        method=method,
        allocation="uniform" if has_own_density or larger else run.allocation,
        init=run.init if method.takes_first_mask else None,
        rescale=run.rescale,
        steps=steps,
        seed=run.seed,
    )
    layers = sparse_layers(model)
    if not any(why_not_compress(layer) for layer in layers.values()):
        compress(layers)
    return sparsifier


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.Optimizer:
    """Return the optimizer of a run."""
    rate = best_rate(run.data, run.model, run.optimizer) if run.lr is None else run.lr
    decay = WEIGHT_DECAY[run.optimizer]
    groups = cw.param_groups(model, lr=rate, weight_decay=decay, power=run.power) if run.power else model.parameters()
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, weight_decay=decay)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)


def best_rate(data: str, model: str, optimizer: str) -> float:
    """Return the learning rate at which the dense model was right most often on the part held out, or lost least."""
    found = [
        ((float(outcome["accuracy"]), -float(outcome["test_loss"])), run.lr)
        for run, outcome in results_of("learning-rates")
        if (run.data, run.model, run.optimizer) == (data, model, optimizer) and run.lr is not None
    ]
    if not found:
        raise ValueError(
            f"no learning rate is known yet for {model} on {data} with {optimizer}; first run "
            "python benchmarks/accuracy.py learning-rates"
        )
    return max(found)[1]


def warm_up_and_cosine(share: float) -> float:
    """Return which part of the learning rate is used after a share of the run."""
    return min(share / WARM_UP + 1e-2, cw.cosine(1.0)(share), 1.0)


def batches(images: Images, size: int, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a run, in an order that its seed decides."""
    generator = torch.Generator().manual_seed(run.seed)
    count = len(images.train_images)
    for _ in range(run.epochs):
        for batch in torch.randperm(count, generator=generator).split(size)[: count // size]:
            yield images.train_images[batch], images.train_labels[batch]


@torch.no_grad()
def judge(model: nn.Module, images: Images) -> tuple[float, float]:
    """Return how many percent of the test images a model gets right, and its loss."""
    model.eval()
    scores = torch.cat([model(batch) for batch in images.test_images.split(1000)])
    right = (scores.argmax(1) == images.test_labels).double().mean()
    return 100 * float(right), float(F.cross_entropy(scores, images.test_labels))


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the fields in which runs differ."""
    return [name for name in NAMES if len({getattr(run, name) for run in runs}) > 1]


def table(name: str) -> list[str]:
    """Return what came out of a piece: a line for each kind of run, a column for each value of the piece's field."""
    piece, found = PIECES[name], results_of(name)
    runs = {run: float(outcome["accuracy"]) for run, outcome in found if run in set(piece.runs)}
    heads = [field for field in varying(piece.runs) if field not in (piece.columns, "seed")]
    values = sorted({getattr(run, piece.columns) for run in piece.runs}, reverse=True)
    cells: dict[tuple[str, ...], dict[Any, list[float]]] = {}
    for run in piece.runs:
        line = tuple(_written(getattr(run, field)) for field in heads)
        taken = cells.setdefault(line, {}).setdefault(getattr(run, piece.columns), [])
        if run in runs:
            taken.append(runs[run])
    lines = [f"| {' | '.join([*heads, *(f'{piece.columns} {value:g}' for value in values)])} |"]
    lines += [f"|{'---|' * len(heads)}{'---:|' * len(values)}"]
    lines += [
        f"| {' | '.join([*line, *(_summary(by_value.get(value, [])) for value in values)])} |"
        for line, by_value in cells.items()
    ]
    return lines


def page() -> str:
    """Return the page with all tables."""
    lines = [
        "# How often sparse models are right",
        "",
        "Written by `benchmarks/accuracy.py` from the `results.csv` of each piece. A cell is the mean accuracy on the "
        "test images in percent ± the standard deviation over seeds (number of seeds). A difference of two means is "
        "noise as long as it is smaller than about three times the deviation over the square root of the number.",
        "",
    ]
    for name, piece in PIECES.items():
        file = FOLDER / name / "machine.json"
        if not file.exists():
            continue
        machine = json.loads(file.read_text())
        lines += [f"## {name}", "", piece.what, "", f"    {machine['command']}", ""]
        lines += [f"{machine['cpu']}, torch {machine['torch']}, {machine['date'][:10]}. {_constants(piece.runs)}", ""]
        lines += [*table(name), ""]
    return "\n".join(lines)


def write_page() -> None:
    """Write the page anew."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "RESULTS.md").write_text(page())


def _constants(runs: Sequence[Run]) -> str:
    """Say what all runs have in common."""
    differing = varying(runs)
    same = [f"{name} {_written(getattr(runs[0], name))}" for name in NAMES if name not in (*differing, "seed")]
    return f"All runs: {', '.join(same)}."


def _written(value: Any) -> str:
    words = {True: "yes", False: "no", None: "best of dense", "": "-"}
    if isinstance(value, bool | None) or value == "":
        return words[value]
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _summary(accuracies: Sequence[float]) -> str:
    if not accuracies:
        return ""
    spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{mean(accuracies):.2f}{spread} ({len(accuracies)})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
