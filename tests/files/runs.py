"""Small models with what trains them, saved, changed on disk and refused: what the tests of files share."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw
from cutwork.files.tensor_file import read_file, write_file

GOLDEN = Path(__file__).parent / "golden" / "v1.safetensors"

METHODS = {
    "static": cw.Static(),
    "gradual": cw.Gradual(every=2, until=5),
    "granet": cw.GraNet(every=2, until=7, thin_until=5),
    "rigl": cw.RigL(every=2, until=7),
    "rigl-estimate": cw.RigL(every=2, until=7, estimate=True),
    "set": cw.set_(every=2, until=7),
    "srigl": cw.SRigL(every=2, until=7),
    "supermask": cw.Supermask(),
    "supermask-bits": cw.Supermask(weight_bits=3),
    "supermask-fixed-transform": cw.Supermask(weight_bits=2, transform=(0.01, 0.1), fixed_transform=True),
    "supermask-range": cw.Supermask(score_range=(-0.5, 0.5), init="magnitude"),
    "supermask-fixed-mask": cw.Supermask(fixed_mask=True, dense_weight_gradient=True),
    "supermask-fixed-weight": cw.Supermask(fixed_weight=True),
    "supermask-gradual": cw.Supermask(start_density=1.0, until=4),
    "spartan": cw.Spartan(thin_until=2, until=6),
    "ste": cw.STE(every=2),
    "srste": cw.srste(decay=0.01),
    "srste-decoupled": cw.srste(decay=0.5, decoupled=True),
    "switch": cw.Switch(cw.srste(), sparse_from=2, dense_from=5),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01, initial_accumulator_value=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.9, centered=True),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=2),
    "tensor-lr": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01), betas=(0.8, 0.9)),
}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.again = nn.Sequential(self.first)

    def forward(self, x):
        return self.again(self.second(self.first(x)).relu())


class Remembers(nn.Linear):
    def get_extra_state(self):
        return {"seen": getattr(self, "seen", 0)}

    def set_extra_state(self, state):
        self.seen = state["seen"]


class Attends(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def mlp(*, width=8, dtype=torch.float32):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8)).to(dtype)


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (4, 2, 1)), nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Flatten(),
        nn.Linear(16, 8),
    )  # fmt: skip


def encoder():
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True))


def conv1d():
    transformers = pytest.importorskip("transformers.pytorch_utils")
    return nn.Sequential(transformers.Conv1D(16, 8), nn.GELU(), transformers.Conv1D(8, 16))


MODELS = {
    "mlp": mlp,
    "convolutions": convolutions,
    "channels-last": lambda: convolutions().to(memory_format=torch.channels_last),
    "encoder": encoder,
    "attention": Attends,
    "attention-kdim": lambda: Attends(kdim=8, vdim=8, bias=False, add_bias_kv=True),
    "shared-attention": lambda: nn.Sequential(*[Attends()] * 2),
    "tied": Tied,
    "shared-layer": lambda: nn.Sequential(*[nn.Linear(8, 8)] * 3),
    "root": lambda: nn.Linear(8, 8),
    "conv1d": conv1d,
    "extra-state": lambda: nn.Sequential(nn.Linear(8, 8), Remembers(8, 8)),
    "bfloat16": lambda: mlp(dtype=torch.bfloat16),
    "float64": lambda: mlp(dtype=torch.float64),
}


def build(make=mlp, seed=0):
    torch.manual_seed(seed)
    return make()


def make_sparse(model, method="rigl", pattern="unstructured", optimizer="adamw", **options):
    patterns = {"*": pattern}
    patterns |= {name: "dense" for name, module in model.named_modules() if isinstance(module, Remembers)}
    if cw.parse(pattern).density is None:
        options.setdefault("density", 0.25)
    if METHODS[method].takes_first_mask:
        # Another seed of the weights then means other masks.
        options.setdefault("init", "magnitude")
    sparsifier = cw.sparsify(model, patterns, method=METHODS[method], **options)
    return sparsifier, attach(sparsifier, model, optimizer)


def attach(sparsifier, model, optimizer="adamw"):
    built = OPTIMIZERS[optimizer](model.parameters())
    sparsifier.attach(built)
    return built


def train(model, optimizer, begin, end):
    """Run steps `begin + 1` to `end`; what a step computes depends on its number alone."""
    dtype = next(model.parameters()).dtype
    for step in range(begin, end):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(dtype)

        def closure(x=x):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x).float(), x.float().flip(1))
            loss.backward()
            return loss

        optimizer.step(closure)


def bits(value):
    """Return a nested value with its tensors as text that differs where a bit does; zeros count as one."""
    if isinstance(value, torch.Tensor):
        value = torch.where(value == 0, torch.zeros_like(value), value) if value.is_floating_point() else value
        return str(value.dtype), list(value.shape), value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return type(value)(bits(item) for item in value) if isinstance(value, list | tuple) else value


def everything(model, *others):
    return [repr(model), bits(dict(model.state_dict())), *(bits(other.state_dict()) for other in others)]


def refuses(match, path, model, sparsifier=None, optimizer=None):
    """Check that a load fails with these words and changes nothing."""
    given = [other if isinstance(other, list) else [other] for other in (sparsifier, optimizer) if other is not None]
    others = [one for several in given for one in several]
    before = everything(model, *others)
    with pytest.raises(ValueError, match=match) as error:
        cw.load(path, model, sparsifier=sparsifier, optimizer=optimizer)
    assert str(error.value).count(str(path)) == 1
    assert everything(model, *others) == before


def rewrite(path, change):
    """Change a checkpoint as somebody could who writes true digests."""
    tensors, description = read_file(path)
    change(description, tensors)
    write_file(path, tensors, description)


def to(*path, value):
    """Return a change that puts a value somewhere into a description."""

    def change(description, tensors):
        inner = description
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def without(*path):
    def change(description, tensors):
        inner = description
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


def compressed_run(make=mlp, method="rigl", pattern="block:2", **options):
    """Return a run in compressed storage that has moved its masks."""
    model = build(make)
    sparsifier, optimizer = make_sparse(model, method, pattern, storage="compressed", density=0.4, **options)
    train(model, optimizer, 0, 3)
    return model, sparsifier, optimizer


def packed(forms, make=mlp, pattern="block:2", seed=0):
    model = build(make, seed=seed)
    cw.sparsify(model, pattern, density=0.4, init="magnitude")
    cw.pack(model, forms=forms)
    return model.eval()


LOW = {
    "int8": "tiles-int8",
    "bf16": "tiles-bf16",
    "mixed": {"0": "tiles-int8", "2": "tiles-bf16"},
    "in part": {"0": "tiles-int8", "2": "dense"},
}
