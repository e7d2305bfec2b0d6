import json
import re

import pytest

from cutwork.bench import conv, layers, linear, models, passes, results
from cutwork.bench.run import Run, Runnable
from cutwork.cli import benchmark as commands
from cutwork.cli import main as cli
from cutwork.cli import screen

QUICK = ["--quick", "--seconds", "3", "--densities", "0.5", "0.2", "--patterns", "block:16"]
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
    built, count = layers.candidates, []

    def interrupted(*arguments, **options):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return built(*arguments, **options)

    monkeypatch.setattr(layers, "candidates", interrupted)
    options = [option for option in SMALL["linear"] if option != "--quick"]
    options += ["--passes", "forward", "dX", "--output", str(tmp_path)]
    assert cli.main(["benchmark", "linear", *options]) == screen.STOPPED
    written = json.loads((tmp_path / "results.json").read_text())
    assert {row["work"] for row in written["rows"]} == {"forward"}
    assert "stopped before the end" in capsys.readouterr().out


def test_a_choice_that_fails_late_keeps_what_was_measured_before(tmp_path, capsys):
    options = ["--names", "tiny", "mlp:8x8", "--batches", "2", "--densities", "0.2", "--forms", "packed"]
    assert cli.main(["benchmark", "model", *options, "--seconds", "5", "--output", str(tmp_path)]) == 2
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
        (["--densities", "0"], "density=0.0 is outside"),
        (["--forms", "tiles"], "unknown form 'tiles' (did you mean 'tile'?); write one of dense, "),
        (["--without", "tiles"], "unknown form 'tiles'"),
        (["--passes", "backward"], "unknown pass 'backward'; write one of forward, dX, dW, step"),
        (["--precisions", "fp8"], "unknown precision 'fp8'"),
        (["--threads", "0"], "threads 0; give at least 1"),
        (["--threads", "100000"], "threads 100000; give at least 1, and on this machine at most"),
        (["--seconds", "0"], "seconds 0; give more than 0"),
        (["--seconds", "nan"], "seconds nan; give more than 0, and a finite number"),
        (["--seed", "99999999999999999999999"], "seed 99999999999999999999999; give a whole number"),
        (["--passes"], "nothing is given for pass; name at least one, for example forward"),
        (["--precisions"], "nothing is given for precision; name at least one, for example fp32"),
        (["--shapes"], "nothing is given for shape"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(options, message, capsys):
    assert cli.main(["benchmark", "linear", *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cutwork: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", commands.BENCHMARKS.commands)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["benchmark", command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--quick", "--output", "--seconds", "--threads"))
    assert all(option in out for option in ("--forms", "--without")) or command == "chance"


def test_help_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in commands.BENCHMARKS.commands)


def test_the_number_of_threads_is_put_back(capsys):
    import torch

    before = torch.get_num_threads()
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--threads", str(before + 1)]) == 0
    assert f"{before + 1} threads" in capsys.readouterr().out
    assert torch.get_num_threads() == before


def test_stopped_before_anything_was_measured_it_ends_quietly(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "candidates", interrupted)
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--output", str(tmp_path)]) == screen.STOPPED
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines()[-2:] == ["cutwork: nothing was measured yet, nothing is written", "cutwork: stopped"]
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file", "file/inside", "/proc/foo"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_measured(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(Run, "compare", lambda *arguments, **options: pytest.fail("it measured"))
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--output", str(tmp_path / place)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"cutwork: output {tmp_path / place}: ")
    assert err.endswith("; name a folder, there or not yet there, in which you may write\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_fails_at_the_end_still_leaves_the_table(tmp_path, capsys):
    (tmp_path / "results.json").mkdir()
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--output", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "linear 32->48, forward, tokens 5" in out
    assert "the table above is all that is left" in err


@pytest.mark.parametrize("name", ["timm:nope", "torchvision:nope"])
def test_an_unknown_model_is_a_usage_error(name, capsys):
    pytest.importorskip("timm")
    assert cli.main(["benchmark", "model", "--names", name]) == 2
    err = capsys.readouterr().err
    assert f"cutwork: {name}: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "forms"),
    [
        ("linear", linear.LINEAR_FORMS),
        ("conv", conv.CONV_FORMS),
        ("model", models.MODEL_FORMS),
        ("train", models.MODEL_FORMS),
    ],
)
def test_help_lists_the_forms(command, forms, capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", command, "--help"])
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert set(forms) <= words


def test_chance_has_no_option_that_it_does_not_honour(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "chance", "--help"])
    out = capsys.readouterr().out
    assert not any(option in out for option in ("--forms", "--without", "--patterns", "--densities"))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["benchmark", "chance", "--forms", "tile"])
    assert exit_info.value.code == 2


def test_without_a_terminal_each_piece_is_announced_before_it_is_built(capsys):
    assert cli.main(["benchmark", "linear", *SMALL["linear"]]) == 0
    assert "measuring 1/1: linear 32->48, 5 tokens, forward, fp32, block:16" in capsys.readouterr().err


def test_on_a_narrow_terminal_the_title_is_cut_not_the_time(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.main(["benchmark", "linear", *SMALL["linear"]]) == 0
    err = capsys.readouterr().err
    assert "0:00:0" in err
    assert "0:00:…" not in err
    assert "…" in err


class FakeTime:
    """A clock that groups move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_when_the_time_is_up_the_rest_is_left_out_and_said_so(monkeypatch, capsys):
    clock, given = FakeTime(), []
    compare = Run.compare

    def slow(run, group, *, seconds):
        given.append(seconds)
        compare(run, group, seconds=1)
        clock.now += 4

    monkeypatch.setattr(commands, "perf_counter", clock)
    monkeypatch.setattr(Run, "compare", slow)
    options = ["--seconds", "10", "--forms", "dense", "tile", "--shapes", "32x48", "--tokens", "1", "2", "3", "5"]
    options += ["--patterns", "block:16", "--densities", "0.5"]
    assert cli.main(["benchmark", "linear", *options]) == 0
    # What one leaves over the others get.
    assert given == [10 / 4, 6 / 3, 2 / 2]
    assert "the time was up before 1 of 4 pieces, the first of them linear 32->48, 5 tokens" in capsys.readouterr().out


def test_nothing_measured_is_an_error_that_says_why(monkeypatch, capsys):
    monkeypatch.setattr(Run, "compare", lambda run, group, *, seconds: run.notes.update({"too slow": None}))
    assert cli.main(["benchmark", "linear", *SMALL["linear"]]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.endswith("cutwork: nothing was measured: too slow\n")


def test_a_bug_keeps_what_was_measured_before_and_its_traceback(tmp_path, capsys, monkeypatch):
    built, count = layers.candidates, []

    def broken(*arguments, **options):
        count.append(1)
        return built(*arguments, **options) if len(count) == 1 else 1 / 0

    monkeypatch.setattr(layers, "candidates", broken)
    options = [option for option in SMALL["linear"] if option != "--quick"]
    with pytest.raises(ZeroDivisionError):
        cli.main(["benchmark", "linear", *options, "--passes", "forward", "dX", "--output", str(tmp_path)])
    assert {row["work"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {"forward"}
    assert "stopped before the end" in capsys.readouterr().out


def test_a_reader_that_is_gone_takes_no_results_along(tmp_path, monkeypatch):
    def gone(self):
        raise BrokenPipeError

    monkeypatch.setattr(results.Results, "__str__", gone)
    assert cli.main(["benchmark", "linear", *SMALL["linear"], "--output", str(tmp_path)]) == screen.UNREAD
    assert {file.name for file in tmp_path.iterdir()} >= {"results.json", "results.csv"}
