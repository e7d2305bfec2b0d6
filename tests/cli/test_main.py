import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import cutwork
from cutwork.cli import main as cli
from cutwork.cli.screen import UNREAD, CommandGroup


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "cutwork", *arguments], capture_output=True, text=True)


def test_help_lists_the_subcommands():
    done = run("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in cli.COMMANDS)


def test_help_does_not_import_torch():
    run = "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    code = f"import sys\nfrom cutwork.cli.main import main\n{run}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_answers_in_less_time_than_torch_takes_to_import():
    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True)
        return time.perf_counter() - start

    # The best of several: the machine may be busy with other tests.
    assert min(seconds("-m", "cutwork", "--help") for _ in range(3)) < min(
        seconds("-c", "import torch") for _ in range(3)
    )


@pytest.mark.parametrize("error", [ValueError, TypeError, FileNotFoundError])
def test_a_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, error):
    def fail(**options):
        raise error("unknown pattern 'blok:4'")

    monkeypatch.setitem(sys.modules, "cutwork.lab.demo", SimpleNamespace(run=fail))
    assert cli.main(["demo", "--pattern", "blok:4"]) == 2
    assert capsys.readouterr().err == "cutwork: unknown pattern 'blok:4'\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(**options):
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "cutwork.lab.demo", SimpleNamespace(run=fail))
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_an_unknown_option_is_exit_code_2_and_names_the_nearest_one():
    done = run("demo", "--epohs", "2")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_tyro_the_error_has_cause_given_and_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert cli.main(["doctor"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("cutwork: the command line needs the package 'tyro'")
    assert sys.executable in message
    assert message.endswith("pip install 'cutwork[cli]'\n")


def test_a_command_that_somebody_stops_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("cutwork.speed.machine.diagnose", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "cutwork: stopped\n"


def test_the_version_is_told_without_torch():
    code = "import sys; from cutwork.cli.main import main; main(['--version']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"cutwork {cutwork.__version__}\n")
    assert "cutwork --version" in run("--help").stdout


@pytest.mark.parametrize(("given", "title"), [([], "doctor"), (["benchmark"], "chance")])
def test_without_a_subcommand_help_is_shown(given, title):
    done = run(*given)
    assert done.returncode == 0
    assert title in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("given", [["--version"], ["--help"], ["benchmark", "linear", "--help"]])
def test_a_reader_that_goes_away_is_no_error(given):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "cutwork", *given], stdout=gone, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (UNREAD, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_line_and_exit_code_2():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cutwork", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("cutwork: [Errno 28]")
    assert done.stderr.count("\n") == 1


def test_without_standard_output_it_still_runs():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdout = None; from cutwork.cli.main import main; sys.exit(main(['--version']))",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_letters_that_a_terminal_lacks_are_no_error():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = (
        "import sys; from cutwork.cli.main import main; main(['--version']); "
        "print(chr(0x2580) * 2); print(chr(0xDCFF), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stdout.endswith("??\n")
    assert done.stderr == "?\n"


def test_too_little_memory_is_one_line_and_exit_code_2(monkeypatch, capsys):
    def fail(**options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 4 bytes")

    monkeypatch.setitem(sys.modules, "cutwork.lab.demo", SimpleNamespace(run=fail))
    assert cli.main(["demo"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("cutwork: out of memory: DefaultCPUAllocator: can't allocate memory: you tried")
    assert err.count("\n") == 1


def test_a_command_of_ones_own_is_one_row(monkeypatch, capsys):
    def add(one: int, other: int = 2) -> None:
        """Add two numbers."""
        print(one + other)

    monkeypatch.setitem(cli.COMMANDS, "add", add)
    monkeypatch.setitem(cli.COMMANDS, "arithmetic", CommandGroup("Numbers.", {"add": add, "plus": add}))
    assert cli.main(["add", "--one", "1"]) == 0
    assert cli.main(["arithmetic", "add", "--one", "1", "--other", "4"]) == 0
    assert capsys.readouterr().out == "3\n5\n"
