"""A run's curves as a picture: the loss and its parts, AP, and what else is logged, over the steps."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

Records = Sequence[Mapping[str, Any]]

_LOSSES = {"loss": "total", "classification_loss": "classification", "box_loss": "box"}
_METRICS = {name: name for name in ("AP", "AP50", "AP75")}
# Title -> the curves in it, and whether the axis is logarithmic.
_OTHERS = {
    "learning rate": ({"learning_rate": "learning rate"}, False),
    "gradient norm": ({"gradient_norm": "gradient norm"}, True),
    "assigned anchors an image": ({"positives": "assigned anchors"}, False),
    "share of the classification loss on assigned anchors": ({"positive_share": "share"}, False),
    "steps left out so far, not finite": ({"skipped": "steps"}, False),
}


def write_curves(path: str | os.PathLike[str], records: Records, *, split: str) -> None:
    """Writes a PNG with two plots: the losses on a logarithmic axis, and AP of the evaluated split.

    Args:
        path: the file; an existing one is replaced.
        records: of `metrics.jsonl`, each with `step`, `split` and numbers by name.
        split: the evaluated one.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    _draw_losses(losses, records)
    _draw_metrics(metrics, records, split)
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, target)


def curves_figure(records: Records, timings: Records, *, split: str) -> Figure:
    """Returns plots of what a training step logs, of AP, AP50 and AP75, and of images/s.

    Args:
        records: of `metrics.jsonl`; what an older run lacks stays empty.
        timings: of `timings.jsonl`.
        split: the evaluated one.
    """
    figure = Figure(figsize=(11, 10), layout="constrained")
    losses, metrics, *others, speed = figure.subplots(4, 2).ravel()
    _draw_losses(losses, records)
    _draw_metrics(metrics, records, split)
    train = _of_split(records, "train")
    for axes, (title, (curves, is_logarithmic)) in zip(others, _OTHERS.items(), strict=True):
        _draw(axes, train, curves, title=title)
        if is_logarithmic:
            _set_logarithmic(axes)
    _draw(speed, timings, {"images_per_second": "images/s"}, title="images/s, evaluations not counted")
    speed.set_ylim(bottom=0)
    return figure


def runs_figure(runs: Sequence[tuple[str, Records, str]]) -> Figure:
    """Returns two plots, of the loss and of AP, with a line for each run and a colour for each name.

    Args:
        runs: name, records of `metrics.jsonl` and evaluated split of each; runs that differ in their seed alone share
            a name.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for name, _, _ in runs))
    for name, records, split in runs:
        colour = f"C{names.index(name) % 10}"
        for axes, of_split, value, marker in ((losses, "train", "loss", None), (metrics, split, "AP", "o")):
            points = _points(_of_split(records, of_split), value)
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=3, linewidth=1)
    handles = [losses.plot([], [], color=f"C{index % 10}")[0] for index in range(len(names))]
    losses.legend(handles, names, frameon=False, fontsize="small")
    for axes, title in ((losses, "training loss"), (metrics, "AP")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    _set_logarithmic(losses)
    metrics.set_ylim(bottom=0)
    return figure


def _draw_losses(axes: Any, records: Records) -> None:
    _draw(axes, _of_split(records, "train"), _LOSSES, title="training loss")
    _set_logarithmic(axes)


def _draw_metrics(axes: Any, records: Records, split: str) -> None:
    _draw(axes, _of_split(records, split), _METRICS, title=f"precision on {split}", marker="o")
    axes.set_ylim(0, 1)


def _draw(axes: Any, records: Records, curves: Mapping[str, str], *, title: str, marker: str | None = None) -> None:
    """Draws the values of each name over the steps, those that there are."""
    for name, label in curves.items():
        points = _points(records, name)
        if points:
            of_few = marker or (None if len(points) > 1 else ".")  # one point makes no line
            axes.plot(*zip(*points, strict=True), label=label, marker=of_few, markersize=4, linewidth=1.2)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)
    if not axes.get_lines():
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", alpha=0.6)


def _points(records: Records, name: str) -> list[tuple[int, float]]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def _set_logarithmic(axes: Any) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _of_split(records: Records, split: str) -> Records:
    return [record for record in records if record["split"] == split]
