"""Measure how well networks learn from first masks of each kind; print a table.

    python benchmarks/first_masks.py                      five minutes on one core
    python benchmarks/first_masks.py --seeds 1 --densities 0.05 --patterns block:8

A network for digits is trained by AdamW under static masks. Those by chance share the density out evenly or by `erk`;
those from data, of 256 images, rank all layers together.
"""

import argparse
from collections.abc import Callable, Mapping
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import cutwork as cw

LEARNING_RATE = 3e-3
STEPS, ROUNDS = 300, 20
# As the authors of GraSP divide outputs.
TEMPERATURE = 200

# Of the images and labels that a loss for first masks may see, what `sparsify` is told.
Options = Mapping[str, Any]
FIRST_MASKS: dict[str, Callable[[Tensor, Tensor], Options]] = {
    "by chance": lambda x, y: {"init": "random"},
    "balanced": lambda x, y: {"init": "balanced"},
    "balanced, `erk`": lambda x, y: {"init": "balanced", "allocation": "erk"},
    "`snip`": lambda x, y: {"init": cw.snip(loss_on(x, y))},
    "`snip`, its share by `erk`": lambda x, y: {
        "init": cw.snip(loss_on(x, y), across_layers=False),
        "allocation": "erk",
    },
    f"`snip`, {ROUNDS} rounds": lambda x, y: {"init": cw.snip(loss_on(x, y), rounds=ROUNDS)},
    f"`force`, {ROUNDS} rounds": lambda x, y: {"init": cw.force(loss_on(x, y), rounds=ROUNDS)},
    "`grasp`": lambda x, y: {"init": cw.grasp(loss_on(x, y, TEMPERATURE))},
    "`synflow`": lambda x, y: {"init": cw.synflow(x[:1])},
}


def loss_on(x: Tensor, y: Tensor, temperature: float = 1.0) -> Callable[[nn.Module], Tensor]:
    """Return the loss of a model on some images."""
    return lambda model: nn.functional.cross_entropy(model(x) / temperature, y)


def train(first: str, pattern: str, density: float, seed: int) -> float:
    """Train one network, and return its accuracy in percent."""
    digits = cw.load_digits()
    images, labels = digits.train_images.flatten(1), digits.train_labels
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randperm(len(images), generator=generator)[:256]
    options = FIRST_MASKS[first](images[seen], labels[seen])
    patterns = {"*": pattern, "4": "unstructured"}
    sparsifier = cw.sparsify(model, patterns, density=density, seed=seed, **options)
    optimizer = torch.optim.AdamW(cw.param_groups(model, lr=LEARNING_RATE, weight_decay=0.01))
    sparsifier.attach(optimizer)
    for _ in range(STEPS):
        batch = torch.randperm(len(images), generator=generator)[:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        right = model.eval()(digits.test_images.flatten(1)).argmax(1) == digits.test_labels
    return 100 * float(right.float().mean())


def row(first: str, accuracies: list[list[float]]) -> str:
    """Write the mean of each cell and its deviation."""
    cells = [f"{mean(each):.1f} ± {stdev(each) if len(each) > 1 else 0:.1f}" for each in accuracies]
    return f"| {first} | {' | '.join(cells)} |"


def main() -> None:
    """Print a row for each kind of first mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.02])
    parser.add_argument("--patterns", nargs="+", default=["unstructured", "block:8"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(pattern, density) for pattern in given.patterns for density in given.densities]
    print(f"| first mask | {' | '.join(f'`{pattern}`, {100 * density:g} %' for pattern, density in cells)} |")
    print(f"|---{'|--:' * len(cells)}|")
    for first in FIRST_MASKS:
        results = [[train(first, *cell, seed) for seed in range(given.seeds)] for cell in cells]
        print(row(first, results), flush=True)


if __name__ == "__main__":
    main()
