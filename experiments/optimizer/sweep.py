"""Table 1a's and 1b's ends with the paper's optimiser and with AdamW.

focaljax sweep experiments/optimizer/sweep.py --workdir runs/optimizer [--config.data=bccd|coco]

AdamW divides each gradient by its own size: what makes a loss small as a whole makes no step small. With SGD it does.
On the small sets SGD also has larger rates: is what a small loss loses with SGD only a matter of the rate?
"""

from focaljax.sweeps import Row, Sweep

SGD = {"optim.name": "sgd", "optim.learning_rate": 0.01, "optim.weight_decay": 1e-4}
OPTIMIZERS = {
    "SGD": SGD,
    "AdamW": {"optim.name": "adamw", "optim.learning_rate": 3e-3, "optim.weight_decay": 0.05},
}
CROSS_ENTROPY = {"loss.classification": "balanced_cross_entropy"}
# Name, settings, what the paper has (SGD).
LOSSES = (
    *(
        (f"cross entropy, alpha {alpha}", {**CROSS_ENTROPY, "loss.alpha": alpha}, {"AP": AP})
        for alpha, AP in ((0.1, 0.0), (0.25, 0.108), (0.75, 0.311), (0.999, 0.251))
    ),
    ("focal loss, alpha 0.25", {"loss.gamma": 2.0, "loss.alpha": 0.25}, {"AP": 0.340}),
    ("focal loss, alpha 0.75", {"loss.gamma": 2.0, "loss.alpha": 0.75}, {}),
)
# Of these losses, on the small sets.
RATES = (0.02, 0.04)
WITH_RATES = (
    "cross entropy, alpha 0.1",
    "cross entropy, alpha 0.75",
    "focal loss, alpha 0.25",
    "focal loss, alpha 0.75",
)


def get_sweep():
    return Sweep(
        "optimisers",
        {
            "shapes": "../../configs/shapes_imbalanced.py",
            "bccd": "../../configs/bccd_quarter.py",
            "coco": "../../configs/coco_r50_600.py",
        },
        [
            Row(f"{name}: {loss}", {**optimizer, **settings}, paper=paper if name == "SGD" else {})
            for name, optimizer in OPTIMIZERS.items()
            for loss, settings, paper in LOSSES
        ]
        + [
            Row(
                f"SGD, rate {rate}: {loss}",
                {**SGD, "optim.learning_rate": rate, **settings},
                data=("shapes", "bccd"),
            )
            for rate in RATES
            for loss, settings, _ in LOSSES
            if loss in WITH_RATES
        ],
        source="Lin et al. 2017 (arXiv 1708.02002), tables 1a and 1b",
    )
