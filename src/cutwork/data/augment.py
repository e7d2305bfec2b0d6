"""What is done to training images, by names such as `crop` and `mixup:0.2`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cutwork.data.feed import Batch
from cutwork.data.framing import Crop, Erasing, Flip, OneImage, ResizedCrop, Rotate
from cutwork.data.mixing import Cutmix, Mixup
from cutwork.data.random_operations import RandAugment, TrivialAugment
from cutwork.text import did_you_mean

Mix = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


class Change(Protocol):
    """What is done to images: to a batch of them at once, or by torchvision to one that was just read from a file."""

    def __call__(self, images_BCHW: Tensor, chance: Generator, /) -> Tensor:
        """Return the images, each changed for itself."""
        ...

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image of this height and width, by PyTorch's own chance."""
        ...


# Done to images in [0, 1], in the order in which they are named,
BEFORE: dict[str, Callable[..., Change]] = {
    "crop": Crop,
    "resized-crop": ResizedCrop,
    "flip": Flip,
    "rotate": Rotate,
    "randaugment": RandAugment,
    "trivialaugment": TrivialAugment,
}
# then to images of mean 0 and deviation 1,
AFTER: dict[str, Callable[..., Change]] = {"erasing": Erasing}
# and at last to whole batches with their labels.
MIXES: dict[str, Callable[..., Mix]] = {"mixup": Mixup, "cutmix": Cutmix}


@final
@dataclass(frozen=True)
class Augmentations:
    """What is done to training images.

    >>> Augmentations.parse(["crop:2", "erasing", "mixup:0.2"])
    Augmentations(before=(Crop(padding=2),), after=(Erasing(probability=0.5),), mixes=(Mixup(alpha=0.2),))
    """

    before: tuple[Change, ...] = ()
    after: tuple[Change, ...] = ()
    mixes: tuple[Mix, ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str]) -> Self:
        """Return what these names stand for; numbers follow a colon, with commas between them."""
        known = BEFORE | AFTER | MIXES
        chosen: dict[str, Any] = {}
        for text in names:
            name = text.partition(":")[0]
            if name not in known:
                near = did_you_mean(name, known)
                raise ValueError(f"unknown augmentation {text!r}{near}; write {', '.join(map(repr, known))}")
            if name in chosen:
                raise ValueError(f"the augmentation {name!r} is asked for twice")
            chosen[name] = _make(known[name], text)
        stages = ([made for name, made in chosen.items() if name in stage] for stage in (BEFORE, AFTER, MIXES))
        return cls(*map(tuple, stages))

    def change(self, images_BCHW: Tensor, standardise: Callable[[Tensor], Tensor], chance: Generator) -> Tensor:
        """Return images of mean 0 and deviation 1 out of images in [0, 1], each changed for itself."""
        for one in self.before:
            images_BCHW = one(images_BCHW, chance)
        images_BCHW = standardise(images_BCHW)
        for one in self.after:
            images_BCHW = one(images_BCHW, chance)
        return images_BCHW

    def mix(self, images_BCHW: Tensor, labels: Tensor, num_classes: int, chance: Generator) -> Batch:
        """Return images mixed in one of the ways that were asked for, with what share of each class they hold."""
        if not self.mixes:
            return images_BCHW, labels
        chosen = int(torch.randint(len(self.mixes), (), generator=chance))
        return self.mixes[chosen](images_BCHW, F.one_hot(labels, num_classes).to(torch.float32), chance)


def _make(kind: Any, text: str) -> Any:
    _, colon, rest = text.partition(":")
    try:
        numbers = [float(one) if "." in one else int(one) for one in rest.split(",")] if colon else []
        if len(numbers) > len(fields(kind)):
            raise ValueError(f"it takes {len(fields(kind))} numbers at most")
        return kind(*numbers)
    except ValueError as error:
        raise ValueError(f"augmentation {text!r}: {error}") from error
