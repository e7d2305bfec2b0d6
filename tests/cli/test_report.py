"""The page about runs: it opens anywhere, names all of them, and says what there is to see."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from cutwork.cli import main as cli
from cutwork.lab.sweeping.sweep import Sweep, spread
from cutwork.lab.training import Training

TINY = ["--model", "mlp:hidden=(32,32)", "--data", "digits", "--batch", "256", "--epochs", "2", "--log-every", "1"]
RUNS = {
    "dense": [],
    "half": ["--pattern", "block:8", "--density", "0.5", "--ends"],
    "a<b&c": ["--pattern", "block:8", "--density", "0.25", "--ends", "--seed", "1"],
}
# What ends itself.
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Reads a page, and fails where a part is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.addresses = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        assert cli.main(["train", *TINY, *options, "--output", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def page(folder):
    assert cli.main(["report", str(folder), "--output", str(folder / "report.html"), "--measure"]) == 0
    return (folder / "report.html").read_text()


def test_the_page_names_all_runs_and_needs_nothing_else(page):
    reader = Reader(page)
    text = "".join(reader.text)
    assert all(name in text for name in RUNS)
    assert "a<b" not in page
    assert not re.search(r"""https?:|=["']//|url\((?!#)|@import""", page)
    assert all(re.match(r"data:|#", address) for address in reader.addresses)
    for title in ("Leaderboard", "Best accuracy at a share of the dense time", "What differs", "Masks and layers"):
        assert title in text
    # Density, both times, and two curves.
    assert reader.tags.count("svg") == 5
    assert reader.tags.count("img") == 2 * 3
    assert "examples takes" in text and "times dense" in text


def test_colours_are_those_of_the_page(page):
    drawn = page.partition('<div class="charts">')[2].partition("<h2>")[0]
    assert "var(--c0)" in drawn and "var(--ink)" in drawn
    assert not re.search("#[0-9a-f]{6}", drawn.replace("#ffffff", ""))


def test_charts_are_written_beside_the_page_if_asked_for(folder, tmp_path, capsys):
    given = ["report", str(folder / "half"), str(folder / "dense"), "--output", str(tmp_path / "two.html")]
    assert cli.main([*given, "--pictures", "--json"]) == 0
    shown = capsys.readouterr()
    assert {run["run"] for run in json.loads(shown.out)["runs"]} == {"half", "dense"}
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {
        "two.html",
        *(f"two-{name}.{kind}" for name in ("step", "accuracy", "loss") for kind in ("svg", "png")),
    }
    assert (tmp_path / "two-loss.png").read_bytes().startswith(b"\x89PNG")
    assert all(name in shown.err for name in files)


def test_a_run_whose_model_is_gone_says_so_and_keeps_its_numbers(folder, tmp_path, capsys):
    shutil.copytree(folder / "half", tmp_path / "half")
    (tmp_path / "half" / "best.safetensors").unlink()
    assert cli.main(["report", str(tmp_path / "half"), "--output", str(tmp_path / "page.html")]) == 0
    text = "".join(Reader((tmp_path / "page.html").read_text()).text)
    assert "Its model was not read: " in text and "has no best.safetensors yet" in text
    assert "no time is compared" in text
    assert capsys.readouterr().out.splitlines()[1].split()[1] == "half"


def test_what_was_never_judged_is_listed_with_its_reason(tmp_path):
    sweep = Sweep(tmp_path / "swept", spread(Training(), {"seed": [0, 1]}))
    with sweep.hold():
        sweep.place("seed=0").fail(ValueError("no such & thing"))
    assert cli.main(["report", str(sweep.folder), "--output", str(tmp_path / "page.html")]) == 0
    text = "".join(Reader((tmp_path / "page.html").read_text()).text)
    assert "2 runs" in text and "0 ended, 1 failed, 1 not ended" in text
    assert "failed: ValueError: no such & thing" in text and "seed=1" in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "there is no run in nowhere"),
        (["{runs}", "--output", "{runs}"], "is a folder; name a file, such as --output"),
        (["{runs}", "--output", "no/such/page.html"], "there is no folder no/such to write page.html into"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(given, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *(each.format(runs=folder) for each in given)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_without_matplotlib_the_error_names_the_extra(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 2
    assert "cutwork[report]" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no browser to open the page in; install chromium to run it")
def test_a_browser_opens_the_page_without_errors_and_sorts_a_table(page, tmp_path):
    # Whatever the page asks of the network fails, and a failure is an error on the console.
    click = """<script>
document.querySelectorAll("table.sorts th")[4].click();
const rows = [...document.querySelector("table.sorts").tBodies[0].rows];
document.title = "sorted " + rows.map(row => row.cells[4].textContent);
</script></body>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", click))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [BROWSER, *options, f"file://{tmp_path / 'page.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0
    densities = re.search("<title>sorted ([^<]*)</title>", done.stdout)
    assert densities and [float(each) for each in densities[1].split(",")] == [0.25, 0.5, 1.0]
    assert "CONSOLE" not in done.stderr
