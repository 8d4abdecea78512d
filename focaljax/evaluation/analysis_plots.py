"""Plots of what is behind AP: precision over recall, scores of right and wrong detections, confusions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from focaljax.data.report import printable
from focaljax.evaluation.analysis import RECALLS, ClassCurve

# More lines, or numbers in cells, could not be told apart.
MOST_CURVES = 10
MOST_CELLS = 16
_MOST_NAMES = 100

_LONGEST_NAME = 24
_BLUE, _RED = "#1b5e8c", "#c0392b"


def precision_recall_figure(curves_at: Mapping[float, Mapping[int, ClassCurve]], class_names: Sequence[str]) -> Figure:
    """Returns a plot for each IoU threshold, with a line for each class and their mean.

    Args:
        curves_at: IoU threshold -> the classes' curves by number from 1, see `precision_recall`. Of more than
            `MOST_CURVES` classes only those with the most objects are drawn; the mean is that of all.
        class_names: K names, in the order of the numbers.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, (iou, curves) in zip(figure.subplots(1, len(curves_at), squeeze=False)[0], curves_at.items()):
        shown = sorted(sorted(curves, key=lambda number: -curves[number].num_objects)[:MOST_CURVES])
        for number in shown:
            label = f"{plot_label(class_names[number - 1])} {curves[number].precision.mean():.3f}"
            axes.plot(RECALLS, curves[number].precision, linewidth=1.2, label=label)
        if curves:
            mean = np.mean([curve.precision for curve in curves.values()], axis=0)
            axes.plot(RECALLS, mean, "k--", linewidth=1.8, label=f"mean of {len(curves)}: {mean.mean():.3f}")
            axes.legend(frameon=False, fontsize="small")
        axes.set(title=f"IoU {iou:g}", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    return figure


def score_figure(scores: np.ndarray, is_true: np.ndarray, is_false: np.ndarray, *, min_score: float) -> Figure:
    """Returns a histogram of the scores of right and wrong detections, on a logarithmic axis.

    Args:
        scores: `[D]`, in 0..1.
        is_true: bool `[D]`, see `Matches`.
        is_false: bool `[D]`, likewise.
        min_score: marked with a line.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    bins, highest = np.linspace(0.0, 1.0, 41), 0.0
    for of_kind, colour, name in ((is_false, _RED, "wrong"), (is_true, _BLUE, "right")):
        counts, _ = np.histogram(scores[of_kind], bins)
        axes.stairs(counts, bins, fill=True, color=colour, alpha=0.55, label=f"{name}: {int(of_kind.sum())}")
        highest = max(highest, counts.max())
    axes.axvline(min_score, color="k", linewidth=1, linestyle=":")
    axes.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    if highest:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.8, 2 * highest)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def confusion_figure(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Returns the confusion matrix as shares of each row, with the counts written in up to `MOST_CELLS` rows.

    Of more than 100 rows the names would cover each other: they are left out.

    Args:
        counts: see `confusion_matrix`.
        class_names: K names, in the order of its rows.
    """
    size = len(counts)
    side = float(np.clip(1.8 + 0.62 * size, 4.5, 11))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [plot_label(name) for name in class_names]
    font = "medium" if size <= MOST_CELLS else "xx-small"
    if size <= _MOST_NAMES:
        axes.set_xticks(range(size), [*names, "(missed)"], rotation=90 if size > 6 else 30, ha="center", fontsize=font)
        axes.set_yticks(range(size), [*names, "(background)"], fontsize=font)
    axes.set(xlabel="seen as", ylabel="is")
    figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the row")
    if size <= MOST_CELLS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize="small")
    return figure


def plot_label(name: Any) -> str:
    """Returns a class's name so that matplotlib writes it as it is, and short."""
    text = printable(str(name))
    text = text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 2]}.."
    text = text.replace("$", r"\$")  # formulas
    return f" {text}" if text.startswith("_") else text  # legends leave such lines out
