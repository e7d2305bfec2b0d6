"""What a form is: one way in which a sparse layer can store its weight and compute with it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn


class Form(ABC):
    """A way to store a weight and to compute with it; one class for each, which holds all that is known about it.

    `precision` is the name under which people ask for fewer bits than the model has, and None where results do not
    change, so that every layer is offered the form. Gradients pass a form that `trains`.
    """

    precision: str | None = None
    trains: bool = True

    @abstractmethod
    def is_form_of(self, layer: nn.Module) -> bool:
        """Say whether a layer has this form."""

    @abstractmethod
    def why_not(self, name: str, layer: nn.Module) -> str:
        """Say why a sparse layer, the model itself if it has no name, cannot take this form; empty where it can."""

    @abstractmethod
    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        """Give layers of a model this form, in place."""
