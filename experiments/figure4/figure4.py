"""Figure 4: which anchors the loss of a trained detector comes from, by gamma.

python experiments/figure4/figure4.py --workdir RUN [--split val] [--images 300] [--out experiments/figure4]

One trained model, four losses that differ in gamma: the losses of all assigned anchors, and of all background anchors,
each sorted and summed up from the smallest, as a share of their sum. Writes figure4.png, and results.csv: the share of
the loss that the hardest anchors have.
"""

import argparse
import csv
import functools
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from focaljax import losses
from focaljax.cli import datasets
from focaljax.cli.anchor_outputs import anchor_outputs
from focaljax.cli.main import UsageError
from focaljax.cli.sweep_runs import provenance
from focaljax.data.example import DataError
from focaljax.training.checkpoints import CheckpointError

GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = (0.001, 0.01, 0.1, 0.2, 0.5)
POINTS = 2000


def main(arguments: list[str] | None = None) -> None:
    """Makes the figure and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of a run of `focaljax train`")
    parser.add_argument("--split", default="val", choices=datasets.SPLITS, help="of its data (default val)")
    parser.add_argument("--images", type=int, default=300, help="the first so many (default 300)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error(f"--images {options.images}: expected at least 1")
    try:
        positives, negatives = anchor_losses(options.workdir, options.split, options.images)
    except (UsageError, DataError, CheckpointError) as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    made = {"run": options.workdir, "split": options.split, **provenance()}
    write_table(options.out / "results.csv", positives, negatives, made)
    draw(options.out / "figure4.png", positives, negatives)
    print(
        f"{options.workdir}: {positives.shape[1]:,} assigned and {negatives.shape[1]:,} background anchors "
        f"-> {options.out}/figure4.png, results.csv"
    )


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


def write_table(path: pathlib.Path, positives: np.ndarray, negatives: np.ndarray, made: Mapping[str, str]) -> None:
    """Writes how much of each sum the hardest anchors have, and of what run, where and with what it was made."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["anchors", "gamma", "number", "sum", *(f"hardest {share:g}" for share in HARDEST), *made])
        for name, values in (("positive", positives), ("negative", negatives)):
            for gamma, of_gamma in zip(GAMMAS, values, strict=True):
                shares = [f"{share_of_hardest(of_gamma, share):.4f}" for share in HARDEST]
                writer.writerow(
                    [name, gamma, len(of_gamma), f"{of_gamma.sum(dtype=np.float64):.6g}", *shares, *made.values()]
                )


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


def draw(path: pathlib.Path, positives: np.ndarray, negatives: np.ndarray) -> None:
    """Draws the cumulative distributions as the paper does."""
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, values in zip(panels, ("assigned", "background"), (positives, negatives), strict=True):
        for gamma, of_gamma in zip(GAMMAS, values, strict=True):
            sums = cumulative(of_gamma)
            # Where the curve bends is at the end: points by rank, closer together there.
            ranks = np.unique(np.round((1 - np.geomspace(1, 1 / len(sums), POINTS)) * len(sums)).astype(int))
            ranks = np.union1d(ranks, np.linspace(0, len(sums) - 1, POINTS).astype(int))
            axes.plot((ranks + 1) / len(sums), sums[ranks], label=f"$\\gamma$ = {gamma:g}")
        axes.set(xlabel=f"share of {name} anchors, by their loss", title=f"{values.shape[1]:,} {name} anchors")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    panels[0].set_ylabel("share of the loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
