"""RetinaNet on `shapes` where background dominates as on COCO: at most one object on 208 px, 8,046 anchors.

For each anchor that is assigned to an object 1,120 are background (mean over 120 images). The base of the experiments
on this machine (experiments/*/sweep.py). Half of the objects have any colour: the form tells the classes apart.

Command: focaljax train --config configs/shapes_imbalanced.py --workdir runs/imbalanced
Measured: planned.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.cpu_devices = 2
    config.data.source = "shapes"
    config.data.root = ".cache/tfds"
    for split in ("train", "val", "test"):
        config.data[split].name = split
    config.data.shapes.update(height=208, width=208, objects=1, num_val=400, num_test=2, typical_colour=0.5)
    config.data.image_size = (208, 208)

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
    config.optim.steps = 600
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 300
    return config
