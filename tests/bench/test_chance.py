import json

import pytest
import torch

from cutwork.bench import chance
from cutwork.bench.run import Run
from cutwork.cli.main import main


def test_random_layers_are_packed_and_compared_with_dense_ones():
    groups = chance.groups(6, seed=3)
    assert [group.title for group in groups] == [group.title for group in chance.groups(6, seed=3)]
    assert len({group.title for group in groups}) == 6
    run = Run()
    for group in groups:
        run.compare(group, seconds=0.01)
    packed = [row for row in run.rows if row.form.startswith("packed")]
    assert len(packed) == 6
    assert all(row.equal and row.ratio for row in packed)
    assert chance.summary(run.rows).startswith("Of 6 layers ")


def test_nothing_measured_is_said_so():
    assert chance.summary([]) == "no layer was measured to its end"


def test_the_command_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chance, "PACK_S", 0.01)
    threads = torch.get_num_threads()
    assert main(["benchmark", "chance", "--count", "2", "--seconds", "30", "--output", str(tmp_path)]) == 0
    assert "Of 2 layers" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"random"}
    assert torch.get_num_threads() == threads


def test_a_count_below_one_is_refused(capsys):
    assert main(["benchmark", "chance", "--count", "0"]) == 2
    assert "count 0; give 1 to 100000" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_every_draw_can_be_built(seed):
    for group in chance.groups(4, seed):
        assert len(group.candidates()) == 2
