"""Letting PyTorch know the operators of compressed layers as soon as both it and this package are imported."""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_operators() -> None:
    """Register the operators and their kernels: at once if torch is imported already, otherwise right after it is.

    An exported or compiled model names its operators, and whoever loads it need not have met a layer before.
    """
    if "torch" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watch())


def _register() -> None:
    importlib.import_module("cutwork.kernels")


class _Watch:
    """Finds torch where others find it, waits until it is loaded, and steps aside."""

    # Not derived from importlib.abc.MetaPathFinder: importing that takes longer than everything else here.

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders return; somebody may only ask whether torch is installed."""
        if fullname != "torch":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader) -> None:
        load = loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            loader.exec_module = load
            load(module)
            sys.meta_path.remove(self)
            _register()

        # The loader of a source file belongs to that file alone, so nobody else's import is touched.
        loader.exec_module = load_and_register
