"""RetinaNet from scratch on BCCD, 364 photographs of blood cells (205 train, 87 val, 72 test; three classes).

Data: github.com/Shenggan/BCCD_Dataset (MIT) in COCO form, `images/` and `annotations/instances_{train,val,test}.json`
below `data.root`, which is data/bccd, or ../shared/data/bccd if that is there, or set --config.data.root=DIR.

Command: focaljax train --config configs/bccd.py --workdir runs/bccd
    focaljax evaluate --workdir runs/bccd --split test
Measured: test AP 0.556, AP50 0.893, AP75 0.611; val AP 0.565, AP50 0.890, AP75 0.643. Seed 0, no pretraining.
Cost: 16 minutes on 2 cores (AMD EPYC) that other work shared half of the time; 28 images/s without it. jax 0.10.2.
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
    config.data.image_size = (240, 320)

    config.augment.vertical_flip = 0.5
    config.augment.scale = (0.8, 1.3)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.hue = 0.02

    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 64
    config.model.head_depth = 2
    config.model.head_channels = 64
    config.model.levels = (3, 4, 5, 6)
    config.model.head_init_std = 0.05
    config.anchors.sizes = (16.0, 32.0, 64.0, 128.0)

    config.loss.box = "l1"

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.learning_rate_batch = 8
    config.optim.batch_size = 8
    config.optim.steps = 2500
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    config.eval.every = 500
    config.checkpoint.every = 500
    return config
