"""What a data set of images is."""

from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True)
class Images:
    """Images `[N, channels, height, width]` as float32 in [0, 1] and labels `[N]` as int64, apart for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
