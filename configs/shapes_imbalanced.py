"""RetinaNet on `shapes` where background dominates as on COCO: at most one object on 104 px, 8,190 anchors.

For each anchor that is assigned to an object 1,043 are background (mean over 250 images: `focaljax doctor --config
configs/shapes_imbalanced.py --split train --nopixels`). To have so many anchors on so few pixels the pyramid begins at
stride 4. The base of the experiments on this machine (experiments/*/sweep.py): short, so that many can be run.

Command: focaljax train --config configs/shapes_imbalanced.py --workdir runs/imbalanced
Measured: docs/results.md. Cost: two minutes on 2 cores (AMD EPYC, jax 0.10.2) at 70 to 75 images/s.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.cpu_devices = 2
    config.data.source = "shapes"
    config.data.root = ".cache/tfds"
    for split in ("train", "val", "test"):
        config.data[split].name = split
    config.data.shapes.update(
        num_train=4000, num_val=400, num_test=2, height=104, width=104, objects=1, typical_colour=0.9
    )
    config.data.image_size = (104, 104)

    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 64
    config.model.head_depth = 1
    config.model.head_init_std = 0.05
    config.model.head_channels = 64
    config.model.levels = (2, 3, 4, 5)
    config.anchors.sizes = (8.0, 16.0, 32.0, 64.0)

    config.loss.normalizer = "batch"
    config.loss.box = "l1"
    config.loss.box_weight = 1.5

    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.05
    config.optim.learning_rate_batch = 16
    config.optim.batch_size = 16
    config.optim.steps = 400
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 50
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.98
    config.checkpoint.every = 400
    return config
