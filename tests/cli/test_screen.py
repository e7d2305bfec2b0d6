from cutwork.cli import screen


def test_without_a_terminal_only_forms_that_take_long_have_lines_of_their_own(capsys):
    lines = screen.Lines(3)
    lines.group(1, "a layer", 12.4)
    lines.form("dense fp32", 0.1)
    lines.form("dense bf16", 25.0)
    assert capsys.readouterr().err == "measuring 2/3: a layer; 12 s left\n  dense bf16, about 25 s\n"
