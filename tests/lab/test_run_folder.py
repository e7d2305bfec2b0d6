"""The folder of a run survives half-written lines and knows what has ended."""

import os

import pytest

from cutwork.lab.run_folder import RunFolder, find_newest
from cutwork.lab.training import Training


def test_half_a_line_is_forgotten_and_what_follows_a_step_too(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.add({"step": step})
    with folder.curves.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [each["step"] for each in folder.read_curves()] == [1, 2, 3]
    folder.forget_after(2)
    folder.add({"step": 3, "loss": 0.5})
    assert folder.read_curves() == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.5}]


def test_the_newest_run_that_has_not_ended_is_found(tmp_path):
    for number, name in enumerate(("old", "new", "ended")):
        run = RunFolder(tmp_path / name)
        run.begin(Training())
        for file in run.path.iterdir():
            os.utime(file, ns=(number * 10**9, number * 10**9))
    RunFolder(tmp_path / "ended").end({"step": 1})
    assert find_newest(tmp_path).path == tmp_path / "new"
    assert find_newest(tmp_path / "old").path == tmp_path / "old"
    for name in ("old", "new"):
        RunFolder(tmp_path / name).end({"step": 1})
    with pytest.raises(FileNotFoundError, match=r"no run to go on with in .*: all have ended"):
        find_newest(tmp_path)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run to go on with"):
        find_newest(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        RunFolder(tmp_path).read_config()


def test_an_option_of_another_version_is_named(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(Training())
    folder.config.write_text(folder.config.read_text().replace('"lr":', '"lrr":'))
    with pytest.raises(ValueError, match=r"config\.json: there is no option 'optimizing\.lrr'"):
        folder.read_config()
