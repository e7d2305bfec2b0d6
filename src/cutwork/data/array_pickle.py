"""Pickled arrays read without running anything else that a pickle may name."""

import pickle
from typing import IO, Any, final

import numpy as np
from numpy._core.multiarray import _reconstruct

# All that arrays are made of, by the names that they had when Python 2 wrote them.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def read_arrays(file: IO[bytes], name: str) -> Any:
    """Return the containers, numbers, bytes and arrays in a pickle; anything else is refused.

    A pickle may name any function, and loading it the common way calls that function.
    """
    return _ArrayUnpickler(file, name).load()


@final
class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], name: str) -> None:
        # The strings of Python 2 are bytes.
        super().__init__(file, encoding="bytes")
        self.name = name

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise ValueError(f"{self.name} asks for {module_name}.{global_name}; only arrays are read") from None
