"""Masks as pictures: in a file, and as text."""

import math
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.layers.swap import sparse_layers, why_not_find
from cutwork.sparsity.base import Sparsity
from cutwork.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# The most cells a side of a drawn mask has; each shows the mean density of the weights under it.
CELLS = 256
# Two points in one character, by what is filled: 2 for the upper one and 1 for the lower one, added up.
HALVES = " ▄▀█"


def draw_masks(model: nn.Module, path: str | PathLike[str]) -> None:
    """Draw the masks of all sparse layers into a file, PNG or SVG as its name says.

    Rows are outputs; of a convolution the columns are ordered kernel row, kernel column, channel. A mask of more than
    256 rows or columns is drawn in 256 cells, each in the tone of the mean density under it.
    """
    layers = sparse_layers(model)
    if not layers:
        raise ValueError(why_not_find(model))
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("draw_masks needs matplotlib; install it with pip install 'cutwork[report]'") from error
    num_columns = min(6, math.ceil(math.sqrt(len(layers))))
    num_rows = math.ceil(len(layers) / num_columns)
    figure = Figure(figsize=(2.4 * num_columns, 2.6 * num_rows + 0.6), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for panel in panels[len(layers) :]:
        panel.set_axis_off()
    images = [
        _draw_mask(panel, name, layer.sparsity) for panel, (name, layer) in zip(panels, layers.items(), strict=False)
    ]
    bar = figure.colorbar(images[0], ax=panels, location="top", shrink=1 / num_columns, aspect=25, ticks=[0, 0.5, 1])
    bar.set_label("density", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    # The panels are square, which leaves a band below them.
    figure.savefig(path, dpi=150, bbox_inches="tight")


def draw_in_text(name: str, mask: Tensor, side: int = 32) -> str:
    """Draw a mask in text, two rows a line; a point is filled where more is kept than half of the fullest point.

    >>> import torch
    >>> print(draw_in_text("layer", torch.eye(4, dtype=torch.bool)))
    layer: 4 outputs down, 4 inputs across
    ▀▄
      ▀▄
    """
    outputs, inputs = mask.flatten(1).shape
    points = F.adaptive_avg_pool2d(mask.flatten(1)[None].float(), (min(side, outputs), min(side, inputs)))[0]
    filled = F.pad(points > points.max() / 2, (0, 0, 0, len(points) % 2))
    lines = [
        "".join(HALVES[2 * int(upper) + int(lower)] for upper, lower in zip(*pair, strict=True)).rstrip()
        for pair in filled.view(-1, 2, filled.shape[1]).tolist()
    ]
    return "\n".join([f"{name}: {outputs} outputs down, {inputs} inputs across", *lines])


def _draw_mask(panel: "Axes", name: str, sparsity: Sparsity) -> "AxesImage":
    mask = sparsity.mask_matrix().cpu().numpy()
    num_rows, num_columns = mask.shape
    panel.set_title(f"{shorten(name or 'model', 30)}\n{sparsity.pattern}, density {mask.mean():.3g}", fontsize=8)
    panel.set_xticks([0, num_columns], ["0", str(num_columns)], fontsize=7)
    panel.set_yticks([0, num_rows], ["0", str(num_rows)], fontsize=7)
    # Between the two numbers, where there is room anyway.
    panel.set_xlabel("inputs", fontsize=7, labelpad=-6)
    panel.set_ylabel("outputs", fontsize=7, labelpad=-12)
    panel.set_box_aspect(1)
    return panel.imshow(
        coarsen(mask),
        cmap="YlGnBu",
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(0, num_columns, num_rows, 0),
        interpolation="nearest",
    )


def coarsen(mask: np.ndarray) -> np.ndarray:
    """Return the mean of a mask over each of at most `CELLS` x `CELLS` rectangles that divide it."""
    sums, area = mask, 1
    for axis, size in enumerate(mask.shape):
        edges = np.linspace(0, size, min(size, CELLS) + 1).astype(int)
        sums = np.add.reduceat(sums, edges[:-1], axis=axis, dtype=np.int64)
        area = area * np.expand_dims(np.diff(edges), 1 - axis)
    return sums / area
