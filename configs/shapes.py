"""RetinaNet with focal loss on `shapes`, images that the program draws: five classes, 0 to 12 objects from 12 px up.

Command: make demo, which is, in a fresh clone,
    focaljax train --config configs/shapes.py --workdir runs/demo
    focaljax evaluate --workdir runs/demo --split test
Measured: test AP 0.720, AP50 0.954, AP75 0.861; val AP 0.726, AP50 0.958, AP75 0.870. Seed 0.
Cost: 4:46 minutes on 2 cores (AMD EPYC, jax 0.10.2) at 74 to 92 images/s; the whole of `make demo`
took 6:14, installation included.

The normaliser is that of the batch: one image in twelve has no object, the paper's normaliser divides all of its
background's loss by 1, and in batches of 8 these images drown the others (val AP after 400 steps: 0.305 with 'image',
0.467 with 'batch', all else equal).
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.cpu_devices = 2
    config.data.source = "shapes"
    config.data.root = ".cache/tfds"
    for split in ("train", "val", "test"):
        config.data[split].name = split
    config.data.image_size = (160, 160)

    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 64
    config.model.head_depth = 1
    config.model.head_init_std = 0.05
    config.model.head_channels = 64
    config.model.levels = (3, 4, 5)
    config.anchors.sizes = (16.0, 32.0, 64.0)

    config.loss.normalizer = "batch"
    config.loss.box = "l1"
    config.loss.box_weight = 1.5

    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.05
    config.optim.learning_rate_batch = 8
    config.optim.batch_size = 8
    config.optim.steps = 3000
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.995
    config.eval.every = 1000
    config.checkpoint.every = 1000
    return config
