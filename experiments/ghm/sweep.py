"""GHM by how it counts: in how many parts, over how many steps; and in a training four times as long.

focaljax sweep experiments/ghm/sweep.py --workdir runs/ghm [--config.data=bccd|coco]

With its authors' settings (30 parts, momentum .75) GHM is last among `losses`: which of them is it?
"""

from focaljax.sweeps import Row, Sweep

COUNTING = ((30, 0.75), (30, 0.0), (10, 0.75), (300, 0.75), (300, 0.0))
# Four times the config's steps; on COCO those are enough.
LONG = {"shapes": 1600, "bccd": 1200}


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
                {**_counted(30, momentum), "optim.steps": steps},
                data=(data,),
            )
            for data, steps in LONG.items()
            for momentum in (0.75, 0.0)
        ],
        source="Li et al. 2019 (arXiv 1811.05181), unit region approximation and EMA",
    )


def _name(bins, momentum):
    return f"GHM, {bins} parts, {f'momentum {momentum:g}' if momentum else 'each batch by itself'}"


def _counted(bins, momentum):
    return {"loss.classification": "ghm", "loss.ghm_bins": bins, "loss.ghm_momentum": momentum}
