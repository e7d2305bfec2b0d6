"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_the_code_of_the_readme_runs(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(block, str(README), "exec"), {})
    assert "block:16" in capsys.readouterr().out


def test_there_is_code_to_run():
    assert BLOCKS


def test_the_tables_name_every_pattern_form_and_every_method():
    from cutwork.methods import METHODS

    text = README.read_text()
    assert all(f"`{name}`" in text for name in METHODS)
    assert all(word in text for word in ("`unstructured`", "`block:", "`vector:", "`shuffled:", "`2:4-tile`"))
