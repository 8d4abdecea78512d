"""The page about a sweep: its table and plot, and how far each run is."""

import pathlib
import re
import shlex
from collections.abc import Sequence

import cv2
from matplotlib.figure import Figure

from focaljax.cli.console import duration
from focaljax.cli.main import UsageError
from focaljax.cli.report_run import Run, load_run, shown
from focaljax.evaluation.analysis_plots import plot_label
from focaljax.evaluation.curves import runs_figure
from focaljax.evaluation.page import Page
from focaljax.training.metrics import best_record

# Below the header of a table in Markdown.
_RULE = re.compile(r"\|?[-:| ]+\|?")
# Of the folders below a sweep's: data set, row, seed.
_DEPTH = 3


def runs_below(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the workdirs of runs up to three folders below, as `focaljax sweep` makes them."""
    patterns = ["/".join(["*"] * depth + ["config.json"]) for depth in range(1, _DEPTH + 1)]
    return sorted(path.parent for pattern in patterns for path in workdir.glob(pattern))


def sweep_page(workdir: pathlib.Path, folders: Sequence[pathlib.Path]) -> Page:
    """Returns the page.

    Args:
        workdir: of the sweep.
        folders: of its runs.
    """
    runs, unreadable = [], []
    for folder in folders:
        try:
            runs.append(load_run(folder))
        except UsageError as error:
            unreadable.append((folder.relative_to(workdir), f"cannot be read: {error}", "-", "-", "-", "-"))
    page = Page(f"{workdir.absolute().name}: {len(folders)} runs")
    for path in sorted(workdir.glob("*.md")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if len(lines) < 3 or not _RULE.fullmatch(lines[1]):
            continue  # it is somebody's notes
        page.section(f"Table, {path.stem}")
        page.table(_cells(lines[0]), [_cells(line) for line in lines[2:]])
        plot = path.with_suffix(".png")
        picture = cv2.imread(str(plot)) if plot.exists() else None
        if picture is not None:
            page.picture(picture[..., ::-1], "each dot a seed")
    page.section("Runs")
    rows = [*(_row(workdir, run) for run in runs), *unreadable]
    page.table(("run", "state", "evaluations", "best AP", "at step", "time"), rows)
    page.section("Curves")
    page.plot(_figure(runs), "a colour a row, a line a seed")
    page.section("Pages of the runs")
    page.code("\n".join(shlex.join(["focaljax", "report", "--workdir", str(run.workdir)]) for run in runs))
    return page


def _cells(line: str) -> list[str]:
    """Returns the cells of a row of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def _row(workdir: pathlib.Path, run: Run) -> tuple[object, ...]:
    split = run.config.eval.split
    best = best_record(run.records, split)
    count = sum(record["split"] == split for record in run.records)
    seconds = sum(timing["seconds"] for timing in run.timings)
    numbers = (shown(best["AP"]), best["step"]) if best else ("-", "-")
    return (run.workdir.relative_to(workdir), run.state(), count, *numbers, duration(seconds) if seconds else "-")


def _figure(runs: Sequence[Run]) -> Figure:
    return runs_figure([(plot_label(run.workdir.parent.name), run.records, run.config.eval.split) for run in runs])
