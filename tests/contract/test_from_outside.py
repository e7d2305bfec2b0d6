"""What somebody else wrote, one class or function and one row, lives through all that those of the package do."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutwork as cw
from cutwork import data, kernels
from cutwork.cli import main as cli
from cutwork.kernels import Device, Kernel
from cutwork.layers.compressed import Compressed
from cutwork.layers.swap import exchange
from cutwork.methods import METHODS, Method, View
from cutwork.methods.scores import Score
from cutwork.models import named
from cutwork.ops.block_linear import block_linear
from cutwork.ops.dispatch import KERNELS, reference_of
from cutwork.patterns import PATTERNS, Block, FreePattern, Tiling, parse
from cutwork.sparsity.compressed import index_of
from cutwork.speed.forms import FORMS, Form, form_of


@dataclass(frozen=True)
class Combed(FreePattern):
    """Blocks whose outputs stand as far apart as they can, like the teeth of combs put into each other."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"combed:{self.rows}x{self.columns}"

    @property
    def tiling(self) -> Tiling:
        return Tiling(self.rows, self.columns, order=self.order)

    def order(self, matrix: Tensor) -> Tensor:
        return torch.arange(len(matrix), device=matrix.device).view(self.rows, -1).T.flatten()

    @property
    def blocks(self) -> Block:
        return Block(self.rows, self.columns)

    def check(self, shape) -> None:
        if shape[0] % self.rows:
            raise ValueError(f"{self} needs outputs in groups of {self.rows}; got {shape[0]}")

    def grid(self, shape) -> tuple[int, int]:
        return self.blocks.grid(shape)

    def pool(self, scores: Tensor) -> Tensor:
        return self.blocks.pool(scores[self.order(scores)])

    def spread(self, units: Tensor, shape) -> Tensor:
        combed = self.blocks.spread(units, shape)
        return torch.empty_like(combed).index_copy_(0, self.order(combed), combed)


class Untiled(Combed):
    @property
    def tiling(self) -> None:
        return None


@pytest.fixture(autouse=True)
def text_form(monkeypatch):
    row = r"combed:(\d+)x(\d+)", lambda rows, columns: Combed(int(rows), int(columns))
    monkeypatch.setitem(PATTERNS, "combed:4x2", row)


def build() -> nn.Module:
    torch.manual_seed(0)
    # In double precision the storages agree to the last decision about a mask.
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 16), nn.ReLU(), nn.Linear(16, 4))
    ).double()


def trained(storage: str):
    model = build()
    method = cw.RigL(every=2, until=6)
    sparsifier = cw.sparsify(model, "combed:4x2", density=0.4, method=method, storage=storage)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    before = {name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()}
    for step in range(8):
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(not torch.equal(before[name], layer.sparsity.mask) for name, layer in sparsifier.layers.items())
    return model.eval(), sparsifier, optimizer


X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(9)).double()


def same(one: nn.Module, other: nn.Module) -> bool:
    with torch.no_grad():
        return torch.allclose(one(X), other(X), rtol=1e-9, atol=1e-12)


def test_both_storages_train_alike():
    (dense, of_dense, _), (compressed, of_compressed, _) = trained("dense"), trained("compressed")
    assert all(isinstance(layer, Compressed) for layer in of_compressed.layers.values())
    for name, layer in of_dense.layers.items():
        assert torch.equal(layer.sparsity.mask, of_compressed.layers[name].sparsity.mask)
    assert same(dense, compressed)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_it_is_saved_and_loaded_by_its_text(tmp_path, storage):
    model, sparsifier, optimizer = trained(storage)
    cw.save(model, tmp_path / "model.safetensors", sparsifier=sparsifier, optimizer=optimizer)
    twin = build().eval()
    cw.load(tmp_path / "model.safetensors", twin)
    assert same(model, twin)
    assert twin[0].sparsity.pattern == Combed(4, 2)
    assert "combed:4x2" in str(cw.describe(tmp_path / "model.safetensors"))


def test_it_is_packed_in_every_form_reported_unpacked_and_baked():
    model, sparsifier, _ = trained("dense")
    sparsifier.detach()
    model.float()
    x, expected = X.float(), copy.deepcopy(model)(X.float())
    cw.bake(dense := copy.deepcopy(model))
    packed = copy.deepcopy(model)
    cw.pack(packed, forms={"0": "tiles", "3": "tiles-int8", "5": "tiles-bf16"})
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected, rtol=0.1, atol=0.1)
        torch.testing.assert_close(dense(x), expected)
    kept = {row.layer: row.kept_parameters for row in cw.report(packed).rows}
    assert kept == {row.layer: row.kept_parameters for row in cw.report(model).rows}
    cw.pack(model, forms="tiles")
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(cw.unpack(model)(x), expected)


def test_a_pattern_without_tiles_says_so():
    message = "combed:4x2 has no tiles to store; use block, vector or shuffled, or keep it in dense storage"
    with pytest.raises(ValueError, match=message):
        cw.sparsify(build(), Untiled(4, 2), density=0.4, storage="compressed")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_nor_have_those_of_single_entries_any(pattern):
    with pytest.raises(ValueError, match=f"{pattern} has no tiles to store"):
        index_of(torch.ones(4, 4, dtype=torch.bool), parse(pattern))


def shrinking(weight: Tensor, grad: Tensor | None = None, generator=None) -> Tensor:
    """A score that needs the gradient: weights that the loss wants smaller come last."""
    assert grad is not None
    return -(weight * grad)


@dataclass(frozen=True)
class Hop(Method):
    """Exchanges a tenth of the units in each of the steps that are powers of two."""

    keep: Score = cw.magnitude
    grow: Score = cw.random

    def start(self, view: View, init: Score) -> Tensor:
        return cw.project_by(view, init)

    def due(self, step: int) -> bool:
        return math.log2(step).is_integer()

    def move(self, view: View) -> Tensor:
        return view.pattern.regrow(view.mask, view.score(self.keep), view.score(self.grow), 0.1)

    @property
    def needs_gradient(self) -> bool:
        return self.grow is shrinking

    @property
    def dense_gradient_share(self) -> float:
        return 0.0


def train(method, pattern="combed:4x2", storage="compressed", steps=5):
    model = build()
    sparsifier = cw.sparsify(model, pattern, density=0.4, method=method, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(optimizer)
    for step in range(steps):
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), sparsifier, optimizer


@pytest.mark.parametrize("pattern", ["combed:4x2", "block:4", "shuffled:4"])
@pytest.mark.parametrize("grow", [cw.random, shrinking], ids=["random", "shrinking"])
def test_a_method_and_a_score_train_alike_in_both_storages_and_resume(tmp_path, grow, pattern):
    method, path = Hop(grow=grow), tmp_path / "model.safetensors"
    first = cw.sparsify(build(), pattern, density=0.4, method=method).layers["3"].sparsity.mask
    (dense, of_dense, _), (compressed, sparsifier, optimizer) = (
        train(method, pattern, storage) for storage in ("dense", "compressed")
    )
    masks = [each.layers["3"].sparsity.mask for each in (of_dense, sparsifier)]
    assert torch.equal(*masks)
    assert not torch.equal(masks[0], first)
    assert same(dense, compressed)
    cw.save(compressed, path, sparsifier=sparsifier, optimizer=optimizer)
    twin, of_twin, its_optimizer = train(method, pattern, steps=0)
    cw.load(path, twin, sparsifier=of_twin, optimizer=its_optimizer)
    assert same(compressed, twin)
    assert of_twin.state_dict() == sparsifier.state_dict()


def test_a_method_has_a_name(monkeypatch):
    monkeypatch.setitem(METHODS, "hop", Hop)
    assert train("hop")[1].method == Hop()
    with pytest.raises(ValueError, match=r"unknown method 'hopp' \(did you mean 'hop'\?\)"):
        train("hopp")


class Whole(nn.Module):
    """A layer of somebody's own, which multiplies by the whole weight of another."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().clone()), layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class InWhole(Form):
    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, Whole)

    def why_not(self, name: str, layer: nn.Module) -> str:
        return "" if layer.weight.dim() == 2 else "it is for linear layers"

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        for name in names:
            layer = model.get_submodule(name)
            exchange(model, layer, Whole(layer))


def test_a_form_is_offered_refused_and_given(monkeypatch):
    monkeypatch.setitem(FORMS, "whole", InWhole())
    model, sparsifier, _ = train("static")
    sparsifier.detach()
    expected = model(X)
    with pytest.raises(ValueError, match="0 cannot take the form 'whole': it is for linear layers"):
        cw.pack(copy.deepcopy(model), X, forms="whole")
    plan = cw.pack(model, X, forms={"0": "tiles", "3": "whole", "5": "tiles"})
    assert [row.form for row in plan.rows] == ["tiles", "whole", "tiles"]
    assert form_of(model[3]) == "whole"
    torch.testing.assert_close(model(X), expected)


class Abacus(Device):
    """A processor with a kernel of one's own, which counts what it is asked for."""

    def __init__(self):
        self.calls = 0

    def multiply(self, *operands: Any) -> Tensor:
        self.calls += 1
        return reference_of(block_linear)(*operands)

    def register(self) -> None:
        KERNELS[block_linear._qualname, "cpu"] = self.multiply

    def kernel(self, operator: Any, dtype: torch.dtype) -> str:
        return "abacus" if operator is block_linear else ""

    def survey(self) -> list[Kernel]:
        return [Kernel("abacus", True, "somebody counts")]

    def machine(self, device: torch.device) -> str:
        return "somebody's abacus"


def test_a_device_multiplies_and_is_named_wherever_kernels_are(monkeypatch):
    abacus = Abacus()
    monkeypatch.setitem(KERNELS, (block_linear._qualname, "cpu"), None)
    monkeypatch.setitem(kernels.DEVICES, "cpu", abacus)
    abacus.register()
    model, sparsifier, _ = train("static")
    assert abacus.calls == 2 * 5
    assert [row.kernel for row in cw.report(model).rows] == ["reference", "abacus", "abacus"]
    assert "abacus" in str(cw.diagnose())
    assert kernels.machine_of(torch.device("cpu")) == "somebody's abacus"
    expected = model(X)
    sparsifier.detach()
    torch.testing.assert_close(cw.unpack(model)(X), expected)


def test_a_data_set_a_model_and_a_command_are_a_row_each(monkeypatch, capsys):
    spots = SimpleNamespace(load_spots=lambda: "spots")
    monkeypatch.setattr(data, "import_module", lambda name: spots)
    monkeypatch.setitem(data.DATA_SETS, "spots", ("my_package.spots", "load_spots"))
    assert data.load_data("spots") == "spots"

    subject = named.Subject(nn.Linear(4, 4), lambda batch: (torch.ones(batch, 4),))
    monkeypatch.setitem(named.NAMED, "plain", lambda: subject)
    assert cli.main(["benchmark", "model", "--names", "nosuch"]) == 2
    assert "plain" in capsys.readouterr().err

    def greet(*, name: str = "world") -> None:
        """Greet somebody.

        Args:
            name: Whom.
        """
        print("hello", name)

    monkeypatch.setitem(cli.COMMANDS, "greet", greet)
    assert cli.main(["greet", "--name", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "Greet somebody." in capsys.readouterr().out
