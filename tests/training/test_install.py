import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def test_a_call_that_takes_long_says_in_the_log_how_far_it_is(caplog):
    with caplog.at_level("INFO", logger="cutwork"):
        cw.sparsify(mlp(), "block:4", density=0.25)
    assert [record.message for record in caplog.records] == [
        "the weights look fresh; they are scaled to their first masks, which keep the best by balanced",
        "making layer 1 of 2 sparse: 0",
        "making layer 2 of 2 sparse: 2",
    ]


# In a process of its own: the peak is that of its whole life. The first call loads what it needs.
PEAK = """
import re, sys
from dataclasses import dataclass
from pathlib import Path
import torch, cutwork as cw
from torch import nn

def mebibytes(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
cw.sparsify(nn.Linear(64, 64), "block:16", density=0.1, storage=sys.argv[1])
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
before = mebibytes("VmRSS")
assert mebibytes("VmHWM") - before < 4, "to build the model took more than the model"
cw.sparsify(model, "block:16", density=0.1, storage=sys.argv[1])
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize(("storage", "most"), [("compressed", 3 * 16), ("dense", (2 + 8 / 4) * 16)])
def test_to_make_a_model_sparse_takes_memory_for_one_of_its_layers(storage, most):
    """Layers of 16 MiB: some of these to work with, and in dense storage a byte for each number of all."""
    # What is freed goes back to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK, storage]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < most


def test_a_method_whose_first_mask_is_not_made_of_tiles_changes_nothing_in_compressed_storage():
    @dataclass(frozen=True)
    class Diagonal(cw.Method):
        needs_gradient = False
        dense_gradient_share = 0.0

        def start(self, view, init):
            return torch.eye(*view.weight.shape) > 0

        def due(self, step):
            return False

        def move(self, view):
            return view.mask

    model = mlp()
    with pytest.raises(ValueError, match=r"^0: the mask is not legal for block:4, so its units cannot be stored alone"):
        cw.sparsify(model, "block:4", density=0.25, method=Diagonal(), storage="compressed")
    assert type(model[0]) is nn.Linear
    assert list(cw.sparsify(model, "block:4", density=0.25, method=Diagonal()).layers) == ["0", "2"]


def test_nan_weights_are_refused_before_anything_changes():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        cw.sparsify(model, "block:4", density=0.1)
    assert type(model[0]) is nn.Linear
