"""Scores: how high trained detectors score what is an object and what is background, by loss.

python experiments/scores/scores.py --workdir RUN [RUN ...] [--split val] [--images 87] [--out experiments/scores]

Each run is one of a sweep, such as `losses`, or of `focaljax train`. Of all anchors of the images: the score that an
assigned anchor has for its class, and the scores that background anchors have, for every class. Writes results.csv,
quantiles of both, and scores.png, the same as bars: a detector is good where they lie apart, wherever that is.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from focaljax import losses
from focaljax.cli.anchor_outputs import anchor_outputs, figure_of_runs
from focaljax.cli.sweep_runs import provenance

QUANTILES = {"assigned": (0.1, 0.5, 0.9), "background": (0.5, 0.99, 0.9999)}
TICKS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
COLORS = {"assigned": "tab:blue", "background": "tab:gray"}


def main(arguments: list[str] | None = None) -> None:
    """Makes the figure and the table."""
    options, found = figure_of_runs(__doc__, pathlib.Path(__file__).parent, arguments, scores, images=87)
    rows = [{**name, **quantiles(*of_run), "run": workdir} for workdir, name, of_run in found]
    made = {"split": options.split, "images": str(options.images), **provenance()}
    write_table(options.out / "results.csv", rows, made)
    draw(options.out / "scores.png", rows)
    print(f"{len(rows)} runs -> {options.out}/scores.png, results.csv")


def scores(workdir: str, split: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of assigned anchors for their class, `[P]`, and all of background anchors, `[N K]`."""
    assigned: list[np.ndarray] = []
    background: list[np.ndarray] = []
    for logits, labels in anchor_outputs(workdir, split, images):
        of_image, labels = jax.device_get((jax.nn.sigmoid(logits), labels))
        (index,) = np.nonzero(labels >= 0)
        assigned.append(of_image[index, labels[index]])
        background.append(of_image[labels == losses.BACKGROUND].ravel())
    return np.concatenate(assigned), np.concatenate(background)


def quantiles(assigned: np.ndarray, background: np.ndarray) -> dict[str, Any]:
    """Returns how many scores there are, and their quantiles.

    >>> quantiles(np.linspace(0, 1, 11), np.zeros(3))["assigned 0.1"]
    '0.10000'
    """
    row: dict[str, Any] = {}
    for (kind, levels), of_kind in zip(QUANTILES.items(), (assigned, background), strict=True):
        row[kind] = len(of_kind)
        values = np.quantile(of_kind, levels) if len(of_kind) else np.full(len(levels), np.nan)
        row |= {f"{kind} {level:g}": f"{value:.5f}" for level, value in zip(levels, values, strict=True)}
    return row


def write_table(path: pathlib.Path, rows: Sequence[Mapping[str, Any]], made: Mapping[str, str]) -> None:
    """Writes a row for each run, and where and with what it was made."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *made], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **made} for row in rows)


def draw(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws the quantiles as bars with a stroke at the middle one, a panel for each data set."""
    of_data: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_data.setdefault(row["data"], []).append(row)
    figure = Figure(figsize=(10.0, 1.6 + 0.42 * len(rows)), layout="constrained")
    heights = [len(of_panel) + 1 for of_panel in of_data.values()]
    panels = figure.subplots(len(of_data), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (data, of_panel) in zip(panels, of_data.items(), strict=True):
        for place, row in enumerate(of_panel):
            for (kind, levels), offset in zip(QUANTILES.items(), (-0.2, 0.2), strict=True):
                low, middle, high = _as_logits([float(row[f"{kind} {level:g}"]) for level in levels])
                axes.barh(place + offset, high - low, left=low, height=0.36, color=COLORS[kind])
                axes.plot([middle] * 2, [place + offset - 0.18, place + offset + 0.18], color="black", linewidth=1.5)
        names = [row["row"] + (f"   AP {row['AP']}" if row["AP"] else "") for row in of_panel]
        axes.set(yticks=range(len(of_panel)), yticklabels=names, title=data, ylim=(len(of_panel) - 0.4, -0.6))
        axes.set_xlim(*_as_logits([TICKS[0], TICKS[-1]]))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    panels[-1].set_xticks(_as_logits(TICKS), [f"{tick:.5f}".rstrip("0") for tick in TICKS])
    panels[-1].set_xlabel("score")
    handles = [
        Patch(color=COLORS[kind], label=f"{kind}: quantiles {', '.join(map(str, levels))}")
        for kind, levels in QUANTILES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def _as_logits(values: Sequence[float]) -> np.ndarray:
    # The smallest that the axis shows in place of a smaller one.
    p = np.clip(np.asarray(values, np.float64), TICKS[0], TICKS[-1])
    return np.log(p) - np.log1p(-p)


if __name__ == "__main__":
    main()
