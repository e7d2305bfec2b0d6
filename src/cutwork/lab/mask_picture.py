"""A mask as a small picture in text."""

import torch.nn.functional as F
from torch import Tensor

# By the halves of a character that are filled: the upper one counts two, the lower one.
HALVES = " ▄▀█"


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
