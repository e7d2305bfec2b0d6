"""What a recipe is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from cutwork.lab.training import Training


@final
@dataclass(frozen=True)
class Recipe:
    """A run's options, what they are for, and the options by which a twin of it runs in a minute on two cores.

    `published` is what others report of this run, empty where nobody does.
    """

    about: str
    training: Training
    tiny: Mapping[str, Any]
    published: str = ""
