"""A run's curves as a picture: the loss and its parts, and AP, over the steps."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

_LOSSES = {"loss": "total", "classification_loss": "classification", "box_loss": "box"}
_METRICS = ("AP", "AP50", "AP75")


def write_curves(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]], *, split: str) -> None:
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
    train = [record for record in records if record["split"] == "train"]
    for name, label in _LOSSES.items():
        _plot(losses, train, name, label, is_marked=False)
    losses.set(title="training loss", xlabel="step", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    losses.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    losses.yaxis.set_minor_formatter(NullFormatter())
    evaluations = [record for record in records if record["split"] == split]
    for name in _METRICS:
        _plot(metrics, evaluations, name, name, is_marked=True)
    metrics.set(title=f"precision on {split}", xlabel="step", ylim=(0, 1))
    for axes in (losses, metrics):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png")
    os.replace(temporary, target)


def _plot(axes: Any, records: Sequence[Mapping[str, Any]], name: str, label: str, *, is_marked: bool) -> None:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    if points:
        axes.plot(
            *zip(*points, strict=True), label=label, marker="o" if is_marked else None, markersize=4, linewidth=1.2
        )
