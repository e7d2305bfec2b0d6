import pytest
import torch
from torch import nn

import cutwork as cw

from .runs import MODELS, Remembers, Tied, build, refuses


def test_parameters_stay_the_same_objects(saved):
    model = build(seed=1)
    before = [model[0].weight, model[0].bias, model[2].weight]
    cw.load(saved, model)
    assert all(a is b for a, b in zip(before, [model[0].weight, model[0].bias, model[2].weight], strict=True))


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


def test_layers_without_a_shape_are_refused(path):
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(8))
    cw.save(build(), path)
    for call in (cw.save, lambda model, path: cw.load(path, model)):
        with pytest.raises(ValueError, match=r"1.weight has no shape yet; run one batch through the model first"):
            call(lazy, path)


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
