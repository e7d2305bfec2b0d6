"""Whatever stands in a file or a state dict: it loads in whole, or one ValueError says why not and nothing has changed.

CUTWORK_DAMAGED=1 tries 10 000 files and 5 000 state dicts; without it a few in a hundred of these.
"""

import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.files import tensor_file
from cutwork.files.tensor_file import read_file, write_file
from cutwork.layers.compressed import Compressed, read_topology
from cutwork.layers.int8 import Int8Linear

SHARE = float(os.environ.get("CUTWORK_DAMAGED", "0.03"))
NUM_FILES, NUM_STATES = round(10_000 * SHARE), round(5_000 * SHARE)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@dataclass
class Run:
    """A model with what trains it."""

    model: nn.Module
    sparsifier: Any = None
    optimizer: Any = None

    def given(self):
        return {name: one for name, one in vars(self).items() if name != "model" and one is not None}

    def state(self):
        others = [copy.deepcopy(one.state_dict()) for one in self.given().values()]
        return [repr(self.model), copy.deepcopy(self.model.state_dict()), *others]


def mlp():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 8)
    )


def encoder():
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True))


def trained(make, patterns, optimizer="AdamW", seed=0, steps=3, track=True, **options):
    torch.manual_seed(seed)
    model = make()
    options.setdefault("density", None if patterns == "2:4" else 0.4)
    sparsifier = cw.sparsify(model, patterns, track=track, **{key: one for key, one in options.items() if one})
    settings = {"momentum": 0.9} if optimizer == "SGD" else {}
    built = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **settings)
    sparsifier.attach(built)
    run = Run(model, sparsifier, built)
    for _ in range(steps):
        step(run)
    return run


def step(run):
    run.optimizer.zero_grad()
    run.model(torch.randn(4, 8)).square().mean().backward()
    run.optimizer.step()


def packed(forms, pattern="block:3x2", seed=0, steps=0):
    torch.manual_seed(seed)
    model = mlp()
    cw.sparsify(model, pattern, density=0.4, init="magnitude")
    cw.pack(model, forms=forms)
    return Run(model.eval())


def rigl(**options):
    return cw.RigL(every=2, until=50, **options)


RUNS = {
    "masked": lambda **o: trained(mlp, "unstructured", method=rigl(), **o),
    "learned": lambda **o: trained(mlp, "block:2", method=cw.Supermask(weight_bits=2), optimizer="SGD", **o),
    "reprojected": lambda **o: trained(mlp, "2:4", method=cw.srste(decay=0.01), **o),
    "compressed": lambda **o: trained(mlp, "block:3x2", method=rigl(estimate=True), storage="compressed", **o),
    "convolutions": lambda **o: trained(convolutions, "vector:4", method=rigl(), storage="compressed", **o),
    "encoder": lambda **o: trained(encoder, "shuffled:2", method=rigl(), optimizer="Adafactor", **o),
}
LOW = {
    "int8": lambda **o: packed("tiles-int8", **o),
    "bfloat16": lambda **o: packed({"0": "tiles-bf16", "2": "tiles-int8"}, **o),
}
MAKES = {"convolutions": convolutions, "encoder": encoder}

VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "0", "$", [], {}, [[]], [0], [-1], [1, 2, 3], [10**6, 10**6], {"a": 1}),
    *({"$tuple": []}, {"$tuple": 3}, {"$pairs": [[1, 2]]}, {"$pairs": [[]]}, {"$bits": "x", "shape": [1]}),
    *({"$kept": "x"}, {"$tensor": None}, {"$x": 1}, "block:1000000000", "shuffled:99999999999999999999"),
    *("vector:100000", "2:4", "1:1000000000", "unstructured", "compressed", "dense", "int8", "fixed", "learned"),
    *("reprojected", json.loads("[" * 150 + "]" * 150), json.loads('{"a":' * 150 + "1" + "}" * 150)),
]


def places(node, path=()):
    """Yield the way to everything inside a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(node, path):
    for key in path:
        node = node[key]
    return node


def distort(dice, description, tensors):
    """Change something that digests do not speak about."""
    if dice.random() < 0.4:
        distort_tensors(dice, tensors)
        return
    paths = list(places(description))
    path = dice.choice(paths)
    holder, key = at(description, path[:-1]), path[-1]
    what = dice.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        other = dice.choice(paths)
        holder[key] = copy.deepcopy(at(description, other))
    elif what == 2 and isinstance(holder, dict):
        holder[dice.choice(["x", "$x", "", "0", "storage", "shape", "$bits", "$tensor"])] = holder.pop(key)
    elif what == 3 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif what == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * dice.choice([-1, 2, 1000, 2**40]) + dice.choice([0, 1])
    else:
        holder[key] = copy.deepcopy(dice.choice(VALUES))


def distort_tensors(dice, tensors):
    name, other = dice.choice(list(tensors)), dice.choice(list(tensors))
    what = dice.randrange(4)
    if what == 0:
        del tensors[name]
    elif what == 1:
        tensors[name] = tensors[other]
    else:
        tensors[name] = distorted(dice, tensors[name])


def distorted(dice, tensor):
    """Return a tensor of another type, shape or content."""
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.int8, torch.uint8]
    flat = tensor.reshape(-1)
    some = torch.randint(-9, 99, flat.shape, generator=torch.Generator().manual_seed(dice.randrange(2**31)))
    return [
        lambda: tensor.to(dice.choice(kinds)),
        lambda: flat,
        lambda: tensor.unsqueeze(dice.randrange(tensor.ndim + 1)),
        lambda: flat[: dice.randrange(len(flat) + 1)],
        lambda: tensor[: len(tensor) // 2] if tensor.ndim else flat,
        lambda: torch.cat([tensor, tensor]) if tensor.ndim else torch.stack([tensor, tensor]),
        lambda: some.view(tensor.shape).to(tensor.dtype),
        lambda: torch.zeros_like(tensor),
        lambda: tensor.flip(0) if tensor.ndim else tensor + 1,
        lambda: torch.zeros(0, 10**9, 10**9, dtype=tensor.dtype),
        lambda: tensor.T.contiguous() if tensor.ndim == 2 else tensor + 1,
    ][dice.randrange(11)]()


def damage(dice, content):
    """Return the bytes of a file as a bad disk or line might."""
    content, place = bytearray(content), dice.randrange(len(content))
    length = dice.choice([1, 1, 1, 2, 8, 100])
    what = dice.randrange(5)
    if what == 0:
        for _ in range(dice.choice([1, 1, 3, 20])):
            content[dice.randrange(len(content))] ^= dice.randrange(1, 256)
    elif what == 1:
        del content[place:]
    elif what == 2:
        del content[place : place + length]
    elif what == 3:
        content[place:place] = dice.randbytes(length)
    else:
        content[place : place + length] = bytes(length)
    return bytes(content)


def same(one, other):
    """Say whether two states are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and (one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8)))
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def check_load(path, start, run, before):
    """Load a file; return whether it was loaded, after which the run must be able to go on."""
    try:
        cw.describe(path)
        cw.load(path, run.model, **run.given())
    except ValueError as error:
        assert str(path) in str(error), error
        assert same(run.state(), before), f"half-way: {error}"
        return False
    try:
        if run.optimizer is None:
            with torch.no_grad():
                run.model(torch.randn(4, 8))
        else:
            step(run)
    except ValueError as error:
        # Numbers may have become anything, and a gradient that is not finite moves no mask.
        assert "finite" in str(error) or "nan" in str(error), error
    return True


@pytest.mark.parametrize("is_dense", [False, True], ids=["resume", "dense"])
@pytest.mark.parametrize("kind", RUNS | LOW)
def test_a_damaged_file_loads_in_whole_or_says_why_not(tmp_path, monkeypatch, kind, is_dense):
    monkeypatch.setattr(tensor_file.os, "fsync", lambda file: None)
    dice, path = random.Random(f"{kind} {is_dense}"), tmp_path / "model.safetensors"
    make = (RUNS | LOW)[kind]
    saved = make()
    cw.save(saved.model, path, **saved.given(), extra={"epoch": 3, "rng": torch.get_rng_state(), "best": (0.5, None)})
    whole, (mapped, description) = path.read_bytes(), read_file(path)
    # What was read lies in the file, which will be written over.
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    del mapped

    def start():
        return Run(MAKES.get(kind, mlp)()) if is_dense else make(seed=1, steps=1)

    run = start()
    before, num_loaded = run.state(), 0
    number = -(-NUM_FILES // (2 * len(RUNS | LOW)))
    for turn in range(number):
        if turn % 3 == 0:
            path.write_bytes(damage(dice, whole))
        else:
            changed, contents = copy.deepcopy(description), dict(tensors)
            for _ in range(dice.choice([1, 1, 1, 2, 3])):
                distort(dice, changed, contents)
            write_file(path, contents, changed)
        if check_load(path, start, run, before):
            num_loaded += 1
            run = start()
            before = run.state()
    assert num_loaded < number
    path.write_bytes(whole)
    assert check_load(path, start, run, before)


MAKE_AND_LOAD = """
import resource, sys, torch, cutwork
from torch import nn
def model():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
threads = torch.set_num_threads(1)
saved = model()
cutwork.sparsify(saved, "block:2", density=0.4)
cutwork.save(saved, sys.argv[1] + "/whole")
cutwork.load(sys.argv[1] + "/whole", model())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for path in sys.argv[3:]:
    for read in (lambda: cutwork.load(path, model()), lambda: cutwork.describe(path)):
        try:
            read()
        except ValueError as error:
            assert path in str(error)
        except MemoryError:
            sys.exit(path + " takes too much memory")
        except RuntimeError as error:
            sys.exit(path + " takes too much memory: " + str(error))
"""


def huge_shape(size):
    def change(description, tensors):
        for name in ("0", "2"):
            mask = {"$bits": f"{name}.sparsity.mask", "shape": [size, 1]}
            description["model"][f"{name}.sparsity.mask"] = mask
            description["model"][f"{name}.weight"]["mask"] = mask

    return change


def deep(description, tensors):
    description["extra"] = {"a": 1}
    for _ in range(20_000):
        description["extra"] = [description["extra"]]


def huge_pattern(description, tensors):
    for record in description["layers"].values():
        record["pattern"] = "block:1000000000"


def huge_shuffled(description, tensors):
    for record in description["layers"].values():
        record["pattern"] = "shuffled:1000000000"


def many_kept(description, tensors):
    mask = {"$bits": "@extra/mask", "shape": [512 * 1024]}
    tensors["@extra/mask"] = torch.zeros(64 * 1024, dtype=torch.uint8)
    description["extra"] = {f"{n}": {"$kept": f"@extra/{n}", "mask": mask} for n in range(300)}
    tensors.update({f"@extra/{n}": torch.zeros(0, dtype=torch.float64) for n in range(300)})


def huge_bits(description, tensors):
    description["layers"]["0"] |= {"kind": "learned", "options": LEARNED}


def no_units(description, tensors):
    shape = {"ptr": torch.zeros(2, dtype=torch.int32), "col": torch.zeros(0, dtype=torch.int32)}
    for name in ("0", "2"):
        description["layers"][name] |= {"storage": "compressed", "pattern": "block:1000000000"}
        node = description["model"].pop(f"{name}.weight")
        del tensors[node["$kept"]], description["model"][f"{name}.sparsity.mask"], tensors[f"{name}.sparsity.mask"]
        for key, tensor in {
            "values": torch.zeros(0, 10**9, 10**9),
            **{f"sparsity.{k}": t for k, t in shape.items()},
        }.items():
            description["model"][f"{name}.{key}"] = {"$tensor": f"{name}.{key}"}
            tensors[f"{name}.{key}"] = tensor


LEARNED = {"score_range": None, "dense_weight_gradient": False, "bits": 10**9}
GREEDY = {
    "huge shape": huge_shape(10**11),
    "large shape": huge_shape(2**33),
    "huge pattern": huge_pattern,
    "huge shuffled": huge_shuffled,
    "many kept": many_kept,
    "huge bits": huge_bits,
    "no units": no_units,
    "deep": deep,
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process to a limit of memory")
def test_a_small_file_takes_little_memory(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = mlp()
    cw.sparsify(model, "block:2", density=0.4)
    cw.save(model, tmp_path / "whole")
    limit, recursion = 128 * 2**20, sys.getrecursionlimit()
    for what, change in GREEDY.items():
        mapped, description = read_file(tmp_path / "whole")
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        change(description, tensors)
        try:
            sys.setrecursionlimit(100_000)
            write_file(tmp_path / what, tensors, description)
        finally:
            sys.setrecursionlimit(recursion)
        assert (tmp_path / what).stat().st_size < 120_000
    paths = [tmp_path / what for what in GREEDY]
    child = subprocess.run(
        [sys.executable, "-c", MAKE_AND_LOAD, tmp_path, str(limit), *paths], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr


STATES = {name: make for name, make in RUNS.items() if name != "encoder"}
PARTS = {"model": "", "layer": "{}", "sparsity": "{}.sparsity"}


def check_layers(model, before, given):
    """Check that each index is sound, as before or as given; that of an int8 layer belongs to the same weight."""
    for name, layer in model.named_modules():
        if isinstance(layer, Compressed):
            index = layer.sparsity
            read_topology(
                *(name, index.shape, index.pattern),
                values=layer.values,
                ptr=index.ptr,
                col=index.col,
                order=index.order,
            )
        if isinstance(layer, Int8Linear):
            after = {f"{name}.{key}" if name else key: tensor for key, tensor in layer.state_dict().items()}
            assert any(
                same(after, {key: converted(state.get(key), after[key]) for key in after}) for state in (before, given)
            )


def converted(value, like):
    """Return what PyTorch makes of a tensor that it copies into another."""
    return value.to(like.dtype) if isinstance(value, torch.Tensor) and not value.is_meta else value


def distort_state(dice, state, other):
    """Damage a state dict of plain tensors."""
    key = dice.choice(list(state))
    what = dice.randrange(8)
    if what == 0 or not isinstance(state[key], torch.Tensor):
        del state[key]
    elif what == 1:
        state[key] = state[dice.choice(list(state))]
    elif what == 2:
        state[key] = other.get(key, state[key])
    elif what == 3:
        state[key] = dice.choice([None, 3, "x", [1.0], torch.tensor(1.0), state[key].to("meta"), float("nan")])
    elif what == 4 and state[key].ndim:
        state[key] = torch.stack([state[key], state[key]], -1)[..., 0]
    elif what == 5:
        state[dice.choice(["x", "order", "0.order", "0.sparsity.order", "bias"])] = state[key]
    else:
        state[key] = distorted(dice, state[key])


@pytest.mark.parametrize(("kind", "part"), [*product(STATES, PARTS), ("int8", "model"), ("int8", "layer")])
def test_a_damaged_state_dict_loads_in_whole_or_says_why_not(kind, part):
    dice, number = random.Random(f"{kind} {part}"), -(-NUM_STATES // (3 * len(STATES) + 2))
    make = (STATES | LOW)[kind]
    run, other = make(), make(seed=1)
    name = PARTS[part].format("1" if kind == "convolutions" else "0")
    module = run.model.get_submodule(name)
    whole = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    others = other.model.get_submodule(name).state_dict()
    masks = {key: tensor.dtype for key, tensor in whole.items() if key.endswith("mask")}
    num_refused = 0
    for _ in range(number):
        state = dict(whole)
        for _ in range(dice.choice([1, 1, 2])):
            if state:
                distort_state(dice, state, others)
        before = {key: tensor.clone() for key, tensor in run.model.state_dict().items()}
        try:
            module.load_state_dict(state, strict=dice.random() < 0.5)
        except (ValueError, RuntimeError) as error:
            # Some of this is PyTorch's own, which copies all that fits and then names what does not.
            assert isinstance(error, ValueError) or "Error(s) in loading state_dict" in str(error), error
            num_refused += 1
        check_layers(run.model, before, {f"{name}.{key}" if name else key: value for key, value in state.items()})
        assert {key: tensor.dtype for key, tensor in module.state_dict().items() if key in masks} == masks
        with torch.no_grad():
            run.model(torch.randn(4, 8))
        module.load_state_dict(whole)
    assert num_refused
