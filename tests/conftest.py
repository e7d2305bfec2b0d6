"""One thread per worker, hypothesis without deadlines, and torchvision made importable for all tests."""

from importlib.util import find_spec

import torch
from hypothesis import settings

from cutwork.models.torchvision import import_torchvision

torch.set_num_threads(1)

# The first example of a test pays for caches and kernels, so a time limit for each one would only be flaky.
settings.register_profile("cutwork", deadline=None)
settings.load_profile("cutwork")

if find_spec("torchvision"):
    import_torchvision()
