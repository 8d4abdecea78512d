"""What a sweep has found: results.csv, one row a run; of each data set a table and a plot."""

import contextlib
import csv
import fcntl
import hashlib
import io
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from focaljax.evaluation.whole_files import write_whole
from focaljax.sweeps import Row, Sweep


def write_report(
    folder: pathlib.Path,
    sweep: Sweep,
    data: str,
    results: Sequence[Mapping[str, Any]],
    *,
    is_stale: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> int:
    """Writes `results.csv`, in which rows of other runs stay, `DATA.md` and `DATA.png`; returns the number of runs.

    Args:
        folder: for them; made if need be.
        sweep: with its rows in order.
        data: name of the data set.
        results: of its finished runs, each with `data`, `row`, `seed` and COCO's numbers, None where they are not
            defined. They replace rows of the same run.
        is_stale: whether a row that stands there already is to go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.csv"
    with _alone_in(folder):
        known = [row for row in read_results(path) if not is_stale(row)]
        everything = _merged(known, sweep, results)
        write_whole(path, _as_csv(everything))
        of_data = [result for result in everything if result["data"] == data]
        write_whole(folder / f"{data}.md", table(sweep, data, of_data) + "\n")
        draw(folder / f"{data}.png", sweep, data, of_data)
    return len(of_data)


def _merged(
    known: Sequence[Mapping[str, Any]], sweep: Sweep, results: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Returns the known rows and the new ones instead of theirs, in the order of the sweep."""
    of_run = lambda result: (result["data"], result["row"], str(result["seed"]))  # noqa: E731
    names, new = {row.name for row in sweep.rows}, {(result["data"], result.get("flags")) for result in results}
    # A row that was given another name is in the results under that.
    stay = [row for row in known if row["row"] in names or (row["data"], row.get("flags")) not in new]
    runs = {of_run(result): result for result in [*stay, *results]}
    order = [(data, run.row.name, str(run.seed)) for data in sweep.configs for run in sweep.runs(data)]
    place = {run: index for index, run in enumerate(order)}
    return sorted(runs.values(), key=lambda result: place.get(of_run(result), len(place)))


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other sweeps from writing there meanwhile, where the file system knows locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_results(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of `results.csv`, COCO's numbers as numbers, None where they are not defined; no file: none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: _number(value) if name.startswith("A") else value for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def table(sweep: Sweep, data: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table as Markdown: mean and standard deviation over seeds, beside what the paper has."""
    rows = sweep.rows_of(data)
    of_paper = [name for name in sweep.metrics if any(name in row.paper for row in rows)]
    names = [*sweep.metrics, "seeds", *(f"paper's {name}" for name in of_paper)]
    lines = [f"| {sweep.title}, {data} | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in rows:
        of_row = _of_row(row, results)
        cells = [_mean_and_spread([result[name] for result in of_row]) for name in sweep.metrics]
        cells += [f"{len(of_row)} of {len(sweep.seeds)}"]
        cells += [f"{row.paper[name]:.3f}" if name in row.paper else "" for name in of_paper]
        name = row.name.replace("|", "\\|")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.3f}"
    return f"{mean} ± {statistics.stdev(known):.3f}" if len(known) > 1 else mean


def _of_row(row: Row, results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [result for result in results if result["row"] == row.name]


def _as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(name for result in results for name in result))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue()


def draw(path: pathlib.Path, sweep: Sweep, data: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Draws AP row by row: each seed and their mean; what the paper has, on other data, in a panel of its own.

    The file has `digest_of_drawn` as its comment.
    """
    name, rows = sweep.metrics[0], sweep.rows_of(data)
    published = [(row.paper[name], place) for place, row in enumerate(rows) if name in row.paper]
    figure = Figure(figsize=(9.0, 1.2 + 0.35 * len(rows)), layout="constrained")
    ours, *of_paper = figure.subplots(
        1, 2 if published else 1, sharey=True, squeeze=False, width_ratios=(2, 1) if published else None
    )[0]
    for place, row in enumerate(rows):
        values = [result[name] for result in _of_row(row, results) if result[name] is not None]
        if values:
            ours.plot(values, [place] * len(values), "o", color="#1b5e8c", alpha=0.5, markersize=5)
            ours.plot(statistics.mean(values), place, "|", color="#1b5e8c", markersize=16, markeredgewidth=2)
    ours.set_yticks(range(len(rows)), [row.name for row in rows])
    ours.set(xlabel=f"{sweep.split} {name}, {data} (a dot a seed, the line their mean)", ylim=(len(rows) - 0.5, -0.5))
    for axes in of_paper:
        axes.plot(*zip(*published, strict=True), "D", color="#b35900", markersize=6, fillstyle="none")
        axes.set_xlabel(f"{name} on COCO in the paper", color="#b35900")
    for axes in (ours, *of_paper):
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, metadata={"Comment": digest_of_drawn(sweep, data, results)})


def digest_of_drawn(sweep: Sweep, data: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Returns a digest of what `draw` makes visible: with other rows or figures it is another."""
    name = sweep.metrics[0]
    rows = [
        (row.name, row.paper.get(name), [result[name] for result in _of_row(row, results)])
        for row in sweep.rows_of(data)
    ]
    return hashlib.sha256(repr((name, sweep.split, data, rows)).encode()).hexdigest()[:16]
