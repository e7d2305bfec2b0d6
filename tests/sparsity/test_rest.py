import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw
from cutwork.sparsity.fixed import Fixed


def resting(layer=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64) if layer is None else layer)
    cw.sparsify(model, "block:8", density=0.25)
    cw.pack(model, forms="dense")
    return model.eval()


def agrees(model, x):
    """Say whether a pass without gradients computes what one with gradients does."""
    with torch.no_grad():
        y = model(x)
    return torch.allclose(y, model(x), atol=1e-5)


@pytest.fixture
def products(monkeypatch):
    """Note each product of a weight with its mask."""
    seen = []
    masked = Fixed.forward
    monkeypatch.setattr(Fixed, "forward", lambda sparsity, weight: seen.append(1) or masked(sparsity, weight))
    return seen


@pytest.fixture
def looks(monkeypatch):
    """Note each look at all of a weight."""
    seen = []
    fits = Fixed.fits
    monkeypatch.setattr(Fixed, "fits", lambda sparsity, weight: seen.append(1) or fits(sparsity, weight))
    return seen


def dense_like(layer):
    return torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)).to(layer.weight.dtype)


def load_state_dict(model):
    model.load_state_dict({**model.state_dict(), "0.weight": dense_like(model[0])})


def assign_state_dict(model):
    model.load_state_dict({**model.state_dict(), "0.weight": dense_like(model[0])}, assign=True)


def copy_in_place(model):
    with torch.no_grad():
        model[0].weight.copy_(dense_like(model[0]))


def copy_data(model):
    model[0].weight.data.copy_(dense_like(model[0]))


def copy_data_of_parameters(model):
    next(model.parameters()).data.add_(dense_like(model[0]))


def set_data(model):
    model[0].weight.data = dense_like(model[0])


def set_parameter(model):
    model[0].weight = nn.Parameter(dense_like(model[0]))


def one_entry_before_eval(model):
    mask = model[0].sparsity.mask
    model[0].weight.data[~mask] = torch.arange((~mask).sum()).eq(7).to(model[0].weight)
    model.eval()


def step_without_a_sparsifier(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    model[0].weight.grad = dense_like(model[0])
    optimizer.step()


def load_another_mask(model):
    mask = model[0].sparsity.mask
    model.load_state_dict({**model.state_dict(), "0.sparsity.mask": ~mask})


WRITES = (
    load_state_dict,
    assign_state_dict,
    copy_in_place,
    copy_data,
    copy_data_of_parameters,
    set_data,
    set_parameter,
    one_entry_before_eval,
    step_without_a_sparsifier,
    load_another_mask,
)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
@pytest.mark.parametrize("write", WRITES)
def test_a_resting_layer_heeds_its_mask_whatever_was_written(write, kind):
    layer, x = (nn.Linear(64, 64), torch.randn(3, 64)) if kind is nn.Linear else (nn.Conv2d(8, 16, 3), None)
    model, x = resting(layer), torch.randn(2, 8, 5, 5) if x is None else x
    assert agrees(model, x)
    write(model)
    assert agrees(model, x)


def test_a_resting_layer_of_bfloat16_notices_what_is_written_through_data():
    model, x = resting(nn.Linear(64, 64).bfloat16()), torch.randn(3, 64).bfloat16()
    assert agrees(model, x)
    copy_data(model)
    assert agrees(model, x)


def test_a_resting_layer_looks_again_only_where_something_was_written(products, looks):
    model, x = resting(), torch.randn(3, 64)
    looks.clear()
    with torch.no_grad():
        for _ in range(3):
            model(x)
        assert (len(products), len(looks)) == (0, 1)
        model[0].weight.mul_(2)
        for _ in range(3):
            model(x)
        assert (len(products), len(looks)) == (0, 2)
        copy_in_place(model)
        for _ in range(3):
            model(x)
        assert (len(products), len(looks)) == (3, 3)
        model[0].sparsity.after_update(model[0].weight)
        model(x)
        assert (len(products), len(looks)) == (3, 4)


def test_an_entry_of_minus_zero_is_none_that_was_written(looks):
    model, x = resting(nn.Linear(64, 64).bfloat16()), torch.randn(3, 64).bfloat16()
    model[0].weight.data[~model[0].sparsity.mask] = -0.0
    looks.clear()
    with torch.no_grad():
        model(x)
        model(x)
    assert len(looks) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_resting_layer_looks_for_itself(again, products, looks):
    model, x = resting(), torch.randn(3, 64)
    looks.clear()
    with torch.no_grad():
        model(x)
        twin = again(model)
        assert torch.equal(twin(x), model(x))
        assert (len(products), len(looks)) == (0, 2)
        copy_data(twin)
    assert agrees(twin, x) and agrees(model, x)


def test_tied_layers_look_once(looks):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    cw.sparsify(model, "block:8", density=0.25)
    cw.pack(model, forms="dense")
    looks.clear()
    with torch.no_grad():
        model(torch.randn(3, 64))
    assert len(looks) == 1


def test_compiled_code_multiplies_with_the_mask():
    model, x = resting(), torch.randn(3, 64)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
        copy_data(model)
        torch.testing.assert_close(compiled(x), F.linear(x, model[0].weight * model[0].sparsity.mask, model[0].bias))


@pytest.mark.parametrize("made_in_inference_mode", [False, True])
def test_a_resting_layer_runs_in_inference_mode(made_in_inference_mode):
    model, x = resting(), torch.randn(3, 64)
    with torch.inference_mode(made_in_inference_mode):
        model = copy.deepcopy(model)
    expected = F.linear(x, model[0].weight * model[0].sparsity.mask, model[0].bias)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)
        copy_in_place(model)
        expected = F.linear(x, model[0].weight * model[0].sparsity.mask, model[0].bias)
        torch.testing.assert_close(model(x), expected)


def test_a_resting_layer_runs_under_transformations_and_on_meta():
    model, x = resting(), torch.randn(3, 64)
    weights = torch.stack([dense_like(model[0]), model[0].weight.detach()])

    def infer(weight):
        return torch.func.functional_call(model, {"0.weight": weight}, (x,))

    with torch.no_grad():
        expected = [F.linear(x, weight * model[0].sparsity.mask, model[0].bias) for weight in weights]
        torch.testing.assert_close(torch.func.vmap(infer)(weights), torch.stack(expected))
        torch.testing.assert_close(infer(weights[0]), expected[0])
        assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == (3, 64)


def test_a_mask_that_keeps_all_rests(products):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, "block:8", density=1.0)
    cw.pack(model, forms="dense")
    with torch.no_grad():
        model(torch.randn(3, 16))
    assert not products


def test_a_layer_made_sparse_anew_does_not_rest():
    model, x = resting(), torch.randn(3, 64)
    cw.bake(model)
    cw.sparsify(model, "block:8", density=0.25, method="supermask")
    assert agrees(model, x)
