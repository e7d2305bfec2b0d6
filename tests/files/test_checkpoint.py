import copy
import random
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from torch import nn

import cutwork as cw
from cutwork.files.checkpoint import Checkpoint
from cutwork.files.tensor_file import read_file

from .runs import (
    METHODS,
    MODELS,
    OPTIMIZERS,
    attach,
    bits,
    build,
    convolutions,
    encoder,
    everything,
    make_sparse,
    refuses,
    train,
)

pytestmark = pytest.mark.grid

PATTERNS = ("unstructured", "block:4", "block:8x2", "vector:4", "shuffled:4", "2:4", "2:4-tile", "2:4-tile-greedy")


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


def test_an_attached_optimizer_does_not_travel_without_its_sparsifier(saved):
    model = build(seed=1)
    _, optimizer = make_sparse(model, track=True)
    refuses("AdamW is attached to a sparsifier that is not given", saved, model, None, optimizer)
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="AdamW is attached to a sparsifier that is not given"):
        cw.save(model, saved, optimizer=optimizer)
    assert saved.read_bytes() == before


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
