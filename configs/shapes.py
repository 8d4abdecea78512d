"""RetinaNet with focal loss on `shapes`, images that the program draws itself (draft)."""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
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
