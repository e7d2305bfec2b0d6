import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cutwork.cli import main as cli


@pytest.fixture
def fake_demo(monkeypatch):
    """Put a demo in place that records its options, and return the record."""
    calls = []

    class Result(str):
        reload_is_equal = True

    def run(**options):
        calls.append(options)
        options["progress"](1, 2, "loss 3.0")
        return Result("a result")

    monkeypatch.setitem(sys.modules, "cutwork.lab.demo", SimpleNamespace(run=run))
    return calls


def test_demo_passes_its_options_on_and_prints_the_result(fake_demo, capsys):
    assert cli.main(["demo", "--epochs", "2", "--density", "0.5", "--pattern", "2:4", "--seed", "7"]) == 0
    (options,) = fake_demo
    assert callable(options.pop("progress"))
    assert options == {
        "epochs": 2,
        "density": 0.5,
        "pattern": "2:4",
        "method": "rigl",
        "seed": 7,
        "output": Path("demo-output"),
    }
    out = capsys.readouterr().out
    assert "1/2" in out
    assert out.endswith("a result\n")


def test_a_demo_whose_reload_differs_fails(monkeypatch):
    result = SimpleNamespace(reload_is_equal=False)
    monkeypatch.setitem(sys.modules, "cutwork.lab.demo", SimpleNamespace(run=lambda **options: result))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["demo"])
    assert exit_info.value.code == 1


def test_the_help_of_the_demo_names_every_method(capsys):
    from cutwork.methods import METHODS

    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    said = capsys.readouterr().out
    assert all(method in said for method in METHODS)
