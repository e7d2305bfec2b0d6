import json

import pytest

from cutwork import cli
from cutwork.benchmark import commands, linear, passes
from cutwork.benchmark.comparison import Runnable

QUICK = ["--quick", "--seconds", "0.05", "--densities", "0.5", "0.2", "--patterns", "block:16"]
SMALL = {
    "linear": [*QUICK, "--forms", "dense", "tile", "csr-left", "--shapes", "32x48", "--tokens", "5"],
    "conv": [*QUICK, "--forms", "dense", "tile", "--shapes", "32@6x6", "--batches", "2"],
    "model": [*QUICK, "--forms", "dense", "packed", "--names", "tiny", "--batches", "2"],
    "train": [*QUICK, "--forms", "dense", "packed", "--names", "mlp:32x64", "--batches", "3"],
}


@pytest.mark.parametrize("command", SMALL)
def test_a_small_measurement_prints_a_table_and_writes_its_files(command, tmp_path, capsys):
    assert cli.main(["benchmark", command, *SMALL[command], "--output", str(tmp_path)]) == 0
    out, _ = capsys.readouterr()
    assert f"{command} " in out
    assert max(map(len, out.splitlines()[:-1])) <= 100 or "$ " in out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert all(row["equal"] and row["ratio"] > 0 for row in rows)
    assert len((tmp_path / "results.csv").read_text().splitlines()) == len(rows) + 1


def test_wrong_numbers_get_no_ratio_and_exit_code_1(tmp_path, capsys, monkeypatch):
    built = passes._tile

    def wrong(work, problem):
        ready = built(work, problem)
        return Runnable(ready.run, lambda: [result + 1 for result in ready.results()])

    monkeypatch.setattr(passes, "_tile", wrong)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["benchmark", "linear", *SMALL["linear"], "--output", str(tmp_path)])
    assert exit_info.value.code == 1
    assert "differs" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["ratio"] for row in rows if row["form"] == "tile"] == [None, None]


def test_an_interrupted_measurement_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    built, count = linear.candidates, []

    def interrupted(*arguments, **options):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return built(*arguments, **options)

    monkeypatch.setattr(linear, "candidates", interrupted)
    options = [option for option in SMALL["linear"] if option != "--quick"]
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["benchmark", "linear", *options, "--passes", "forward", "dX", "--output", str(tmp_path)])
    assert exit_info.value.code == commands.STOPPED
    written = json.loads((tmp_path / "results.json").read_text())
    assert {row["work"] for row in written["rows"]} == {"forward"}
    assert "stopped before the end" in capsys.readouterr().out


def test_a_choice_that_fails_late_keeps_what_was_measured_before(tmp_path, capsys):
    options = ["--names", "tiny", "mlp:8x8", "--batches", "2", "--densities", "0.2", "--forms", "packed"]
    assert cli.main(["benchmark", "model", *options, "--seconds", "0.05", "--output", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "too coarse" in err
    assert "tiny" in out
    assert "stopped before the end" in out
    assert {row["shape"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {"tiny"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patterns", "blok:4"], "unknown pattern 'blok:4'"),
        (["--shapes", "768"], "unknown shape '768'"),
        (["--densities", "0"], "density 0"),
        (["--forms", "tiles"], "unknown form 'tiles'; write one of dense, "),
        (["--without", "tiles"], "unknown form 'tiles'"),
        (["--passes", "backward"], "unknown pass 'backward'; write one of forward, dX, dW, step"),
        (["--precisions", "fp8"], "unknown precision 'fp8'"),
        (["--threads", "0"], "threads 0; give at least 1"),
        (["--seconds", "0"], "seconds 0; give more than 0"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(options, message, capsys):
    assert cli.main(["benchmark", "linear", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cutwork: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["benchmark", command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--forms", "--without", "--quick", "--output", "--seconds", "--threads"))


def test_help_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in commands.COMMANDS)


def test_the_number_of_threads_is_put_back(capsys):
    import torch

    before = torch.get_num_threads()
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--threads", str(before + 1)]) == 0
    assert f"{before + 1} threads" in capsys.readouterr().out
    assert torch.get_num_threads() == before
