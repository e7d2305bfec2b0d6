"""A pattern that somebody else wrote lives through all that those of the package do, in both storages."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import cutwork as cw
from cutwork.layers.compressed import Compressed
from cutwork.patterns import PATTERNS, Block, FreePattern, Tiling, parse
from cutwork.sparsity.compressed import index_of


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
