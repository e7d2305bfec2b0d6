"""A compressed layer computes, copies, saves and refuses as a layer should."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import cutwork as cw
from cutwork.kernels import activate
from cutwork.layers.compressed import CompressedLinear

pytestmark = pytest.mark.grid

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4"]


def build(pattern: str = "block:4", density: float = 0.4, **options) -> nn.Sequential:
    """Return a compressed layer of odd sizes, inside a model so that it has a name."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(23, 18, **options))
    cw.sparsify(model, pattern, density=density, storage="compressed")
    return model


def dense_twin(model: nn.Sequential) -> nn.Linear:
    layer = model[0]
    twin = nn.Linear(23, 18, bias=layer.bias is not None, dtype=layer.values.dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.sparsity.matrix(layer.values))
        if layer.bias is not None:
            twin.bias.copy_(layer.bias)
    return twin


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(23,), (1, 23), (0, 23), (7, 23), (2, 3, 23)])
def test_it_computes_what_its_dense_twin_computes(pattern, bias, shape):
    model = build(pattern, bias=bias)
    twin, x = dense_twin(model), torch.randn(shape, requires_grad=True)
    twins_x = x.detach().clone().requires_grad_()
    y, expected = model(x), twin(twins_x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, twins_x.grad)
    dense = model[0].sparsity.matrix(model[0].values.grad)
    torch.testing.assert_close(dense, twin.weight.grad * model[0].sparsity.mask, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_input_that_is_not_contiguous_is_read_right(dtype):
    model = build(dtype=dtype)
    for x in (torch.randn(23, 6, dtype=dtype).T, torch.randn(6, 46, dtype=dtype)[:, ::2]):
        torch.testing.assert_close(model(x), model(x.contiguous()))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 18), r"23 inputs and 18 outputs got an input of shape \[2, 18\]; its last size must be 23"),
        (torch.zeros(()), r"got an input of shape \[\]"),
        (torch.zeros(2, 23, dtype=torch.float64), "of torch.float32 got an input of torch.float64; convert"),
        (torch.zeros(2, 23, dtype=torch.int64), "of torch.float32 got an input of torch.int64; convert"),
        (torch.zeros(2, 23, device="meta"), "on cpu got an input on meta; move one of them"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        build()(x)


def test_autocast_computes_in_its_own_dtype():
    model = build()
    x = torch.randn(5, 23)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        expected = dense_twin(model)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


def test_it_says_what_computes_it():
    kernel = activate() or "reference"
    assert f"in_features=23, out_features=18, bias=True, kernel={kernel}" in repr(build())
    assert "kernel=reference" in repr(build().double())
    assert "(sparsity): FixedIndex(block:4, density 0." in repr(build())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_copies_are_equal_and_independent(pattern):
    model = build(pattern)
    sparsifier = cw.Sparsifier({"0": model[0]}, cw.RigL(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Copied in a step that listens: the copies do not.
    sparsifier.attach(optimizer)
    model(torch.randn(4, 23)).sum().backward()
    model.zero_grad()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    x = torch.randn(3, 23)
    y = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), y)
        assert not twin[0].sparsity.ear.is_open
        assert not twin[0].sparsity.is_followed
        with torch.no_grad():
            twin[0].values.zero_()
        assert torch.equal(model(x), y)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_exports(pattern, tmp_path):
    model = build(pattern)
    x = torch.randn(3, 23)
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_state_dict_with_another_number_of_units_is_taken_over(pattern):
    small, large = build(pattern, 0.2), build(pattern, 0.6)
    x = torch.randn(3, 23)
    parameter = small[0].values
    small.load_state_dict(large.state_dict())
    assert small[0].values is parameter
    assert torch.equal(small(x), large(x))
    small(x).sum().backward()
    assert parameter.grad.shape == large[0].values.shape


def test_a_dense_state_dict_is_refused_as_usual():
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*0.values.*Unexpected key.*0.weight"):
        build().load_state_dict(nn.Sequential(nn.Linear(23, 18)).state_dict())


DAMAGES = {
    "dtype": lambda state: state.update({"0.sparsity.col": state["0.sparsity.col"].long()}),
    "floats": lambda state: state.update({"0.sparsity.ptr": state["0.sparsity.ptr"].float()}),
    "shape": lambda state: state.update({"0.sparsity.col": state["0.sparsity.col"][None]}),
    "short ptr": lambda state: state.update({"0.sparsity.ptr": state["0.sparsity.ptr"][:-1]}),
    "ptr begins late": lambda state: state["0.sparsity.ptr"][:1].fill_(1),
    "ptr ends late": lambda state: state["0.sparsity.ptr"][-1:].add_(1),
    "ptr falls": lambda state: state["0.sparsity.ptr"][1:2].fill_(99),
    "negative ptr": lambda state: state["0.sparsity.ptr"][1:2].fill_(-5),
    "col too large": lambda state: state["0.sparsity.col"][-1:].fill_(24),
    "col negative": lambda state: state["0.sparsity.col"][:1].fill_(-4),
    "col huge": lambda state: state["0.sparsity.col"][:1].fill_(2**31 - 1),
    "col off the grid": lambda state: state["0.sparsity.col"][:1].add_(1),
    "col twice": lambda state: state["0.sparsity.col"][1:2].copy_(state["0.sparsity.col"][:1]),
    "lost units": lambda state: state.update({"0.sparsity.col": state["0.sparsity.col"][:-1]}),
    "lost values": lambda state: state.update({"0.values": state["0.values"][:-1]}),
    "values beside the matrix": lambda state: state["0.values"][-1, -1, -1].fill_(1.0),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_index_is_refused_by_name_and_nothing_has_changed(what):
    model = build(density=0.9)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    DAMAGES[what](state)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="0: its compressed weight is damaged: "):
        model.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("pattern", "other", "message"),
    [
        ("block:4", "vector:4", r"0 is vector:4, but was saved in another pattern: its units have 4 outputs and 4 in"),
        ("vector:4", "block:4", r"0 is block:4, but was saved in another pattern: its units have 4 outputs and 1 in"),
        ("shuffled:4x1", "vector:4", r"0 is vector:4, but .*: its outputs are shuffled; sparsify\(\) the model as"),
    ],
)
def test_a_state_dict_of_another_pattern_is_not_called_damaged(pattern, other, message):
    model = build(other)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(build(pattern).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("damage", [0, 17, 18, -1])
def test_a_damaged_order_is_refused(damage):
    model = build("shuffled:4")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["0.sparsity.order"][3] = damage
    if damage in model[0].sparsity.order[3:4].tolist():
        state["0.sparsity.order"][4] = damage
    with pytest.raises(ValueError, match="order must name each of the 18 outputs once"):
        model.load_state_dict(state)


@given(st.data())
def test_no_index_that_is_accepted_reads_or_writes_beside_the_matrix(data):
    model = build("shuffled:4", 0.5)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    key = data.draw(st.sampled_from(["0.sparsity.ptr", "0.sparsity.col", "0.sparsity.order"]))
    place = data.draw(st.integers(0, len(state[key]) - 1))
    state[key][place] = data.draw(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-2, 30)))
    try:
        model.load_state_dict(state)
    except ValueError:
        return
    index = model[0].sparsity
    assert index.ptr.diff().min() >= 0
    assert index.ptr[-1] == len(index.col) == len(model[0].values)
    assert 0 <= index.col.min() <= index.col.max() < 23
    assert model(torch.randn(3, 23)).isfinite().all()


def test_the_layer_of_transformers_is_compressed_too():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = nn.Sequential(transformers.pytorch_utils.Conv1D(18, 23))
    dense = copy.deepcopy(model)
    masks = cw.sparsify(dense, "block:4", density=0.4).layers["0"].sparsity.mask
    cw.sparsify(model, "block:4", density=0.4, storage="compressed")
    x = torch.randn(2, 5, 23)
    torch.testing.assert_close(model(x), dense(x))
    assert torch.equal(model[0].sparsity.mask, masks)
    cw.unpack(model)
    assert torch.equal(model[0].weight, dense[0].weight)
    assert repr(model) == repr(dense)
    assert set(vars(model[0])) == set(vars(dense[0]))


def test_layers_that_share_a_weight_share_their_values():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    dense = copy.deepcopy(model)
    cw.sparsify(dense, "block:4", density=0.4)
    sparsifier = cw.sparsify(model, "block:4", density=0.4, storage="compressed", method=cw.RigL(every=1, until=5))
    assert model[0].values is model[2].values
    assert model[0].sparsity is model[2].sparsity
    torch.testing.assert_close(model(torch.ones(2, 16)), dense(torch.ones(2, 16)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    sparsifier.detach()
    cw.unpack(model)
    assert model[0].weight is model[2].weight


def test_a_compressed_layer_is_no_subclass_that_others_take_for_a_dense_one():
    layer = build()[0]
    assert type(layer) is CompressedLinear
    assert not isinstance(layer, nn.Linear)
    assert [name for name, _ in layer.named_parameters()] == ["values", "bias"]


def models_of(kind: str, pattern: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return a compressed model, the same one in dense storage, and an input."""
    torch.manual_seed(0)
    layers = (nn.Linear(23, 18), nn.GELU(), nn.Linear(18, 9))
    x = torch.randn(3, 23)
    if kind == "convolution":
        layers, x = (nn.Conv2d(5, 9, 3, padding=1), nn.GELU(), nn.Conv2d(9, 6, 1)), torch.randn(3, 5, 4, 6)
    model = nn.Sequential(*layers)
    cw.sparsify(model, pattern, density=0.4, storage="compressed")
    return model, cw.unpack(copy.deepcopy(model)), x


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("pattern", ["block:5x3", "shuffled:4"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's own forward mode asks for it.
def test_transformations_of_functions_find_what_dense_storage_finds(kind, pattern):
    model, dense, x = models_of(kind, pattern)

    def found(model):
        parameters = dict(model.named_parameters())

        def loss(parameters, x):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        def one_loss(parameters, x):
            return loss(parameters, x[None])

        by_parameter = torch.func.grad(loss)(parameters, x)
        by_example = torch.func.vmap(torch.func.grad(one_loss), (None, 0))(parameters, x)
        of_biases = [gradients[name] for gradients in (by_parameter, by_example) for name in ("0.bias", "2.bias")]
        values = next(name for name in parameters if name in ("0.values", "0.weight"))
        trained = parameters[values]
        weights = [model[0].sparsity.matrix(gradient) for gradient in (by_parameter[values], *by_example[values])]
        mask = model[0].sparsity.mask_matrix()
        assert by_example[values].shape == (len(x), *trained.shape)
        return [
            *of_biases,
            *(weight * mask for weight in weights),
            torch.func.jacrev(model)(x),
            torch.func.hessian(lambda x: model(x).square().sum())(x[:1]),
            torch.func.jvp(model, (x,), (x.sin(),))[1],
            torch.func.vmap(lambda x: model(x[None]))(x),
        ]

    torch.testing.assert_close(found(model), found(dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimate", [True, False])
def test_a_step_that_listens_is_refused_under_a_transformation(estimate):
    model = nn.Sequential(nn.Linear(23, 18))
    method = cw.RigL(every=1, until=9, estimate=estimate)
    sparsifier = cw.sparsify(model, "block:4", density=0.4, storage="compressed", method=method)
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"outside its mask in this pass, and torch\.func does not show it"):
        torch.func.grad(lambda x: model(x).sum())(torch.randn(3, 23))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_on_the_meta_device_it_says_what_shape_comes_out(kind):
    model, dense, x = models_of(kind, "block:4")
    y = model.to("meta")(x.to("meta"))
    assert (y.shape, y.device.type) == (dense(x).shape, "meta")
    y.sum().backward()
    assert model[0].values.grad.shape == model[0].values.shape
