"""The data set inside the package: handwritten digits, small enough to train on in seconds."""

from importlib import resources

import numpy as np
import torch

from cutwork.data.images import Images

NUM_TEST = 360
MAX_PIXEL = 16


def load_digits() -> Images:
    """Return 1437 training and 360 test images of handwritten digits, always the same ones in the same order.

    The test images are the last 360 of the file. The file is not shuffled first, on purpose: neighbours in it
    resemble each other, and a nearest-neighbour classifier is right on 98.9 % of a shuffled split and on
    95.6 % of this one.

    >>> digits = load_digits()
    >>> digits.train_images.shape, digits.test_images.shape
    (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0 (`data/DIGITS-LICENSE.txt`).
    """
    with resources.files("cutwork").joinpath("data", "digits.npz").open("rb") as file, np.load(file) as archive:
        images = torch.from_numpy(archive["images"]).to(torch.float32).div_(MAX_PIXEL).unsqueeze(1)
        labels = torch.from_numpy(archive["labels"]).to(torch.int64)
    return Images(
        train_images=images[:-NUM_TEST],
        train_labels=labels[:-NUM_TEST],
        test_images=images[-NUM_TEST:],
        test_labels=labels[-NUM_TEST:],
    )
