"""Compiled models have no graph break, train what the eager ones train, and do not compile again when masks move."""

import copy

import pytest
import torch
import torch._dynamo
from torch import nn

import cutwork as cw
from cutwork.methods import Method

METHODS: dict[str, Method] = {
    "static": cw.Static(),
    "rigl": cw.RigL(every=1, until=7),
    "rigl by estimate": cw.RigL(every=1, until=7, estimate=True),
    "supermask": cw.Supermask(),
    "supermask in bins": cw.Supermask(weight_bits=3),
    "srste": cw.srste(),
    # When masks settle, code is compiled once more.
    "spartan": cw.Spartan(thin_until=2, until=99),
}
STEPS = 6
# torch.compile itself does what this warns of, wherever it meets an autograd.Function.
pytestmark = pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")


class Network(nn.Module):
    """A convolution makes the tokens of an image, which attend to each other."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc1 = nn.Linear(16, 40)
        self.fc2 = nn.Linear(40, 8)

    def forward(self, x):
        x = self.tokens(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.fc2(torch.nn.functional.gelu(self.fc1(x))).mean(1)


@pytest.fixture(autouse=True)
def one_compilation():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def prepared(method: Method, storage: str = "dense") -> tuple[nn.Module, cw.Sparsifier]:
    torch.manual_seed(0)
    model = Network().double()
    patterns = "unstructured" if storage == "dense" else {"attention.*": "block:4", "fc*": "vector:4"}
    return model, cw.sparsify(model, patterns, density=0.3, method=method, track=True, storage=storage)


def train(model: nn.Module, sparsifier: cw.Sparsifier, call, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 3, 16, 16, generator=generator).double(), torch.randint(0, 8, (6,), generator=generator)
        loss = nn.functional.cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def check_compiled(method: Method, backend: str, storage: str = "dense") -> None:
    model, sparsifier = prepared(method, storage)
    twin, twins_sparsifier = prepared(method, storage)
    losses = train(model, sparsifier, torch.compile(model, fullgraph=True, backend=backend))
    expected = train(twin, twins_sparsifier, twin)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    for name, layer in sparsifier.layers.items():
        assert torch.equal(layer.sparsity.mask, twins_sparsifier.layers[name].sparsity.mask), name
        torch.testing.assert_close(layer.trained, twin.get_submodule(name).trained, rtol=1e-6, atol=1e-9)
    turnovers = [sum(seen.turnovers) for seen in sparsifier.exploration.values()]
    assert any(turnovers) or isinstance(method, cw.Static)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_training_is_eager_training_without_a_second_compilation(method):
    check_compiled(METHODS[method], "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl", pytest.param("rigl by estimate", marks=pytest.mark.exhaustive)])
def test_inductor_trains_the_same(method):
    check_compiled(METHODS[method], "inductor")


@pytest.mark.parametrize("method", ["static", "rigl", "rigl by estimate"])
def test_compressed_layers_compile_once_and_train_what_eager_ones_train(method):
    check_compiled(METHODS[method], "aot_eager", "compressed")


@pytest.mark.slow
def test_inductor_trains_compressed_layers_the_same():
    check_compiled(METHODS["rigl"], "inductor", "compressed")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_many_compressed_blocks_share_what_is_compiled():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(12)))
    sparsifier = cw.sparsify(model, "block:4", density=0.5, method=METHODS["rigl"], storage="compressed")
    sparsifier.attach(optimizer := torch.optim.SGD(model.parameters(), lr=0.1))
    with torch._dynamo.config.patch(error_on_recompile=False, recompile_limit=3, fail_on_recompile_limit_hit=True):
        for block in model:
            block.compile(fullgraph=True, backend="aot_eager")
        for _ in range(3):
            model(torch.randn(3, 16)).sum().backward()
            optimizer.step()


def test_attention_with_weights_and_masks_compiles_without_a_graph_break():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    cw.sparsify(attention, "block:4", density=0.5)
    x, causal = torch.randn(2, 5, 16), torch.ones(5, 5, dtype=torch.bool).triu(1)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    out, weights = compiled(x, x, x, attn_mask=causal)
    expected_out, expected_weights = attention(x, x, x, attn_mask=causal)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(weights, expected_weights)


def test_a_model_compiled_in_place_and_a_copy_of_it_see_their_own_masks():
    model, sparsifier = prepared(METHODS["rigl"])
    model.compile(fullgraph=True, backend="aot_eager")
    train(model, sparsifier, model, steps=2)
    average = copy.deepcopy(model).eval()
    x = torch.randn(6, 3, 16, 16).double()
    before = average(x)
    sparsifier.detach()
    train(model, sparsifier, model, steps=2)
    assert torch.equal(average(x), before)
    assert not torch.equal(model(x), before)
