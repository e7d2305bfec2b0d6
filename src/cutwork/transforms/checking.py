"""What a member of Sparse-IFT is given, checked before anything is run or built."""

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parameter import is_lazy

from cutwork.layers.swap import sparse_layers
from cutwork.patterns.density import check_density
from cutwork.text import did_you_mean, label
from cutwork.transforms.sizes import own_tensors

FRESH, COPY = "fresh", "copy"


def check_given(model: nn.Module, density: float, weights: str = FRESH) -> None:
    """Raise ValueError where no layer could become larger, or a model cannot be changed as it is."""
    if check_density(density) == 1:
        raise ValueError(
            "density=1 keeps everything, so nothing could become larger; 0.25 makes it four times as large"
        )
    if weights not in (FRESH, COPY):
        known = (FRESH, COPY)
        raise ValueError(f"unknown weights {weights!r}{did_you_mean(weights, known)}; write {FRESH!r} or {COPY!r}")
    sparse = sparse_layers(model)
    for name, module in model.named_modules():
        if module in sparse.values():
            raise ValueError(f"{label(name)} is sparse already; bake() the model first, or build it anew")
        if isinstance(module, OptimizedModule | torch.jit.ScriptModule):
            raise ValueError(
                f"{label(name)} is compiled already; give the model as it was before, and compile the larger"
            )
        for key, tensor in own_tensors(module):
            path = f"{name}.{key}" if name else key
            if is_lazy(tensor):
                raise ValueError(f"{path} gets its sizes at the first call; call the model once before")
            if tensor.is_meta:
                raise ValueError(f"{path} has no numbers, on the meta device; build the model on a real one")
