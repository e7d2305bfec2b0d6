import copy
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import cutwork as cw
from cutwork import patterns
from cutwork.files.checkpoint import Checkpoint
from cutwork.files.tensor_file import read_file, write_file
from cutwork.layers.swap import sparse_layers
from cutwork.patterns import Unstructured

pytestmark = pytest.mark.grid

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
    "ste": cw.STE(every=2),
    "srste": cw.srste(decay=0.01),
    "switch": cw.Switch(cw.srste(), sparse_from=2, dense_from=5),
}
PATTERNS = ("unstructured", "block:4", "block:8x2", "vector:4", "shuffled:4", "2:4", "2:4-tile", "2:4-tile-greedy")
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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    """A checkpoint of a run that has moved masks, with its sparsifier and optimizer."""
    model = build()
    sparsifier, optimizer = make_sparse(model, track=True)
    train(model, optimizer, 0, 3)
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer, extra={"epoch": 3})
    return path


def refuses(match, path, model, sparsifier=None, optimizer=None):
    """Check that a load fails with these words and changes nothing."""
    given = [other if isinstance(other, list) else [other] for other in (sparsifier, optimizer) if other is not None]
    others = [one for several in given for one in several]
    before = everything(model, *others)
    with pytest.raises(ValueError, match=match) as error:
        cw.load(path, model, sparsifier=sparsifier, optimizer=optimizer)
    assert str(error.value).count(str(path)) == 1
    assert everything(model, *others) == before


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_a_dense_model_becomes_the_saved_one(path, method, pattern):
    model = build(convolutions)
    sparsifier, optimizer = make_sparse(model, method, pattern)
    train(model, optimizer, 0, 3)
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer)

    loaded = build(convolutions, seed=1)
    checkpoint = cw.load(path, loaded)
    assert everything(loaded) == everything(model)
    assert list(checkpoint.layers) == list(sparsifier.layers)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in loaded.parameters()] == trained
    x = torch.randn(2, 8)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["rigl", "rigl-estimate", "supermask-bits", "srste"])
def test_every_kind_of_model_resumes(path, name, method):
    model = build(MODELS[name])
    sparsifier, optimizer = make_sparse(model, method, track=True)
    train(model, optimizer, 0, 3)
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer)

    loaded = build(MODELS[name], seed=1)
    checkpoint = cw.load(path, loaded)
    again = cw.Sparsifier(checkpoint.layers, METHODS[method], track=True)
    resumed = attach(again, loaded)
    cw.load(path, loaded, sparsifier=again, optimizer=resumed)
    assert everything(loaded, again, resumed) == everything(model, sparsifier, optimizer)
    train(model, optimizer, 3, 6)
    train(loaded, resumed, 3, 6)
    assert everything(loaded, again, resumed) == everything(model, sparsifier, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumed_at_any_step_ends_like_one_never_stopped(tmp_path, method, optimizer):
    steps = 8
    model = build()
    sparsifier, trained = make_sparse(model, method, "block:2", optimizer, track=True)
    # Every step under one optimizer, and for the others the one between two moves.
    stops = range(1, steps) if optimizer == "adamw" else (3,)
    for step in range(steps):
        train(model, trained, step, step + 1)
        cw.save(model, tmp_path / str(step + 1), sparsifier=sparsifier, optimizer=trained)
    for stop in stops:
        other = build(seed=2)
        again, resumed = make_sparse(other, method, "block:2", optimizer, track=True)
        cw.load(tmp_path / str(stop), other, sparsifier=again, optimizer=resumed)
        train(other, resumed, stop, steps)
        assert everything(other, again, resumed) == everything(model, sparsifier, trained)


def test_several_sparsifiers_and_optimizers_resume(path):
    def start(seed):
        model = build(seed=seed)
        sparsifiers = [
            cw.sparsify(model, {name: "unstructured"}, density=0.25, method=METHODS[method])
            for name, method in (("0", "rigl"), ("2", "supermask"))
        ]
        optimizers = [
            OPTIMIZERS["adamw"]([{"params": model[0].parameters()}, {"params": model[2].bias, "lr": 0.5}]),
            OPTIMIZERS["sgd"]([parameter for name, parameter in model[2].named_parameters() if name != "bias"]),
        ]
        sparsifiers[0].attach(optimizers[0])
        sparsifiers[1].attach(*optimizers)
        return model, sparsifiers, optimizers

    def run(model, optimizers, begin, end):
        for step in range(begin, end):
            x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
            model.zero_grad()
            model(x).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()

    model, sparsifiers, optimizers = start(0)
    run(model, optimizers, 0, 3)
    cw.save(model, path, sparsifier=sparsifiers, optimizer=optimizers)
    other, others_sparsifiers, others_optimizers = start(1)
    cw.load(path, other, sparsifier=others_sparsifiers, optimizer=others_optimizers)
    run(model, optimizers, 3, 6)
    run(other, others_optimizers, 3, 6)
    assert everything(other, *others_sparsifiers, *others_optimizers) == everything(model, *sparsifiers, *optimizers)
    assert cw.describe(path).steps_done == [3, 3]
    assert cw.describe(path).optimizers == ["AdamW", "SGD"]
    assert read_file(path)[1]["optimizers"][0]["rest"].keys() == {"param_groups"}

    refuses("holds 2 sparsifiers; got 1; give as many", path, other, [others_sparsifiers[0]])
    refuses("move different layers; they differ in 0, 2", path, other, others_sparsifiers[::-1])
    refuses("holds AdamW, SGD; got SGD, AdamW; give the same", path, other, others_sparsifiers, others_optimizers[::-1])


def test_tied_layers_share_one_sparsity_again(path):
    model = build(Tied)
    make_sparse(model)
    cw.save(model, path)
    loaded = build(Tied, seed=1)
    checkpoint = cw.load(path, loaded)
    assert list(checkpoint.layers) == ["first"]
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.sparsity is loaded.second.sparsity
    assert cw.describe(path).layers["first"].tied == ["second"]

    other = build(Tied, seed=1)
    other.second.__class__ = Scaled
    refuses("second is fixed unstructured .*, tied to second in the checkpoint, but no layer of this", path, other)


def test_only_the_attentions_that_were_open_are_opened(path):
    model = build(lambda: nn.Sequential(Attends(), Attends()))
    cw.sparsify(model, {"0.*": "block:4"}, density=0.5)
    cw.save(model, path)
    loaded = build(lambda: nn.Sequential(Attends(), Attends()), seed=1)
    cw.load(path, loaded)
    assert type(loaded[1].attention) is nn.MultiheadAttention
    assert everything(loaded) == everything(model)


def test_parameters_stay_the_same_objects(saved):
    model = build(seed=1)
    before = [model[0].weight, model[0].bias, model[2].weight]
    cw.load(saved, model)
    assert all(a is b for a, b in zip(before, [model[0].weight, model[0].bias, model[2].weight], strict=True))


def test_what_was_saved_besides_comes_back(path):
    model = build()
    sparsifier, optimizer = make_sparse(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    train(model, optimizer, 0, 2)
    scheduler.step()
    extra = {"epoch": 2, "scheduler": scheduler.state_dict(), "rng": torch.get_rng_state(), "best": (0.5, None)}
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer, extra=extra)
    drawn = torch.rand(4)
    back = cw.load(path, model).extra
    assert bits(back) == bits(extra)
    torch.set_rng_state(back["rng"])
    assert torch.equal(torch.rand(4), drawn)


def test_a_dense_model_can_be_saved_too(path):
    cw.save(build(), path)
    loaded = build(seed=1)
    assert cw.load(path, loaded) == Checkpoint({}, {})
    assert everything(loaded) == everything(build())


def test_a_description_tells_what_the_checkpoint_holds(path):
    model = build(encoder)
    sparsifier, optimizer = make_sparse(model, "gradual", "block:4", track=True)
    train(model, optimizer, 0, 2)
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer)
    description = cw.describe(path)
    layer = description.layers["0.linear1"]
    assert (description.version, description.steps_done, description.optimizers) == (3, [2], ["AdamW"])
    assert description.attentions == ["0.self_attn"]
    assert list(description.layers) == list(sparsifier.layers)
    assert (layer.kind, layer.pattern, layer.density) == ("fixed", "block:4", 0.25)
    assert layer.mask_density == pytest.approx(float(model[0].linear1.sparsity.mask.float().mean()))
    assert layer.mask_density > layer.density


@pytest.mark.parametrize("pattern", ["2:4", "2:4-tile", "2:4-tile-greedy"])
def test_a_mask_on_the_way_to_its_pattern_is_not_refused(path, pattern):
    for method, is_legal in (("gradual", False), ("static", True)):
        model = build()
        _, optimizer = make_sparse(model, method, pattern)
        train(model, optimizer, 0, 3)
        cw.save(model, path)
        assert cw.describe(path).layers["0"].mask_is_legal == is_legal
        loaded = build(seed=1)
        cw.load(path, loaded)
        assert everything(loaded) == everything(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize("density", [0.05, 0.2])
def test_the_size_of_the_file_follows_the_density(path, density, optimizer):
    model = build(lambda: nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 8)))
    model.insert(2, nn.Linear(256, 256))
    sparsifier, built = make_sparse(model, "rigl", "block:4", optimizer, density=density)
    train(model, built, 0, 3)
    cw.save(model, path, sparsifier=sparsifier, optimizer=built)
    weights = sum(layer.weight.numel() for layer in sparsifier.layers.values())
    biases = sum(layer.bias.numel() for layer in sparsifier.layers.values())
    copies = {"sgd": 2, "adamw": 4, "rmsprop": 4}[optimizer]
    header = 8192
    assert path.stat().st_size < copies * 4 * (1.02 * density * weights + biases) + weights / 8 + header


def test_weights_outside_the_mask_are_not_lost(path):
    model = build()
    make_sparse(model)
    with torch.no_grad():
        model[0].weight.fill_(3)
    cw.save(model, path)
    loaded = build(seed=1)
    cw.load(path, loaded)
    assert everything(loaded) == everything(model)


def test_a_model_cast_after_it_was_made_sparse_keeps_its_dtypes(path):
    model = build()
    cw.sparsify(model, {"0": "unstructured"}, density=0.5, method=cw.Supermask(weight_bits=2))
    cw.sparsify(model, {"2": "unstructured"}, density=0.5, method=cw.RigL(every=2, until=4, estimate=True))
    model.double()
    cw.save(model, path)
    loaded = build(seed=1).double()
    cw.load(path, loaded)
    assert everything(loaded) == everything(model)


def test_damage_anywhere_is_found_and_changes_nothing(saved):
    whole = saved.read_bytes()
    model = build(seed=1)
    sparsifier, optimizer = make_sparse(model, track=True)
    before = everything(model, sparsifier, optimizer)
    dice = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [dice.randrange(header) for _ in range(150)] + [dice.randrange(header, len(whole)) for _ in range(150)]
    damaged = [whole[:place] + bytes([whole[place] ^ dice.randrange(1, 256)]) + whole[place + 1 :] for place in places]
    damaged += [whole[: dice.randrange(len(whole))] for _ in range(100)]
    for content in damaged:
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged|is no complete|without a description"):
            cw.load(saved, model, sparsifier=sparsifier, optimizer=optimizer)
    assert everything(model, sparsifier, optimizer) == before
    saved.write_bytes(whole)
    cw.load(saved, model, sparsifier=sparsifier, optimizer=optimizer)
    assert everything(model, sparsifier, optimizer) != before


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


def test_a_newer_version_is_refused(saved):
    rewrite(saved, lambda description, tensors: description.update(version=4))
    refuses("is a checkpoint of version 4; this cutwork reads versions up to 3; use", saved, build())
    with pytest.raises(ValueError, match="is a checkpoint of version 4"):
        cw.describe(saved)


def test_a_mask_that_is_not_legal_is_refused(path):
    model = build()
    make_sparse(model, "static", "unstructured", density=0.6)
    cw.save(model, path)
    for pattern in ("2:4", "block:2", "shuffled:2"):
        rewrite(path, lambda description, tensors, new=pattern: description["layers"]["2"].update(pattern=new))
        refuses(f"2: the mask in the checkpoint is not legal for {pattern}; save it", path, build())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: mlp(width=12),
            r"0.sparsity.mask is torch.bool \[8, 8\] in the checkpoint, but the model needs torch.bool \[12, 8\]",
        ),
        (lambda: mlp(dtype=torch.float64), r"first 0.weight: torch.float32 \[8, 8\] in .*, torch.float64 \[8, 8\] in"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(8, 8)), "2 of 6 tensors differ, first 3.weight: nothing in the check"),
        (
            lambda: nn.Sequential(*mlp()[:2], nn.Linear(8, 8, bias=False)),
            r"1 of 6 .* first 2.bias: torch.float32 \[8\]",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            "2 is fixed unstructured at density 0.25, estimate=False in the check",
        ),
        (lambda: nn.Sequential(*mlp()[:2], Scaled(8, 8)), "no layer of this model that can be; build the model"),
        (lambda: nn.DataParallel(mlp()), "build the model that was saved, without what wraps it"),
        (
            lambda: nn.Sequential(*mlp().to("meta")),
            "0.weight is on the meta device and has no memory; name the device",
        ),
    ],
    ids=["shape", "dtype", "more", "bias", "fewer", "subclass", "wrapped", "meta"],
)
def test_another_model_is_refused(saved, make, words):
    model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=words):
        cw.load(saved, model)
    assert repr(model) == before


def test_a_layer_of_another_orientation_is_refused(path):
    model = build(conv1d)
    make_sparse(model)
    cw.save(model, path)
    refuses("no layer of this model that can be", path, nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)))


def test_tied_weights_must_be_tied_in_both(path):
    model = build(Tied)
    cw.save(model, path)
    untied = build(Tied)
    untied.second.weight = nn.Parameter(untied.second.weight.detach().clone())
    refuses(r"1 of 6 tensors differ, first second.weight: .* tied to again.0.weight in the checkpoint", path, untied)
    cw.save(untied, path)
    refuses(r"1 of 6 tensors differ, first second.weight: .* tied to again.0.weight in the model", path, model)


def test_extra_state_must_be_in_both(path):
    cw.save(build(MODELS["extra-state"]), path)
    refuses("first 1._extra_state: no tensor in the checkpoint, nothing in the model", path,
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "method", "density", "words"),
    [
        (
            "block:2",
            "rigl",
            0.25,
            ": 0 has pattern unstructured in the checkpoint, but pattern block:2 in the model; sparsify",
        ),
        (
            "unstructured",
            "srste",
            0.25,
            ": 0 has kind fixed and estimate False and decay none in the .* kind reprojected and .* and decay 0.01",
        ),
        (
            "unstructured",
            "rigl-estimate",
            0.25,
            ": 0 has estimate False in the checkpoint, but estimate True in the model",
        ),
        ("unstructured", "rigl", 0.5, ": 0 has density 0.25 in the checkpoint, but density 0.5 in the model; sparsify"),
    ],
)
def test_a_model_sparse_in_another_way_is_refused(saved, pattern, method, density, words):
    model = build(seed=1)
    make_sparse(model, method, pattern, density=density)
    refuses(words, saved, model)


def test_a_model_with_more_sparse_layers_is_refused(path):
    model = build()
    cw.sparsify(model, {"0": "block:2"}, density=0.5)
    cw.save(model, path)
    other = build(seed=1)
    cw.sparsify(other, "block:2", density=0.5)
    refuses("2 is fixed block:2 at density 0.5, estimate=False in the model, but not sparse in the", path, other)


def test_a_model_may_be_sparse_in_part(saved):
    model = build(seed=1)
    cw.sparsify(model, {"2": "unstructured"}, density=0.25)
    cw.load(saved, model)
    reference = build()
    cw.load(saved, reference)
    assert everything(model) == everything(reference)


def test_another_optimizer_is_refused(saved):
    model = build(seed=1)
    sparsifier, optimizer = make_sparse(model, track=True)
    sparsifier.detach()
    refuses("holds AdamW; got SGD; give the same", saved, model, None, OPTIMIZERS["sgd"](model.parameters()))
    parameters = list(model.parameters())
    for given, words in {
        "fewer": (parameters[:-1], "first the end where that had 2.bias"),
        "order": (parameters[::-1], "first 2.bias where that had 0.weight"),
        "foreign": ([*parameters[:-1], nn.Parameter(torch.ones(8))], "first a parameter of another model where that"),
        "groups": (
            [{"params": parameters[:2]}, {"params": parameters[2:]}],
            "first the begin of a group where that had 2.weight",
        ),
    }.values():
        refuses(words, saved, model, None, OPTIMIZERS["adamw"](given))
    cw.load(saved, model, optimizer=optimizer)
    cw.save(model, saved)
    refuses("holds no optimizer; got AdamW", saved, model, None, optimizer)


def test_an_optimizer_made_before_its_layers_were_sparse_is_refused(path):
    for make, method in ((mlp, "supermask"), (Attends, "rigl")):
        model = build(make)
        _, optimizer = make_sparse(model, method)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        cw.save(model, path, optimizer=optimizer)
        dense = build(make)
        refuses("after their layers are sparse", path, dense, None, OPTIMIZERS["adamw"](dense.parameters()))


def test_an_optimizer_resumes_without_a_sparsifier_where_masks_rest(path):
    model = build()
    cw.sparsify(model, "block:2", density=0.5)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 0, 2)
    cw.save(model, path, optimizer=optimizer)
    other = build(seed=1)
    resumed = OPTIMIZERS["sgd"](other.parameters())
    cw.load(path, other, optimizer=resumed)
    assert everything(other, resumed) == everything(model, optimizer)


def test_another_sparsifier_is_refused(saved):
    model = build(seed=1)
    sparsifier = cw.sparsify(model, {"0": "unstructured"}, density=0.25, method=METHODS["rigl"])
    refuses("move different layers; they differ in 2; make it", saved, model, sparsifier)
    foreign, _ = make_sparse(build(seed=1))
    refuses("the sparsifier moves 0, which is no sparse layer of this model", saved, model, foreign)
    with pytest.raises(ValueError, match="the sparsifier moves 0, which is no sparse layer of this model"):
        cw.save(model, saved, sparsifier=foreign)


def test_a_sparsifier_of_another_method_is_refused(path):
    model = build()
    sparsifier, _ = make_sparse(model)
    cw.save(model, path, sparsifier=sparsifier)
    other = build(seed=1)
    static = cw.sparsify(other, "unstructured", density=0.25)
    refuses("the sparsifier saved moves masks by RigL, the one given by Static; sparsify", path, other, static)
    rewrite(path, lambda description, tensors: description["sparsifiers"][0].pop("method"))
    cw.load(path, other, sparsifier=static)


def test_exploration_that_was_not_saved_is_refused(path):
    model = build()
    sparsifier, _ = make_sparse(model)
    cw.save(model, path, sparsifier=sparsifier)
    other = build(seed=1)
    tracked, _ = make_sparse(other, track=True)
    refuses("the sparsifier was saved without exploration; make this with track=False", path, other, tracked)
    cw.save(model, path)
    refuses("holds 0 sparsifiers; got 1; give as many, or none", path, other, tracked)


def test_an_attached_optimizer_does_not_travel_without_its_sparsifier(saved):
    model = build(seed=1)
    _, optimizer = make_sparse(model, track=True)
    refuses("AdamW is attached to a sparsifier that is not given", saved, model, None, optimizer)
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="AdamW is attached to a sparsifier that is not given"):
        cw.save(model, saved, optimizer=optimizer)
    assert saved.read_bytes() == before


def test_a_pattern_without_a_text_form_is_refused(path, monkeypatch):
    model = build()
    sparsifier, _ = make_sparse(model)
    monkeypatch.setitem(patterns.PATTERNS, "unstructured", ("unstructured", lambda: "something else"))
    with pytest.raises(ValueError, match=r"0 has the pattern Unstructured\(\), whose text form 'unstructured' parse"):
        cw.save(model, path)
    # Not delitem, which would put the row back at another place.
    rows = {example: row for example, row in patterns.PATTERNS.items() if example != "unstructured"}
    monkeypatch.setattr(patterns, "PATTERNS", rows)
    with pytest.raises(ValueError, match="give it a row in PATTERNS"):
        cw.save(model, path)
    assert sparsifier.layers["0"].sparsity.pattern == Unstructured()
    assert not path.exists()


def test_a_sharded_model_is_refused(path, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = build()
        cw.save(model, path)
        model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), init_device_mesh("cpu", (1,))))
        for call in (cw.save, lambda model, path: cw.load(path, model)):
            with pytest.raises(ValueError, match=r"0.weight is sharded over processes; use torch.distributed.checkp"):
                call(model, path)
    finally:
        torch.distributed.destroy_process_group()


def test_a_file_that_is_no_checkpoint_is_refused(path):
    model = build()
    safetensors.torch.save_model(model, path)
    refuses("without a description of sparse layers; load it into a dense model", path, model)
    path.write_bytes(b"")
    refuses("is no complete safetensors file", path, model)


def test_other_programs_read_the_weights(saved):
    tensors = safetensors.torch.load_file(saved)
    model = build(seed=1)
    layers = cw.load(saved, model).layers
    for name, layer in layers.items():
        assert torch.equal(tensors[f"{name}.weight"], layer.weight[layer.sparsity.mask])
        assert torch.equal(tensors[f"{name}.bias"], layer.bias)


def test_a_copy_of_a_model_can_be_saved_and_loaded(saved):
    model = build()
    cw.load(saved, model)
    twin = copy.deepcopy(model)
    cw.load(saved, twin)
    cw.save(twin, saved)
    loaded = build(seed=1)
    cw.load(saved, loaded)
    assert everything(loaded) == everything(model)


# The weights are large, so that most kills fall into the writing.
SAVE_FOREVER = """
import sys, torch, cutwork
model = torch.nn.Sequential(torch.nn.Linear(512, 512))
sparsifier = cutwork.sparsify(model, "block:16", density=0.5)
for version in range(1_000_000):
    with torch.no_grad():
        model[0].weight.copy_(torch.where(model[0].sparsity.mask, float(version), 0))
    cutwork.save(model, sys.argv[1], sparsifier=sparsifier, extra={"version": version})
"""


def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    dice = random.Random()
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    for _ in range(2):
        before = {folder: (folder / "a").stat().st_ino if (folder / "a").exists() else None for folder in folders}
        children = {
            folder: subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, folder / "a"], stderr=subprocess.PIPE)
            for folder in folders
        }
        for folder, child in children.items():
            deadline = time.monotonic() + 60
            while not (folder / "a").exists() or (folder / "a").stat().st_ino == before[folder]:
                assert child.poll() is None, child.stderr.read()
                assert time.monotonic() < deadline, "the process has not saved anything"
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.1))
            child.kill()
            child.communicate()
            model = nn.Sequential(nn.Linear(512, 512))
            version = cw.load(folder / "a", model).extra["version"]
            assert torch.equal(model[0].weight, model[0].sparsity.mask * float(version))
            # Beside the file there is at most what this one process left.
            assert len(list(folder.iterdir())) <= 2
    for folder in folders:
        cw.save(build(), folder / "a")
        assert [file.name for file in folder.iterdir()] == ["a"]


def golden_model():
    return nn.Sequential(nn.Linear(8, 8), Attends(), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).eval()


def test_the_golden_file_of_version_1_loads():
    model = golden_model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    checkpoint = cw.load(GOLDEN, model)
    assert {name: str(record) for name, record in cw.describe(GOLDEN).layers.items()} == {
        "0": "learned block:2 at density 0.5, score_range=[-1.0, 1.0], dense_weight_gradient=False, bits=3",
        "1.attention.q_proj": "fixed unstructured at density 0.25, estimate=False",
        "2": "reprojected 2:4 at density 0.5, decay=0.0002",
        "3": "fixed shuffled:2x4 at density 0.5, estimate=True",
    }
    assert list(checkpoint.layers) == list(cw.describe(GOLDEN).layers)
    assert checkpoint.extra["epoch"] == 2
    assert model[0].sparsity.score_range == (-1.0, 1.0)
    with torch.no_grad():
        y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(y, torch.tensor(json.loads(GOLDEN.with_suffix(".json").read_text())["y"]))


def compressed_golden_model():
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8, bias=False))


def test_the_golden_file_of_version_2_loads():
    path = GOLDEN.with_name("v2.safetensors")
    model = compressed_golden_model()
    layers = cw.load(path, model).layers
    assert {name: str(record) for name, record in cw.describe(path).layers.items()} == {
        "0": "fixed block:4x3 at density 0.5, estimate=True, compressed",
        "2": "fixed shuffled:4x1 at density 0.5, estimate=True, compressed",
        "4": "fixed unstructured at density 0.5, estimate=True",
    }
    sparsifier = cw.Sparsifier(layers, cw.RigL(every=2, until=9, estimate=True))
    optimizer = attach(sparsifier, model)
    cw.load(path, model, sparsifier=sparsifier, optimizer=optimizer)
    assert sparsifier.steps_done == 3
    y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(y, torch.tensor(json.loads(path.with_suffix(".json").read_text())["y"]))
    train(model, optimizer, 3, 5)


def low_golden_model():
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8, bias=False)).eval()


def test_the_golden_file_of_version_3_loads():
    path = GOLDEN.with_name("v3.safetensors")
    model = low_golden_model()
    cw.load(path, model)
    assert {name: str(record) for name, record in cw.describe(path).layers.items()} == {
        "0": "fixed block:4x3 at density 0.5, int8",
        "2": "fixed shuffled:4x1 at density 0.5, int8",
        "4": "fixed block:2 at density 0.5, estimate=False, compressed in bfloat16",
    }
    with torch.no_grad():
        y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(
        y, torch.tensor(json.loads(path.with_suffix(".json").read_text())["y"]), rtol=1e-2, atol=1e-3
    )


def test_training_goes_on_from_the_golden_file():
    model = golden_model()
    layers = cw.load(GOLDEN, model).layers
    methods = [cw.Supermask(), METHODS["rigl"], cw.srste(), METHODS["rigl-estimate"]]
    sparsifiers = [
        cw.Sparsifier({name: layer}, method, track=place == 1)
        for place, ((name, layer), method) in enumerate(zip(layers.items(), methods, strict=True))
    ]
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for sparsifier in sparsifiers:
        sparsifier.attach(optimizer)
    cw.load(GOLDEN, model, sparsifier=sparsifiers, optimizer=optimizer)
    assert [sparsifier.steps_done for sparsifier in sparsifiers] == [2, 2, 2, 2]
    assert len(sparsifiers[1].exploration["1.attention.q_proj"].turnovers) == 1
    recorded = json.loads(GOLDEN.with_suffix(".json").read_text())
    assert optimizer.param_groups[0]["lr"] == 0.05
    momentum = [float(state["momentum_buffer"].double().abs().sum()) for state in optimizer.state.values()]
    assert momentum == pytest.approx(recorded["momentum"], rel=1e-6)
    assert set(sparse_layers(model)) == set(layers)


COMPRESSED_METHODS = ("static", "gradual", "granet", "rigl", "rigl-estimate", "set", "srigl")


def compressed_run(make=mlp, method="rigl", pattern="block:2", **options):
    """Return a run in compressed storage that has moved its masks."""
    model = build(make)
    sparsifier, optimizer = make_sparse(model, method, pattern, storage="compressed", density=0.4, **options)
    train(model, optimizer, 0, 3)
    return model, sparsifier, optimizer


@pytest.mark.parametrize("pattern", ["block:4", "block:3x5", "vector:4", "shuffled:4"])
@pytest.mark.parametrize("method", COMPRESSED_METHODS)
@pytest.mark.parametrize("make", [mlp, encoder, conv1d, Tied])
def test_a_dense_model_becomes_the_saved_compressed_one(path, make, method, pattern):
    model, *_ = compressed_run(make, method, pattern)
    cw.save(model, path)
    other = build(make, seed=5)
    cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in model.named_parameters()]
    x = torch.randn(3, 8)
    assert torch.equal(other(x), model(x))


def test_a_file_says_how_each_layer_is_stored(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    records = cw.describe(path).layers
    assert str(records["0"]) == "fixed block:2 at density 0.4, estimate=False, compressed"
    assert records["0"].storage == "compressed"
    assert cw.describe(GOLDEN).layers["0"].storage == "dense"


def test_a_file_of_a_compressed_model_holds_little_more_than_what_is_kept(path):
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    cw.sparsify(model, "block:16", density=0.1, storage="compressed")
    cw.save(model, path)
    assert path.stat().st_size < 0.12 * 512 * 512 * 4


def test_the_storages_of_file_and_model_must_agree(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    other = build()
    cw.sparsify(other, "block:2", density=0.4, method=METHODS["rigl"])
    refuses(
        r': 0 has storage compressed in the .* but storage dense in the model; pack\(model, forms="tiles"\) it',
        path,
        other,
    )
    cw.save(other, path)
    refuses(r": 0 has storage dense in the .*, but storage compressed in the model; unpack\(\) it first", path, model)


def packed(forms, make=mlp, pattern="block:2", seed=0):
    model = build(make, seed=seed)
    cw.sparsify(model, pattern, density=0.4)
    cw.pack(model, forms=forms)
    return model.eval()


LOW = {
    "int8": "tiles-int8",
    "bf16": "tiles-bf16",
    "mixed": {"0": "tiles-int8", "2": "tiles-bf16"},
    "in part": {"0": "tiles-int8", "2": "dense"},
}


@pytest.mark.parametrize("pattern", ["block:4", "block:3x5", "vector:4", "shuffled:4"])
@pytest.mark.parametrize("what", LOW)
def test_a_dense_model_becomes_the_saved_one_in_fewer_bits(path, what, pattern):
    model = packed(LOW[what], pattern=pattern)
    cw.save(model, path)
    other = build(seed=5).eval()
    checkpoint = cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    assert set(checkpoint.layers) == set(sparse_layers(model))
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    again = packed(LOW[what], pattern=pattern, seed=0)
    cw.load(path, again)
    assert bits(dict(again.state_dict())) == bits(dict(model.state_dict()))
    cw.save(other, path)
    assert str(cw.report(other)) == str(cw.report(model))
    assert cw.flops(other, x) == cw.flops(model, x)


@pytest.mark.parametrize("make", [encoder, conv1d, Tied, Attends, MODELS["bfloat16"]])
@pytest.mark.parametrize("form", ["tiles-int8", "tiles-bf16"])
def test_every_kind_of_model_comes_back_in_fewer_bits(path, form, make):
    model = packed({"*": form} if make is not Tied else {"first": form, "second": form}, make)
    cw.save(model, path)
    other = build(make, seed=5).eval()
    cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    x = torch.randn(3, 8).to(next(iter(build(make).parameters())).dtype)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_a_file_says_which_layers_compute_in_fewer_bits(path):
    cw.save(packed(LOW["mixed"]), path)
    records = cw.describe(path).layers
    assert str(records["0"]) == "fixed block:2 at density 0.4, int8"
    assert str(records["2"]) == "fixed block:2 at density 0.4, estimate=False, compressed in bfloat16"
    assert records["0"].mask_density == 0.375


def test_a_layer_in_bfloat16_of_an_earlier_file_needs_a_model_packed_alike(path):
    model = packed({"0": "tiles-bf16", "2": "tiles"})
    cw.save(model, path)

    def age(description, tensors):
        description["version"] = 2
        for record in description["layers"].values():
            del record["converts"]

    rewrite(path, age)
    refuses(r"0 holds torch.bfloat16 in .* call pack\(model, forms=\{'0': 'tiles-bf16'\}\) before", path, build(seed=1))
    other = packed({"0": "tiles-bf16", "2": "tiles"}, seed=1)
    cw.load(path, other)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))


def test_a_model_in_int8_takes_any_mask(path):
    model = packed("tiles-int8", pattern="block:3x1")
    cw.save(model, path)
    others = [packed("tiles-int8", pattern="block:3x1", seed=seed) for seed in range(1, 6)]
    assert any(len(other[0].integers) != len(model[0].integers) for other in others)
    for other in others:
        layer = other[0]
        cw.load(path, other)
        assert other[0] is layer
        assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
        with torch.no_grad():
            assert torch.equal(other(torch.ones(2, 8)), model(torch.ones(2, 8)))


def test_a_model_in_int8_of_another_storage_is_refused(path):
    cw.save(packed("tiles-int8"), path)
    refuses("0 has storage int8 .* but storage compressed .*; load into a dense model", path,
            packed("tiles"))  # fmt: skip
    cw.save(packed("tiles"), path)
    refuses("but storage int8 and .* in the model; load into a dense model", path, packed("tiles-int8"))
    cw.save(build(), path)
    refuses("0 is fixed block:2 at density 0.4, int8 in the model, but not sparse in the", path, packed("tiles-int8"))


INT8_CRAFTED = {
    "a convolution": (
        lambda d, t: d["layers"].update({"1": d["layers"].pop("0")}),
        "1 is fixed .* but no layer of this",
    ),
    "no integers": (
        without("model", "0.integers"),
        "0.integers is missing in the checkpoint, where 0 is fixed block:2 at density 0.4, int8",
    ),
    "a step less": (
        lambda d, t: t.update({"0.integers": t["0.integers"][1:]}),
        "0: its int8 weight is damaged: ptr needs",
    ),
    "a col": (lambda d, t: t.update({"0.col": t["0.col"] + 1000}), "0: its int8 weight is damaged: col holds"),
    "scales": (lambda d, t: t.update({"0.scales": t["0.scales"][1:]}), r"0.scales is torch.float32 \[7\] in the"),
    "a bias": (lambda d, t: t.update({"0.bias": t["0.bias"].double()}), "0.bias is torch.float64"),
    "an estimate": (
        to("layers", "0", "options", "estimate", value=True),
        "has an estimate where only masks that train",
    ),
    "ties": (to("layers", "0", "tied", value=["3"]), "layers/0 is in int8, which only a layer of its own"),
    "converts": (to("layers", "0", "converts", value=True), "layers/0 is int8, but converts, which only compressed"),
    "dense": (to("layers", "0", "storage", value="dense"), "layers/0/options has an estimate where .*, or lacks it"),
}


@pytest.mark.parametrize("what", INT8_CRAFTED)
def test_a_file_of_a_model_in_int8_with_wrong_content_is_refused(path, what):
    cw.save(packed("tiles-int8"), path)
    change, words = INT8_CRAFTED[what]
    rewrite(path, change)
    refuses(words, path, build(seed=1))


INDEX_DAMAGES = {
    "a col": ("0.sparsity.col", lambda col: col.index_fill(0, torch.tensor([0]), 100), "units of 2 inputs begin at"),
    "a ptr": ("0.sparsity.ptr", lambda ptr: ptr + 1, "ptr must rise from 0 to the number of units"),
    "dtype": ("0.sparsity.ptr", lambda ptr: ptr.long(), r"0.sparsity.ptr.* torch.int64 \[5\] in the checkpoint"),
    "values": ("0.values", lambda values: values[1:], r"has values of shape|\[5, 2, 2\] in the check"),
    "dtype of values": ("0.values", lambda values: values.double(), r"0.values.* torch.float64 \[6, 2, 2\] in the"),
}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("what", INDEX_DAMAGES)
def test_a_damaged_index_in_a_file_is_refused_before_anything_changes(path, what, is_compressed):
    model, sparsifier, optimizer = compressed_run()
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer)
    key, damage, words = INDEX_DAMAGES[what]
    rewrite(path, lambda description, tensors: tensors.update({key: damage(tensors[key])}))
    if is_compressed:
        other, sparsifier, optimizer = compressed_run()
        refuses(words, path, other, sparsifier, optimizer)
    else:
        refuses(words, path, build())


def test_a_compressed_weight_that_does_not_fit_the_model_is_refused(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    refuses(r"0.bias: torch.float32 \[8\] in the checkpoint, torch.float32 \[12\] in the model", path, mlp(width=12))


def none_kept_of_a_huge_pattern(description, tensors):
    description["layers"]["0"]["pattern"] = "block:1000000000"
    tensors["0.values"] = torch.zeros(0, 1_000_000_000, 1_000_000_000)
    tensors["0.sparsity.ptr"] = torch.zeros(2, dtype=torch.int32)
    tensors["0.sparsity.col"] = torch.zeros(0, dtype=torch.int32)


STATE = ("optimizers", 0, "state")
CRAFTED = {
    "a part less": (without("extra"), "the description lacks 'extra'"),
    "a part more": (to("more", value=1), "the description has 'more', which is unknown"),
    "no version": (without("version"), "it is a checkpoint of version None"),
    "layers that are none": (to("layers", value=[]), "the description/layers is .., but must be an object"),
    "a record less": (without("layers", "0", "kind"), "layers/0 lacks 'kind'"),
    "a record more": (to("layers", "0", "mood", value=1), "layers/0 has 'mood', which is unknown"),
    "an unknown kind": (to("layers", "0", "kind", value="x"), "layers/0 is of the kind 'x', but there are fixed, repr"),
    "an unknown storage": (
        to("layers", "0", "storage", value="x"),
        "layers/0 has the storage 'x', but there are dense",
    ),
    "an unknown option": (to("layers", "0", "options", "x", value=1), "layers/0/options has 'x', which is unknown"),
    "an unknown pattern": (to("layers", "0", "pattern", value="x"), "unknown pattern 'x'"),
    "a density": (
        to("layers", "0", "density", value=float("nan")),
        "layers/0/density is nan, but must be a number from",
    ),
    "a pattern without tiles": (
        to("layers", "0", "storage", value="compressed"),
        "0 is compressed: unstructured has no",
    ),
    "a learned one": (
        lambda description, tensors: description["layers"]["0"].update(
            kind="reprojected", options={"decay": 0.0}, storage="compressed", pattern="block:2"
        ),
        "layers/0 is compressed, which only fixed masks are",
    ),
    "a layer twice": (to("layers", "0", "tied", value=["2"]), "2 is described twice"),
    "a layer tied to itself": (to("layers", "0", "tied", value=["0"]), "0 is described twice"),
    "an attention": (to("attentions", value=["1"]), "1 is an attention in the checkpoint, but none in the model"),
    "a huge shape": (to("model", "0.sparsity.mask", "shape", value=[10**6, 10**5]), "in another form than elsewhere"),
    "a tensor that is missing": (
        to("model", "0.bias", value={"$tensor": "x"}),
        "0.bias is the tensor 'x', which the file",
    ),
    "a number": (to("model", "0.bias", value=3), "first 0.bias: no tensor in the checkpoint"),
    "deep": (to("extra", "a", value=json.loads("[" * 300 + "]" * 300)), "extra lies more than 100 deep"),
    "extra": (to("extra", value={"$tuple": []}), "the description has .* where names stand"),
    "a state of another shape": (
        lambda description, tensors: tensors.update({"@optimizer/0/1/exp_avg": torch.ones(3)}),
        r"AdamW remembers exp_avg \[3\] of a parameter \[8\], where it needs \[8\]; load an earlier",
    ),
    "a state less": (without(*STATE, 1, 1, "exp_avg"), r"AdamW remembers exp_avg None of a parameter \[8\], where it"),
    "a state of numbers": (
        to(*STATE, 1, 1, "exp_avg", value=1.0),
        r"AdamW remembers exp_avg 1.0 of a parameter \[8\], where",
    ),
    "a state of the wrong parameter": (to(*STATE, 0, 0, value=1), "a place stands twice"),
    "a state of no parameter": (to(*STATE, 0, 0, value=9), "it remembers something of parameter 9, which it does not"),
    "a step": (to(*STATE, 0, 1, "step", value="x"), "AdamW refuses the state that was saved: "),
    "steps below zero": (
        lambda description, tensors: tensors.update({"@optimizer/0/1/step": torch.tensor(-1.0)}),
        "AdamW remembers step",
    ),
    "a state that is none": (to(*STATE, 0, 1, value={"$tuple": []}), "the description has .* where names stand"),
    "a group less": (
        to("optimizers", 0, "rest", "param_groups", value=[]),
        "its groups have not as many places as parameters",
    ),
    "no groups": (to("optimizers", 0, "rest", value={}), "param_groups is None, but must be a list"),
    "a place less": (
        lambda description, tensors: description["optimizers"][0]["rest"]["param_groups"][0]["params"].pop(),
        "its groups have not as many places as parameters",
    ),
    "a place that is none": (
        to("optimizers", 0, "rest", "param_groups", 0, "params", value=[0, 1, 2, None]),
        "param_groups/0/params/3 is None, but must be a whole number",
    ),
    "no rate": (
        without("optimizers", 0, "rest", "param_groups", 0, "lr"),
        "AdamW can take no step with the settings that were saved; load",
    ),
    "a rate of text": (
        to("optimizers", 0, "rest", "param_groups", 0, "lr", value="x"),
        "AdamW can take no step with the settings",
    ),
    "betas": (
        to("optimizers", 0, "rest", "param_groups", 0, "betas", value=[0.1]),
        "AdamW can take no step with the settings",
    ),
    "steps in the groups": (
        to("optimizers", 0, "rest", "param_groups", 0, "cutwork:0", value="x"),
        "param_groups/0/cutwork:0 is 'x', but must be a whole number",
    ),
    "a sparsifier's state": (
        to("optimizers", 0, "rest", "cutwork:0", value={}),
        "cutwork:0, which belongs to a sparsifier",
    ),
    "steps": (to("sparsifiers", 0, "state", "steps_done", value=-1), "steps_done is -1, but must be a whole number"),
    "exploration": (to("sparsifiers", 0, "state", "exploration", value=[]), "exploration is .., but must be an object"),
    "explored shapes": (
        to("sparsifiers", 0, "state", "exploration", "0", "ever", value={"$tensor": "0.bias"}),
        r"the exploration of 0 is torch.float32 \[8\], where its mask is \[8, 8\]",
    ),
    "turnovers": (
        to("sparsifiers", 0, "state", "exploration", "0", "turnovers", value=["x"]),
        "exploration/0/turnovers/0 is 'x', but must be a number",
    ),
}


CRAFTED_FOR_DENSE = {
    "compressed": (
        lambda description, tensors: description["layers"]["0"].update(storage="compressed", pattern="block:2"),
        "0.sparsity.col is missing in the checkpoint",
    ),
    "a huge pattern": (to("layers", "0", "pattern", value="block:1000000000"), "not legal for block:1000000000"),
    "a pattern that fits no mask": (to("layers", "0", "pattern", value="1:3"), "1:3 cannot tile 8 inputs"),
    "an estimate that is missing": (
        to("layers", "0", "options", "estimate", value=True),
        "0.sparsity.energy_in is missing in the check",
    ),
    "a mask of a weight": (
        to("model", "0.sparsity.mask", value={"$tensor": "0.bias"}),
        "0.sparsity.mask is torch.float32",
    ),
    "a mask that is none": (to("model", "0.sparsity.mask", value=3), "0.sparsity.mask is no tensor in the checkpoint"),
    "a name for a mask": (
        lambda description, tensors: description["model"].update({"3.x": description["model"]["0.sparsity.mask"]}),
        "tensors differ, first 3.x: torch.bool .* tied to 0.sparsity.mask in the checkpoint, nothing in the model",
    ),
}


@pytest.mark.parametrize("what", CRAFTED_FOR_DENSE)
def test_a_file_that_would_make_a_model_unsound_is_refused(saved, what):
    change, words = CRAFTED_FOR_DENSE[what]
    rewrite(saved, change)
    refuses(words, saved, build(seed=1))


def test_copies_of_next_to_nothing_are_refused(path):
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    cw.sparsify(model, "unstructured", density=0.001)
    cw.save(model, path)

    def many(description, tensors):
        node, kept = description["model"]["0.weight"], tensors["0.weight"]
        description["extra"] = {str(number): {**node, "$kept": f"copy{number}"} for number in range(300)}
        tensors.update({f"copy{number}": kept for number in range(300)})

    rewrite(path, many)
    other = nn.Sequential(nn.Linear(256, 256, bias=False))
    refuses(r"its \d+ bytes of tensors ask for \d+ bytes, more than they and the model account for", path, other)


@pytest.mark.parametrize("what", CRAFTED)
def test_a_file_with_true_digests_and_wrong_content_is_refused(saved, what):
    change, words = CRAFTED[what]
    rewrite(saved, change)
    model = build(seed=1)
    sparsifier, optimizer = make_sparse(model, track=True)
    refuses(words, saved, model, sparsifier, optimizer)


def test_what_is_kept_of_nothing_takes_no_memory(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    rewrite(path, none_kept_of_a_huge_pattern)
    refuses("0 keeps no unit, and those of block:1000000000 are larger than it is; save it with", path, build(seed=1))


@pytest.mark.parametrize("changes", [without("layers", "0", "kind"), to("attentions", value=3), to("version", value=9)])
def test_a_description_of_another_form_is_not_described(saved, changes):
    rewrite(saved, changes)
    with pytest.raises(ValueError, match=f"^{saved}: .*"):
        cw.describe(saved)


class Refuses(Remembers):
    def set_extra_state(self, state):
        if state["seen"] == 7:
            raise KeyError("seven")
        super().set_extra_state(state)


def test_a_module_that_refuses_its_extra_state_changes_nothing(path):
    model = nn.Sequential(Remembers(8, 8), nn.Linear(8, 8), Refuses(8, 8))
    model[0].seen, model[2].seen = 5, 7
    cw.sparsify(model, {"1": "block:2"}, density=0.5)
    cw.save(model, path)
    other = nn.Sequential(Remembers(8, 8), nn.Linear(8, 8), Refuses(8, 8))
    refuses(r"2 refuses its extra state: KeyError\('seven'\); load another", path, other)
    assert other[0].seen == 0
    assert type(other[1]) is nn.Linear


class Stubborn(torch.optim.SGD):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if self.param_groups[0]["momentum"] == 0.5:
            raise RuntimeError("I will not")


def test_an_optimizer_that_refuses_its_state_changes_nothing(path):
    model = build()
    sparsifier = cw.sparsify(model, "block:2", density=0.5, method=METHODS["rigl"])
    optimizers = [torch.optim.SGD([model[0].weight], 0.1), Stubborn([model[2].weight], 0.1, momentum=0.5)]
    model[0].bias.requires_grad_(False), model[2].bias.requires_grad_(False)
    sparsifier.attach(*optimizers)
    for _ in range(3):
        model(torch.randn(2, 8)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizers)
    other = build(seed=1)
    again = cw.sparsify(other, "block:2", density=0.5, method=METHODS["rigl"])
    fresh = [torch.optim.SGD([other[0].weight], 0.1), Stubborn([other[2].weight], 0.1)]
    again.attach(*fresh)
    refuses(r"Stubborn refuses the state that was saved: RuntimeError\('I will not'\)", path, other, again, fresh)
    assert not any(optimizer.state for optimizer in fresh)


def test_layers_without_a_shape_are_refused(path):
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    cw.save(build(), path)
    for call in (cw.save, lambda model, path: cw.load(path, model)):
        with pytest.raises(ValueError, match=r"1.weight has no shape yet; run one batch through the model first"):
            call(lazy, path)


def test_a_layer_that_cannot_have_a_mask_is_refused(saved):
    model = build(seed=1)
    prune.identity(model[2], "weight")
    with pytest.raises(
        ValueError, match=r"2 is fixed .* in the checkpoint, but cannot be: its weight is computed anew"
    ):
        cw.load(saved, model)
    assert type(model[0]) is nn.Linear


def test_a_closed_attention_is_opened_only_where_the_file_says_so(path):
    model = build(Attends)
    cw.sparsify(model, {"*.q_proj": "block:2"}, density=0.5)
    cw.save(model, path)
    rewrite(path, to("attentions", value=[]))
    refuses("attention.q_proj is fixed .* but no layer of this model that can be", path, build(Attends, seed=1))


def test_an_optimizer_of_another_origin_keeps_what_it_likes(path):
    class Whitens(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["sum"] = torch.ones(3, 3)

    model = build()
    optimizer = Whitens(model.parameters(), lr=0.1)
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    cw.save(model, path, optimizer=optimizer)
    other = build(seed=1)
    again = Whitens(other.parameters(), lr=0.1)
    cw.load(path, other, optimizer=again)
    assert bits(again.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_every_optimizer_of_torch_says_which_settings_it_cannot_do_without(path, optimizer):
    model = build()
    built = OPTIMIZERS[optimizer](model.parameters())
    train(model, built, 0, 2)
    cw.save(model, path, optimizer=built)
    rewrite(path, without("optimizers", 0, "rest", "param_groups", 0, "lr"))
    other = build(seed=1)
    refuses(
        "can take no step with the settings that were saved",
        path,
        other,
        None,
        OPTIMIZERS[optimizer](other.parameters()),
    )


class Mixed(nn.Module):
    """Linear layers of which two share a weight, a convolution, an attention and a norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        x = self.second(self.first(self.norm(self.conv(x)).flatten(2)[..., :32]))
        return self.head(self.attention(x, x, x)[0])


@pytest.mark.parametrize(
    ("storage", "method"),
    [("dense", "rigl"), ("compressed", "rigl"), ("compressed", "estimate"), ("dense", "supermask"), ("int8", "static")],
)
def test_a_model_on_the_meta_device_gets_all_of_a_file(storage, method, tmp_path):
    torch.manual_seed(0)
    methods = {"rigl": cw.RigL(every=1, until=9), "estimate": cw.RigL(every=1, until=9, estimate=True)}
    model, x = Mixed(), torch.randn(2, 8, 6, 6)
    cw.sparsify(
        model,
        {"*": "block:4", "head": "dense"},
        density=0.4,
        method=methods.get(method, method),
        storage="compressed" if storage == "compressed" else "dense",
    )
    if storage == "int8":
        cw.pack(model, forms={"first": "int8", "second": "int8", "conv": "tiles"})
    cw.save(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        bare = Mixed()
    with pytest.raises(ValueError, match="is on the meta device and has no memory; name the device"):
        cw.load(tmp_path / "model.safetensors", bare)
    checkpoint = cw.load(tmp_path / "model.safetensors", bare, device="cpu")
    assert not any(tensor.is_meta for tensor in (*bare.parameters(), *bare.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(bare.eval()(x), model.eval()(x))
    if storage == "int8":
        return
    assert bare.first.trained is bare.second.trained
    assert [p.requires_grad for p in bare.parameters()] == [p.requires_grad for p in model.parameters()]
    # It trains on as the other does.
    trained = []
    for each, layers in ((bare, checkpoint.layers), (model, cw.load(tmp_path / "model.safetensors", model).layers)):
        sparsifier = cw.Sparsifier(layers, methods.get(method, cw.Supermask()))
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        sparsifier.attach(optimizer)
        each.train()
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
        trained.append(each.eval()(x))
    assert torch.equal(*trained)


def test_what_a_file_cannot_give_a_model_on_the_meta_device_is_named(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    sparsifier = cw.sparsify(model, "block:4", density=0.5, storage="compressed")
    cw.save(model, tmp_path / "model.safetensors", sparsifier=sparsifier)
    with pytest.raises(ValueError, match="with a device the model gets new parameters"):
        cw.load(tmp_path / "model.safetensors", model, sparsifier=sparsifier, device="cpu")
    with torch.device("meta"):
        bare = nn.Sequential(nn.Linear(16, 16))
        bare.register_buffer("angles", torch.empty(3), persistent=False)
    with pytest.raises(ValueError, match="angles is on the meta device and in no file"):
        cw.load(tmp_path / "model.safetensors", bare, device="cpu")
    assert bare[0].weight.is_meta
