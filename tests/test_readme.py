"""The code of the README and of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run_blocks(page, folder, monkeypatch):
    """Run the Python blocks of a page one after the other, with shared names, in a folder of their own."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("README.md", "block:16"),
        ("docs/when-not.md", "block:16"),
        ("docs/guide.md", "vector:16"),
        ("docs/sparse-ift.md", "stays: LayerNorm is no linear function"),
        ("docs/data.md", "torch.Size([1437, 1, 8, 8])"),
        ("docs/benchmarks.md", "the whole model"),
        ("docs/bringing-models.md", "2:4 along inputs in 1 of 2 weights"),
    ],
)
def test_the_code_of_a_page_runs(page, said, tmp_path, monkeypatch, capsys):
    run_blocks(page, tmp_path, monkeypatch)
    assert said in capsys.readouterr().out


def test_the_code_of_the_page_on_training_programs_runs(tmp_path, monkeypatch, capsys):
    run_blocks("docs/training.md", tmp_path, monkeypatch)
    accuracy, density, _ = map(float, capsys.readouterr().out.split())
    assert 0 < accuracy <= 1
    assert abs(density - 0.2) < 0.02


def test_the_code_of_the_first_hour_runs(tmp_path, monkeypatch):
    run_blocks("docs/index.md", tmp_path, monkeypatch)
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000


def test_the_readme_is_short():
    """A stranger reads a page, not a book."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_tables_of_the_first_hour_name_every_pattern_form_and_every_method():
    from cutwork.methods import METHODS

    text = (ROOT / "docs" / "index.md").read_text()
    assert all(f"`{name}`" in text for name in METHODS)
    assert all(word in text for word in ("`unstructured`", "`block:", "`vector:", "`shuffled:", "`2:4-tile`"))
