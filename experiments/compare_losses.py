"""Trains one config with each classification loss and tabulates AP: focal loss against the cross entropies.

python experiments/compare_losses.py --config configs/shapes.py --workdir runs/losses [--seeds 0 1 2] [OVERRIDES]

Each loss has the alpha that is best for it in the paper (Lin et al. 2017, arXiv 1708.02002, tables 1a and 1b).
Finished runs are not repeated, interrupted ones go on. Prints a Markdown table and writes it to WORKDIR/table.md.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

LOSSES = {
    "cross entropy": ("--config.loss.classification=cross_entropy",),
    "balanced cross entropy, alpha .75": (
        "--config.loss.classification=balanced_cross_entropy",
        "--config.loss.alpha=0.75",
    ),
    "focal, gamma 2, alpha .25": ("--config.loss.classification=focal",),
}
METRICS = ("AP", "AP50", "AP75")


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test")
    options, overrides = parser.parse_known_args()
    rows = [f"| loss | {' | '.join(METRICS)} |", "|---|" + "---|" * len(METRICS)]
    for name, flags in LOSSES.items():
        results = []
        for seed in options.seeds:
            workdir = options.workdir / f"{name.replace(' ', '_').replace(',', '')}_seed{seed}"
            run = ["train", "--config", options.config, "--workdir", workdir, f"--config.seed={seed}"]
            focaljax(*run, *flags, *overrides)
            focaljax("evaluate", "--workdir", workdir, "--split", options.split, "--sheets=0")
            results.append(json.loads((workdir / f"evaluation_{options.split}.json").read_text()))
        rows.append(f"| {name} | {' | '.join(mean_and_spread([r[m] for r in results]) for m in METRICS)} |")
    table = "\n".join(rows)
    print(table)
    (options.workdir / "table.md").write_text(table + "\n")


def focaljax(*arguments: object) -> None:
    """Runs a verb; a failure ends the experiment."""
    subprocess.run([sys.executable, "-m", "focaljax", *map(str, arguments)], check=True)


def mean_and_spread(values: list[float]) -> str:
    """Returns the mean, with the standard deviation over seeds where there are several."""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} +- {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
