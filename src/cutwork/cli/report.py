"""The command `cutwork report`: runs beside each other, as one page."""

import sys
from pathlib import Path


def report(
    runs: tuple[Path, ...],
    /,
    *,
    output: Path = Path("report.html"),
    measure: bool = False,
    pictures: bool = False,
    json: bool = False,
) -> None:
    """Compare runs in one page of HTML that opens without network: a leaderboard, charts, curves, masks and layers.

    Args:
        runs: Folders of runs, of sweeps, or with runs anywhere inside.
        output: The page.
        measure: Fold and pack the models, time their forward passes beside each other here, and say what was chosen for
            each layer and why.
        pictures: Write the charts as SVG and PNG too, beside the page.
        json: Print the leaderboard for a program to read instead of a table.
    """
    from cutwork.lab.comparing.charts import draw_charts, save
    from cutwork.lab.comparing.findings import find_runs
    from cutwork.lab.comparing.leaderboard import Leaderboard
    from cutwork.lab.comparing.looking import look_at
    from cutwork.lab.comparing.page import write_page

    if output.is_dir():
        raise IsADirectoryError(f"{output} is a folder; name a file, such as --output {output / 'report.html'}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} to write {output.name} into")
    found = find_runs(runs)
    looks = look_at(found, measured=measure)
    forward = {name: 1000 * look.forward.median_s for name, look in looks.items() if look.forward is not None}
    board = Leaderboard(found, forward)
    charts = draw_charts(found, board.step_shares, forward, board.forward_shares)
    output.write_text(write_page(board, looks, charts), encoding="utf-8")
    written = [output]
    for name, chart in charts.items() if pictures else ():
        for kind in ("svg", "png"):
            written.append(output.with_name(f"{output.stem}-{name}.{kind}"))
            save(chart, written[-1])
    print(board.to_json() if json else board)
    print(f"Written to {', '.join(map(str, written))}", file=sys.stderr if json else sys.stdout)
