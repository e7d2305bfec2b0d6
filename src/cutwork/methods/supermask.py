"""Masks learned by gradient descent on scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, Steps, View, check_every, check_start_density, progress
from cutwork.methods.schedules import cubic
from cutwork.methods.scores import Score, magnitude
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.learned import Learned


@final
@dataclass(frozen=True)
class Supermask(Method):
    """Learn a score for every unit, by the gradient of its mask, and keep the units with the largest.

    Scores start at random (`init="random"`), or in the order of the weights' magnitude, which suits a trained model
    (`init="magnitude"`). `score_range` starts them uniformly in a range and holds them there. `count="exact"`
    keeps the nearest number of n units, `"reference"` what the original does: of a sparsity of at most `1 - 1 / n` it
    makes `round(0.01 * (100 * sparsity) * (n - 1))` zeros, where Python rounds halves to even and products have the
    errors of doubles, and so keeps two units where one was meant. Units of equal score do not all stay there, as they
    do in the original. `fixed_mask` and `fixed_weight` freeze one of the two; `weight_bits` bins the weight;
    `dense_weight_gradient` lets the gradient of the weight through where the mask is zero. With `start_density` the
    density falls along a cubic curve until `until`.

    Reference: arXiv 2207.00670, and SuperBlock for scores of whole tiles.
    """

    every: int = 1
    init: Literal["random", "magnitude"] = "random"
    score_range: tuple[float, float] | None = None
    count: Literal["exact", "reference"] = "exact"
    fixed_mask: bool = False
    fixed_weight: bool = False
    weight_bits: int = 0
    transform: tuple[float, float] | None = None
    fixed_transform: bool = False
    dense_weight_gradient: bool = False
    start_density: float | None = None
    begin: Steps = 0
    until: Steps | None = None

    step_fields: ClassVar[Sequence[str]] = ("until", "begin")

    def __post_init__(self) -> None:
        check_every(self.every)
        if self.fixed_mask and self.fixed_weight:
            raise ValueError("fixed_mask and fixed_weight together leave nothing to train; set at most one")
        if (self.start_density is None) != (self.until is None):
            raise ValueError("start_density says where the density comes from and until when it arrives; give both")
        if self.start_density is not None:
            check_start_density(self.start_density)
        if self.transform is not None and len(self.transform) != 2:
            raise ValueError(f"transform={self.transform} must be a pair, shift and scale")
        if self.weight_bits < 0:
            raise ValueError(f"weight_bits={self.weight_bits}: give the number of bits, or 0 for weights as they are")

    def start(self, view: View, init: Score) -> Tensor:
        scores = self._first_scores(view) if view.learned is None else view.learned
        return self._choose(view, scores, self._density(view, at=self.begin))

    def due(self, step: int) -> bool:
        return not self.fixed_mask and step % self.every == 0

    def move(self, view: View) -> Tensor:
        assert view.learned is not None, "a supermask lives in a layer that learns scores"
        if view.learned.isnan().any():
            raise ValueError("the learned scores hold nan, which has no rank; lower the learning rate of the scores")
        return self._choose(view, view.learned, self._density(view, at=view.step))

    @property
    def takes_first_mask(self) -> bool:
        # Its masks come from its scores.
        return False

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def dense_gradient_share(self) -> float:
        return 0.0 if self.fixed_mask else 1.0

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        learned = Learned(
            mask,
            view.layout,
            pattern=view.pattern,
            density=view.density,
            scores=self._first_scores(view),
            score_range=self.score_range,
            dense_weight_gradient=self.dense_weight_gradient,
        )
        learned.scores.requires_grad_(not self.fixed_mask)
        if self.fixed_weight:
            weight.requires_grad_(False)
        if self.weight_bits:
            learned.bin_weight(weight, self.weight_bits, transform=self.transform, fixed_transform=self.fixed_transform)
        return learned

    def _first_scores(self, view: View) -> Tensor:
        grid = view.pattern.grid(view.weight.shape)
        generator = torch.Generator().manual_seed(view.generator.initial_seed())
        uniform = torch.rand(grid, generator=generator).to(view.weight.device)
        low, high = self.score_range or (-(grid[1] ** -0.5), grid[1] ** -0.5)
        if self.init == "magnitude":
            weights = view.pattern.pool(view.score(magnitude).float())
            uniform = weights.flatten().argsort(stable=True).argsort().view(grid) / (weights.numel() - 1 or 1)
        # Scores are steps apart that half precision cannot tell; double precision has no use for them in single.
        return (low + (high - low) * uniform).to(torch.promote_types(view.weight.dtype, torch.float32))

    def _density(self, view: View, at: Steps) -> float:
        if self.start_density is None or self.until is None:
            return view.density
        curve = cubic(max(self.start_density, view.density), view.density)
        return curve(progress(int(at), begin=self.begin, until=self.until))

    def _count(self, view: View, density: float) -> int:
        shape = view.weight.shape
        if self.count == "exact":
            return view.pattern.count(shape, density)
        units = view.pattern.num_units(shape)
        # The sparsity as it was written: 1 - 0.1 taken from 1 is less than 0.1, and a half would fall the other way.
        sparsity = min(round(1 - density, 12), 1 - 1 / units)
        return units - round(0.01 * (100 * sparsity) * (units - 1))

    def _choose(self, view: View, scores: Tensor, density: float) -> Tensor:
        chosen = view.pattern.select(scores, self._count(view, density))
        return view.pattern.spread(chosen, view.weight.shape)
