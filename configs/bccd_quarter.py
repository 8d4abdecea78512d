"""BCCD at a quarter of its size, 120 x 160 px: short enough that tables of many runs can be trained on a CPU.

The base of the experiments on BCCD (experiments/*/sweep.py); configs/bccd.py is the detector to be used. Cells fill the
images: of background anchors there are 149 for each that is assigned to an object (`focaljax doctor --config
configs/bccd_quarter.py --split train --nopixels`), a seventh of configs/shapes_imbalanced.py's.

Data: as configs/bccd.py.

Command: focaljax train --config configs/bccd_quarter.py --workdir runs/bccd_quarter
Measured: val AP 0.469, AP50 0.844, AP75 0.462. Seed 0, no pretraining. docs/results.md has more.
Cost: three minutes and a half of one core (AMD EPYC, jax 0.10.2).
"""

import pathlib

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.cpu_devices = 2
    folders = ("data/bccd", "../shared/data/bccd")
    config.data.root = next((folder for folder in folders if pathlib.Path(folder).is_dir()), folders[0])
    for split in ("train", "val", "test"):
        config.data[split].images = "images"
        config.data[split].annotations = f"annotations/instances_{split}.json"
    config.data.image_size = (120, 160)

    config.augment.vertical_flip = 0.5
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2

    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 64
    config.model.head_depth = 1
    config.model.head_channels = 64
    config.model.levels = (2, 3, 4, 5)
    config.model.head_init_std = 0.05
    config.anchors.sizes = (8.0, 16.0, 32.0, 64.0)

    config.loss.box = "l1"

    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.05
    config.optim.learning_rate_batch = 16
    config.optim.batch_size = 16
    config.optim.steps = 300
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 300
    return config
