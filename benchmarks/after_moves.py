"""Measure how far new weights step after a move of the masks, and what that does to the loss; print a table.

    python benchmarks/after_moves.py                      ten minutes on two cores
    python benchmarks/after_moves.py --seeds 1 --densities 0.1 --methods rigl

A network for digits is trained by AdamW. Three ways of beginning with a new weight are compared: with nothing
remembered (`zero`), with the usual size of the layer's states (`usual`, what the package does), and with nothing
remembered and each update scaled by what AdamW's correction would be at the weight's own age (`age`).
"""

import argparse
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor, nn

import cutwork as cw

LEARNING_RATE = 1e-3
EVERY, STEPS, WATCHED = 100, 1000, 100
METHODS = {"rigl": cw.gradient, "set": cw.random}
STARTS = ["zero", "usual", "age"]
# Older than any weight that begins in a move.
GROWN_UP = 10**6


@dataclass
class Watch:
    """What one run has shown; steps are in learning rates."""

    fresh: float = 0.0
    longest_new: float = 0.0
    longest_old: float = 0.0
    usual_new: list[float] | None = None
    usual_old: list[float] | None = None
    rises: list[float] | None = None
    loss: float = 0.0
    accuracy: float = 0.0


def train(start: str, method: str, density: float, seed: int) -> Watch:
    """Train one network and watch it."""
    digits = cw.load_digits()
    images, labels = digits.train_images.flatten(1), digits.train_labels
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()),
        nn.Linear(256, 10),
    )
    moving = cw.RigL(every=EVERY, until=0.75, grow=METHODS[method])
    sparsifier = cw.sparsify(
        model, {"*": "unstructured", "6": "dense"}, density=density, method=moving, steps=STEPS, seed=seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    sparsifier.attach(optimizer)
    layers = list(sparsifier.layers.values())
    ages = [torch.full(layer.weight.shape, GROWN_UP) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    watch = Watch(usual_new=[], usual_old=[], rises=[])
    before = peak = 0.0
    for step in range(1, STEPS + 1):
        batch = torch.randperm(len(images), generator=generator)[:64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        weights, masks = ([each.clone() for each in them] for them in zip(*map(_weight_and_mask, layers), strict=True))
        optimizer.step()
        is_move = sparsifier.method.due(step)
        for layer, old, mask, age in zip(layers, weights, masks, ages, strict=True):
            age.add_(1)
            if start == "age":
                _scale_by_age(layer, old, age, step)
            begun = layer.sparsity.mask & ~mask
            if is_move:
                age[begun] = 0
                if start != "usual":
                    for numbers in optimizer.state[layer.weight].values():
                        if numbers.shape == begun.shape:
                            numbers[begun] = 0
            else:
                _watch_steps(watch, (layer.weight.detach() - old)[mask] / LEARNING_RATE, age[mask], step)
        since = step % EVERY
        if is_move:
            before, peak = _loss(model, images[::3], labels[::3]), 0.0
        elif before and since <= 40 and since % 2:
            peak = max(peak, _loss(model, images[::3], labels[::3]))
        elif before and since == 42:
            watch.rises.append(peak / before - 1)
            before = 0.0
    watch.loss = _loss(model, images, labels)
    with torch.no_grad():
        answers = model(digits.test_images.flatten(1)).argmax(1)
    watch.accuracy = float((answers == digits.test_labels).float().mean())
    return watch


def _weight_and_mask(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.weight.detach(), layer.sparsity.mask


@torch.no_grad()
def _scale_by_age(layer: nn.Module, old: Tensor, age: Tensor, step: int) -> None:
    def correction(count):
        return (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)

    scale = torch.where(age < GROWN_UP, correction(age.float()) / correction(step), 1)
    layer.weight.copy_(torch.where(layer.sparsity.mask, torch.lerp(old, layer.weight, scale), 0))


def _watch_steps(watch: Watch, step_lengths: Tensor, age: Tensor, step: int) -> None:
    is_new = age <= WATCHED
    lengths = step_lengths.abs()
    if step <= WATCHED:
        watch.fresh = max(watch.fresh, float(lengths.max()))
    elif is_new.any() and not is_new.all():
        new, old = lengths[is_new], lengths[~is_new]
        watch.longest_new, watch.longest_old = (
            max(watch.longest_new, float(new.max())),
            max(watch.longest_old, float(old.max())),
        )
        watch.usual_new.append(float(new.square().mean()))
        watch.usual_old.append(float(old.square().mean()))


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(nn.functional.cross_entropy(model(images), labels))


def row(method: str, density: float, start: str, seen: list[Watch]) -> str:
    """Return a row of the table."""
    rises = [rise for watch in seen for rise in watch.rises]
    cells = [
        *(method, f"{density:g}", start),
        *(f"{max(watch.longest_new for watch in seen):.1f}", f"{_root(seen, 'usual_new'):.2f}"),
        *(f"{max(watch.longest_old for watch in seen):.1f}", f"{_root(seen, 'usual_old'):.2f}"),
        *(f"{max(watch.fresh for watch in seen):.1f}", f"{mean(rises):+.0%}", f"{max(rises):+.0%}"),
        *(f"{mean(watch.loss for watch in seen):.4f}", f"{mean(watch.accuracy for watch in seen):.1%}"),
    ]
    return f"| {' | '.join(cells)} |"


def _root(seen: list[Watch], what: str) -> float:
    return mean(square for watch in seen for square in getattr(watch, what)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.1])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS)
    chosen = parser.parse_args()
    print("| method | density | start | new: longest | usual | old: longest | usual | fresh: longest | ", end="")
    print("loss rises by | at most | loss | accuracy |\n|---|---" + "|--:" * 10 + "|")
    for method in chosen.methods:
        for density in chosen.densities:
            for start in chosen.starts:
                seen = [train(start, method, density, seed) for seed in range(chosen.seeds)]
                print(row(method, density, start, seen), flush=True)


if __name__ == "__main__":
    main()
