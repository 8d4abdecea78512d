"""A run of a few seconds on tiny `shapes`; tests set data.root to a folder of their own."""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.data.source = "shapes"
    config.data.root = "runs/tiny_data"
    config.data.shapes.update(num_train=16, num_val=9, num_test=8, height=64, width=64, num_classes=3)
    for split in ("train", "val", "test"):
        config.data[split].name = split
    config.data.image_size = (64, 64)
    config.data.max_boxes = 12
    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 8
    config.model.head_depth = 1
    config.model.head_channels = 8
    config.model.levels = (3, 4)
    config.anchors.sizes = (16.0, 32.0)
    config.anchors.scales = (1.0,)
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.learning_rate_batch = 8
    config.optim.batch_size = 8
    config.optim.steps = 6
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 2
    config.optim.ema_decay = 0.9
    config.log.every = 1
    config.eval.batch_size = 8
    config.eval.score_threshold = 0.005  # an untrained detector scores 0.01
    config.eval.max_detections = 20
    config.checkpoint.every = 2
    return config
