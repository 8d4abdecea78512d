"""Figure 4: which anchors the loss of a trained detector comes from, by gamma.

python experiments/figure4/figure4.py --workdir RUN [RUN ...] [--split val] [--images 300] [--out experiments/figure4]

One trained model, four losses that differ in gamma: the losses of all assigned anchors, and of all background anchors,
each sorted and summed up from the smallest, as a share of their sum. Writes figure4.png, a row of panels for each run,
and results.csv: the share of the loss that the hardest anchors have.
"""

import csv
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from focaljax import losses
from focaljax.cli.anchor_outputs import anchor_outputs, figure_of_runs
from focaljax.cli.sweep_runs import provenance

GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = (0.001, 0.01, 0.1, 0.2, 0.5)
POINTS = 2000


def main(arguments: list[str] | None = None) -> None:
    """Makes the figure and the table."""
    options, found = figure_of_runs(__doc__, pathlib.Path(__file__).parent, arguments, anchor_losses, images=300)
    made = {"split": options.split, "images": options.images, **provenance()}
    rows = [
        {"data": name["data"], **row, "run": workdir, **made}
        for workdir, name, of_run in found
        for row in shares(*of_run)
    ]
    with (options.out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(options.out / "figure4.png", [(name["data"] or workdir, *of_run) for workdir, name, of_run in found])
    print(f"{len(found)} runs -> {options.out}/figure4.png, results.csv")


def anchor_losses(workdir: str, split: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses of assigned and of background anchors, each `[gammas, anchors]`."""
    of_anchor = [
        functools.partial(losses.sigmoid_focal_loss_with_integer_labels, alpha=None, gamma=gamma) for gamma in GAMMAS
    ]
    by_gamma = jax.jit(lambda logits, labels: jnp.stack([jax.vmap(loss)(logits, labels) for loss in of_anchor]))
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for outputs in anchor_outputs(workdir, split, images):
        loss, labels = jax.device_get((by_gamma(*outputs), outputs[1]))
        found[0].append(loss[:, labels >= 0])
        found[1].append(loss[:, labels == losses.BACKGROUND])
    return np.concatenate(found[0], axis=1), np.concatenate(found[1], axis=1)


def shares(positives: np.ndarray, negatives: np.ndarray) -> list[dict[str, Any]]:
    """Returns for both kinds of anchors and each gamma the sum of the losses, and how much of it the hardest have."""
    return [
        {
            "anchors": kind,
            "gamma": gamma,
            "number": len(loss),
            "sum": f"{loss.sum(dtype=np.float64):.6g}",
            **{f"hardest {share:g}": f"{share_of_hardest(loss, share):.4f}" for share in HARDEST},
        }
        for kind, of_kind in (("assigned", positives), ("background", negatives))
        for gamma, loss in zip(GAMMAS, of_kind, strict=True)
    ]


def share_of_hardest(loss: np.ndarray, share: float) -> float:
    """Returns what part of the sum the largest `share` of the values has, in 0..1.

    >>> share_of_hardest(np.array([1.0, 0.0, 3.0, 0.0]), 0.25)
    0.75
    """
    number = max(1, round(share * len(loss)))
    return float(np.sort(loss)[-number:].sum(dtype=np.float64) / loss.sum(dtype=np.float64))


def cumulative(loss: np.ndarray) -> np.ndarray:
    """Returns the sums of the smallest values, as shares of the whole sum, increasing to 1.

    >>> cumulative(np.array([1.0, 0.0, 3.0, 0.0]))
    array([0.  , 0.  , 0.25, 1.  ])
    """
    sums = np.sort(loss).cumsum(dtype=np.float64)
    return sums / sums[-1]


def draw(path: pathlib.Path, runs: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Draws the cumulative distributions as the paper does, a row of panels for each run, which has a name first."""
    figure = Figure(figsize=(9.0, 3.8 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), 2, sharey=True, squeeze=False)
    for of_row, (name, *of_run) in zip(panels, runs, strict=True):
        of_row[0].set_ylabel("share of the loss")
        for axes, kind, values in zip(of_row, ("assigned", "background"), of_run, strict=True):
            for gamma, of_gamma in zip(GAMMAS, values, strict=True):
                sums = cumulative(of_gamma)
                # Where the curve bends is at the end: points by rank, closer together there.
                ranks = np.unique(np.round((1 - np.geomspace(1, 1 / len(sums), POINTS)) * len(sums)).astype(int))
                ranks = np.union1d(ranks, np.linspace(0, len(sums) - 1, POINTS).astype(int))
                axes.plot((ranks + 1) / len(sums), sums[ranks], label=f"$\\gamma$ = {gamma:g}")
            axes.set(
                xlabel=f"share of {kind} anchors, by their loss",
                title=f"{name}: {values.shape[1]:,} {kind} anchors",
            )
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
