"""A subclass that computes what its parent does can be sparse, stays what it is meanwhile, and comes back as itself."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import cutwork as cw
from cutwork.layers.linear import SparseLinear
from cutwork.layers.swap import sparse_layers


class Small(nn.Linear):
    """A layer that begins with small weights, and can say how large they are."""

    def __init__(self, inputs, outputs, gain=0.1):
        self.gain = gain
        super().__init__(inputs, outputs)

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=self.gain)
        nn.init.zeros_(self.bias)

    def largest(self):
        return float(self.weight.detach().abs().max())


class Named(nn.Conv2d):
    """A convolution with a name."""

    title = "stem"


class Odd(nn.MultiheadAttention):
    """An attention that is not the original."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        Named(3, 16, 3, padding=1), nn.Flatten(), Small(16 * 16, 32), NonDynamicallyQuantizableLinear(32, 8)
    )


def twin():
    """Return the same network of plain layers."""
    plain = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 16, 32), nn.Linear(32, 8))
    plain.load_state_dict(network().state_dict())
    return plain


def trained(model, storage):
    sparsifier = cw.sparsify(
        model, "block:4", density=0.25, method=cw.RigL(every=2, until=6, grow=cw.random), storage=storage
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    sparsifier.detach()
    return model


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_subclass_trains_as_its_parent_does_and_bake_gives_it_back(storage):
    kinds = [type(layer) for layer in network()]
    model, plain = trained(network(), storage), trained(twin(), storage)
    for mask, other in zip(cw.bake(model).values(), cw.bake(plain).values(), strict=True):
        assert torch.equal(mask, other)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert [type(layer) for layer in model] == kinds
    assert not any("dense_class" in vars(layer) for layer in model)


def test_in_dense_storage_it_remains_an_instance_of_its_class_with_all_its_methods():
    model = network()
    cw.sparsify(model, "block:4", density=0.25)
    assert isinstance(model[2], Small)
    assert isinstance(model[2], SparseLinear)
    assert model[2].largest() == float(model[2].weight.detach().abs().max())
    assert model[0].title == "stem"
    assert "SparseSmall(" in repr(model)
    assert [layer.kind for layer in cw.flops(model, torch.randn(1, 3, 4, 4)).layers][:2] == ["Named", "Small"]


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_copies_pickles_and_files_keep_it(storage, tmp_path):
    model, x = network(), torch.randn(2, 3, 4, 4)
    cw.sparsify(model, "block:4", density=0.25, storage=storage)
    cw.save(model, tmp_path / "model.safetensors")
    loaded = network()
    cw.load(tmp_path / "model.safetensors", loaded)
    torch.save(model, tmp_path / "model.pt")
    pickled = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model)), pickled, loaded):
        assert [type(layer) for layer in other] == [type(layer) for layer in model]
        assert torch.equal(other(x), model(x))
    cw.bake(pickled)
    assert [type(layer) for layer in pickled] == [type(layer) for layer in network()]


def test_packing_and_unpacking_give_it_back():
    model = network()
    cw.sparsify(model, "block:4", density=0.25)
    kinds = [type(layer) for layer in model]
    cw.pack(model, forms="tiles")
    assert not any(isinstance(layer, Small) for layer in sparse_layers(model).values())
    cw.unpack(model)
    assert [type(layer) for layer in model] == kinds


def test_tied_layers_may_be_of_different_classes():
    model = nn.Sequential(Small(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    cw.sparsify(model, "block:4", density=0.5, storage="compressed")
    assert model[0].values is model[1].values
    cw.bake(model)
    assert [type(layer) for layer in model] == [Small, nn.Linear]
    assert model[0].weight is model[1].weight


def has(name, value):
    return type("Loud", (nn.Linear,), {name: value})


OTHER = {
    "forward": lambda self, x: 2 * x,
    "__call__": lambda self, x: 2 * x,
    "_call_impl": lambda self, x: 2 * x,
    "__torch_function__": classmethod(lambda *args: None),
    "__getattr__": lambda self, name: 2 * nn.Linear.__getattr__(self, name),
    "bias": property(lambda self: None),
    "__slots__": (),
    "__reduce__": lambda self: (nn.Linear, (8, 8)),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_subclass_that_may_compute_something_else_is_refused_and_told_why(name):
    # Some cannot even be made in the usual way.
    loud = nn.Linear(8, 8)
    loud.__class__ = has(name, OTHER[name])
    with pytest.raises(ValueError, match=rf"^0: .*Loud is a subclass .*: it has a '{name}' of its own; replace it"):
        cw.sparsify(nn.Sequential(loud), "block:4", density=0.5)


def test_a_convolution_that_pads_otherwise_is_refused():
    class Same(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(nn.functional.pad(x, (0, 1, 0, 1)), weight, bias)

    with pytest.raises(ValueError, match=r"^the model itself: .*Same .* it has a '_conv_forward' of its own"):
        cw.sparsify(Same(4, 8, 3), "block:4", density=0.5)


@pytest.mark.parametrize("name", ["sparsity", "trained"])
def test_a_name_that_sparse_layers_need_is_not_taken_from_anybody(name):
    with pytest.raises(
        ValueError, match=f"^0: .*Loud has a '{name}' of its own, and a sparse layer needs that name; rename"
    ):
        cw.sparsify(nn.Sequential(has(name, 0.5)(8, 8)), "block:4", density=0.5)
    layer = nn.Linear(8, 8)
    setattr(layer, name, 0.5)
    with pytest.raises(
        ValueError, match=f"^0: it has a '{name}' of its own, and a sparse layer needs that name; rename it"
    ):
        cw.sparsify(nn.Sequential(layer), "block:4", density=0.5)
    assert getattr(layer, name) == 0.5


def test_the_output_projection_of_an_attention_that_is_not_the_original_is_refused():
    model = nn.ModuleDict({"attention": Odd(8, 2), "head": nn.Linear(8, 8)})
    with pytest.raises(ValueError, match=r"^attention.out_proj: it belongs to a subclass of MultiheadAttention, which"):
        cw.sparsify(model, "block:4", density=0.5)


def test_a_layer_whose_forward_was_replaced_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 1
    with pytest.raises(
        ValueError, match=r"^0: its forward was replaced by a function that would still read the weight"
    ):
        cw.sparsify(model, "block:4", density=0.5)
