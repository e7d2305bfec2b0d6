import json

from cutwork.cli import main as cli


def test_doctor_prints_a_page(capsys):
    assert cli.main(["doctor"]) == 0
    assert "Kernels\n" in capsys.readouterr().out


def test_doctor_prints_json_only(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"]
