"""Measure everything that stands under benchmarks/, piece by piece, and write the pages anew.

    python benchmarks/run.py              all pieces that have no results yet
    python benchmarks/run.py vit-b16      these, whether they have results or not
    python benchmarks/run.py --list       what there is, and what was measured

A piece takes less than ten minutes on two cores. Let nothing else run on the machine.
"""

import subprocess
import sys
from pathlib import Path

from render import write_pages

from cutwork.bench.results import Results, find_unsteady_bases, title_of
from cutwork.cli.benchmark import STOPPED_NOTE

ROOT = Path(__file__).parents[1]
# A piece whose dense forms were disturbed is measured so often at most.
TRIES = 3
# Among hundreds of small layers a few are always disturbed.
FEW = 0.05
TILES = "--patterns block:16 block:32 block:64 vector:16 vector:64"
WIDE = "--shapes 768x3072 3072x768"
CONVS = "--shapes 64@32x32 128@16x16 256@8x8 --batches 64 --patterns block:16 block:32 vector:16"
# Other packages' formats are measured once, in a piece of their own: they are slow.
OURS = "--forms dense compiled tile"

PIECES = {
    "linear-197": f"linear {WIDE} --tokens 197 {TILES} {OURS} onnx --seconds 100",
    "linear-1576": f"linear {WIDE} --tokens 1576 {TILES} {OURS} onnx --seconds 150",
    "linear-few": f"linear {WIDE} --tokens 1 8 128 {TILES} {OURS} --seconds 300",
    "linear-gradients": f"linear {WIDE} --tokens 1576 --passes dX dW {TILES} --forms dense tile --seconds 110",
    "linear-step": f"linear {WIDE} --tokens 1576 --passes step {TILES} --forms dense tile --seconds 110",
    "linear-step-128": f"linear {WIDE} --tokens 128 --passes step {TILES} {OURS} --seconds 150",
    "linear-bf16": f"linear {WIDE} --tokens 197 1576 --precisions bf16 {TILES} {OURS} --seconds 300",
    "linear-int8": f"linear {WIDE} --tokens 1 197 1576 --precisions int8 {TILES} {OURS} onnx --seconds 300",
    "linear-others": "linear --tokens 197 --patterns block:16 block:32 block:64 --seconds 120",
    "linear-batch-1": "linear --shapes 4096x11008 --tokens 1 --densities 0.2 0.1 --without bsr csr --seconds 60",
    "conv": f"conv {CONVS} --seconds 150",
    "conv-gradients": f"conv {CONVS} --passes dX dW --seconds 110",
    "conv-step": f"conv {CONVS} --passes step --seconds 150",
    "conv-others": "conv --shapes 128@16x16 --kernels 1 3 --strides 1 2 --batches 64 --passes forward dX dW "
    "--patterns block:16 --forms dense tile --seconds 40",
    "train-layer": "train --names linear:768x3072 mlp:768x3072 --batches 128 1576 --densities 0.5 0.2 0.1 0.05 "
    "--patterns block:16 block:32 vector:16 --without compiled moving --seconds 180",
    "train-moves": "train --names linear:4096x4096 --batches 128 --densities 0.1 "
    "--patterns block:16 block:32 vector:16 shuffled:16 --forms dense packed moving --seconds 180",
    "vit-b16": "model --names vit-b16 --layers mlp linears --batches 1 8 --densities 0.2 0.1 --patterns block:32 "
    "--seconds 580",
    "vit-b16-bf16": "model --names vit-b16 --layers linears --batches 1 8 --densities 0.2 0.1 --patterns block:32 "
    "--precisions bf16 --seconds 500",
    "vit-b16-train": "train --names vit-b16 --layers linears --batches 8 --densities 0.2 0.1 --patterns block:32 "
    "--without compiled moving --seconds 480",
    "resnet50": "model --names resnet50 --layers convs --batches 1 8 --densities 0.2 0.1 --patterns block:16 "
    "--seconds 400",
    "resnet50-train": "train --names resnet50 --layers convs --batches 8 --densities 0.2 0.1 --patterns block:16 "
    "--without compiled moving --seconds 120",
    "llama-small": "model --names llama-small --layers linears --batches 1 --densities 0.2 0.1 --patterns block:32 "
    "vector:16 --without compiled --seconds 60",
    "chance": "chance --count 200 --seconds 200",
}


def main(names: list[str]) -> int:
    """Measure the pieces of these names, or those that are missing; return how many failed."""
    if names == ["--list"]:
        for name, options in PIECES.items():
            print(f"{'done' if is_done(name) else '    '} {name:18} cutwork benchmark {options}")
        return 0
    if unknown := [name for name in names if name not in PIECES]:
        print(f"unknown piece {unknown[0]!r}; write {', '.join(PIECES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or [name for name in PIECES if not is_done(name)]:
        print(f"\n== {name}", flush=True)
        failed += not measure(name)
        write_pages()
    return failed


def measure(name: str) -> bool:
    """Measure a piece, again while dense forms that ratios rest on are unsteady; say whether it ran to its end.

    Of several tries the one with the fewest unsteady dense forms stands.
    """
    # The command stands in the results, so it names no folder of this machine.
    options = [*PIECES[name].split(), "--output", f"benchmarks/{name}"]
    folder = ROOT / "benchmarks" / name
    fewest, files = None, {}
    for again in reversed(range(TRIES)):
        if subprocess.run([sys.executable, "-m", "cutwork", "benchmark", *options], check=False, cwd=ROOT).returncode:
            return False
        rows = results_of(name).rows
        unsteady = find_unsteady_bases(rows)
        if fewest is None or len(unsteady) < fewest:
            fewest, files = len(unsteady), {file: file.read_bytes() for file in folder.iterdir()}
        if len(unsteady) <= FEW * sum(row.is_base for row in rows):
            break
        worst = max(unsteady, key=lambda row: row.spread or 0.0)
        print(
            f"unsteady: {len(unsteady)} dense times that ratios rest on, the worst {worst.form} {worst.precision} of "
            f"{title_of(worst)}, its quartiles {worst.spread:.0%} apart; "
            + ("measuring again" if again else f"so it stays after {TRIES} tries, marked with ~"),
            file=sys.stderr,
            flush=True,
        )
    for file, content in files.items():
        file.write_bytes(content)
    return True


def results_of(name: str) -> Results:
    """Read what was measured of a piece."""
    return Results.from_json((ROOT / "benchmarks" / name / "results.json").read_text())


def is_done(name: str) -> bool:
    """Say whether a piece was measured to its end."""
    return (ROOT / "benchmarks" / name / "results.json").exists() and STOPPED_NOTE not in results_of(name).notes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
