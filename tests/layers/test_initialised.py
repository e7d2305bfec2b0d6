"""Layers on the meta device come into being compressed, with the numbers that their dense form would have had."""

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import Compressed
from cutwork.layers.linear import SparseConv1D


class Constant(nn.Linear):
    """A layer with a buffer, whose first numbers are all alike."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("scale", torch.ones(outputs))

    def reset_parameters(self):
        nn.init.constant_(self.weight, 0.5)
        nn.init.constant_(self.bias, 0.25)
        if "scale" in self._buffers:
            nn.init.constant_(self.scale, 2.0)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Flatten(),
        nn.Linear(256, 64, bias=False),
        nn.LayerNorm(64),
        nn.Linear(64, 24),
    )


def on_meta(build=network):
    with torch.device("meta"):
        return build()


def compressed(model, *, device=None, seed=3, **options):
    options = {"density": 0.25, "init": "random", **options}
    torch.manual_seed(seed)
    return cw.sparsify(model, options.pop("patterns", "block:4"), storage="compressed", device=device, **options)


@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_values_masks_and_biases_are_those_of_a_model_that_was_dense_before(init):
    torch.manual_seed(3)
    dense = network()
    cw.sparsify(dense, "block:4", density=0.25, init=init, storage="compressed")
    model = on_meta()
    kinds = [type(layer) for layer in dense]
    compressed(model, device="cpu", init=init)
    assert [type(layer) for layer in model] == kinds
    assert {name for name, parameter in model.named_parameters() if parameter.is_meta} == {"3.weight", "3.bias"}
    model[3].to_empty(device="cpu")
    model[3].reset_parameters()
    for name, value in dense.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(model(x), dense(x))
    model(x).sum().backward()
    assert model[0].values.grad is not None
    assert [type(layer) for layer in (cw.bake(model), model)[1]] == [type(layer) for layer in network()]


def test_a_layer_keeps_its_flags_and_what_it_has_elsewhere():
    layer = on_meta(lambda: nn.Linear(16, 16)).requires_grad_(False).eval()
    layer.bias = nn.Parameter(torch.full((16,), 7.0))
    bias = layer.bias
    compressed(layer, device="cpu")
    assert layer.bias is bias
    assert not layer.values.requires_grad
    assert not layer.sparsity.training


def test_a_subclass_begins_as_it_says_itself():
    model = nn.Sequential(on_meta(lambda: Constant(16, 16)))
    compressed(model, device="cpu", rescale=False)
    assert set(model[0].values.flatten().tolist()) == {0.5}
    assert set(model[0].bias.tolist()) == {0.25}
    assert set(model[0].scale.tolist()) == {2.0}
    cw.bake(model)
    assert type(model[0]) is Constant


def test_layers_that_share_a_weight_share_its_values():
    model = on_meta(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    model[1].weight = model[0].weight
    sparsifier = compressed(model, device="cpu")
    assert list(sparsifier.layers) == ["0"]
    assert model[0].values is model[1].values
    assert model[0].sparsity is model[1].sparsity
    assert not torch.equal(model[0].bias, model[1].bias)


def test_masks_can_be_given_and_move_in_training():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:4, :8] = True
    model = nn.Sequential(on_meta(lambda: nn.Linear(16, 16)))
    method = cw.RigL(every=1, until=4)
    sparsifier = cw.sparsify(model, "block:4", masks={"0": mask}, method=method, storage="compressed", device="cpu")
    assert torch.equal(model[0].sparsity.mask, mask)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for _ in range(3):
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    assert model[0].sparsity.mask.sum() == mask.sum()


class Bare(nn.Module):
    """Half of a transformer of which only the attention is there."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)


def without_reset():
    layer = nn.Linear(16, 16)
    layer.__class__ = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    return layer


BAD = {
    "no device": (
        network,
        {},
        r"^0 and 2 others: it is on the meta .*compressed' and device='cpu', or {'0'",
    ),
    "meta": (network, {"device": "meta"}, "device='meta' has no memory for values"),
    "attention": (Bare, {"device": "cpu"}, r"^attention.q_proj and 3 others: attention is .* _reset_parameters\(\)"),
    "no reset": (
        lambda: nn.Sequential(without_reset()),
        {"device": "cpu"},
        r"^0: it is on the meta device, and Conv1D has no reset_parameters\(\) for its first numbers; give it some",
    ),
    "no tiles": (network, {"device": "cpu", "patterns": {"*": "block:4", "4": "unstructured"}}, "^4: .*has no tiles"),
    "no fixed mask": (
        network,
        {"device": "cpu", "method": "supermask", "init": None},
        "^0: Supermask trains the whole",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_and_everything_stays_on_the_meta_device(case):
    build, options, message = BAD[case]
    model = on_meta(build)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        compressed(model, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert [type(module) for module in model.modules()] == kinds


def test_a_device_is_for_what_comes_into_being_compressed():
    with pytest.raises(ValueError, match="device='cpu' is for layers on the meta device, and none of these is"):
        compressed(network(), device="cpu")
    with pytest.raises(ValueError, match="but storage is 'dense'; add storage='compressed', or materialise"):
        cw.sparsify(on_meta(), "block:4", density=0.25, device="cpu")


def test_layers_with_numbers_may_stand_beside_others():
    model = nn.Sequential(nn.Linear(16, 16), on_meta(lambda: nn.Linear(16, 16)))
    compressed(model, device="cpu")
    assert all(isinstance(layer, Compressed) for layer in model)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert not isinstance(model[0], SparseConv1D)
