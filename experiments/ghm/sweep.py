"""GHM by how it counts: in how many parts, over how many steps; and in a training four times as long.

focaljax sweep experiments/ghm/sweep.py --workdir runs/ghm [--config.data=bccd|coco]

With its authors' settings (30 parts, momentum .75) GHM is last among `losses`: which of them is it?
"""

from focaljax.sweeps import Row, Sweep

COUNTING = ((30, 0.75), (30, 0.0), (10, 0.75), (300, 0.75), (300, 0.0))
# The config's length, and four times that.
STEPS = {"shapes": (400, 1600), "bccd": (300, 1200), "coco": (90_000, 360_000)}


def get_sweep():
    return Sweep(
        "counting in GHM",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [Row(_name(bins, momentum), _counted(bins, momentum)) for bins, momentum in COUNTING]
        + [
            Row(
                f"{_name(30, momentum)}, {steps} steps",
                {**_counted(30, momentum), "optim.steps": steps, **_milestones(data, steps)},
                data=(data,),
            )
            for data, (_, steps) in STEPS.items()
            for momentum in (0.75, 0.0)
        ],
        source="Li et al. 2019 (arXiv 1811.05181), unit region approximation and EMA",
    )


def _name(bins, momentum):
    return f"GHM, {bins} parts, {f'momentum {momentum:g}' if momentum else 'each batch by itself'}"


def _counted(bins, momentum):
    return {"loss.classification": "ghm", "loss.ghm_bins": bins, "loss.ghm_momentum": momentum}


def _milestones(data, steps):
    """The schedule of coco falls at two thirds and eight ninths, those of the others are cosines."""
    return {"optim.milestones": (steps * 2 // 3, steps * 8 // 9)} if data == "coco" else {}
