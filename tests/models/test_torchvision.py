import importlib
import subprocess
import sys

import pytest
import torch

from cutwork.models import torchvision as vision

torchvision = pytest.importorskip("torchvision")


def test_in_a_fresh_process_models_transforms_and_timm_work():
    code = (
        "from cutwork.models.torchvision import import_torchvision\n"
        "torchvision = import_torchvision()\n"
        "assert import_torchvision() is torchvision\n"
        "import timm, torch\n"
        "from torchvision.transforms import v2\n"
        "image = v2.RandomCrop(32)(torch.rand(1, 3, 40, 40))\n"
        "assert torchvision.models.resnet18(num_classes=10).eval()(image).shape == (1, 10)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_another_runtime_error_is_not_swallowed(monkeypatch):
    def fail(name):
        raise RuntimeError("something else")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else"):
        vision.import_torchvision()


def test_the_declared_operators_are_known_to_torch():
    assert torch.ops.torchvision.nms is not None
