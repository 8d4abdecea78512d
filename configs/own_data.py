"""RetinaNet on your own images: a folder, and an annotation file in COCO's form for training and for validation.

focaljax train --config configs/own_data.py --workdir runs/own \
    --config.data.train.images=DIR --config.data.train.annotations=FILE.json \
    --config.data.val.images=DIR --config.data.val.annotations=FILE.json

The small model and image size train on a CPU in half an hour. With a GPU, overriding these gives the paper's network:
--config.model.backbone=resnet50 --config.model.fpn_channels=256 --config.model.head_channels=256
--config.model.head_depth=4 --config.data.image_size='(640, 640)'
--config.anchors.sizes='(32.0, 64.0, 128.0, 256.0, 512.0)'

AP: depends on the data; configs/bccd.py is this, tuned to blood cells, with its figures.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.cpu_devices = 2
    config.data.image_size = (320, 320)

    config.augment.scale = (0.7, 1.4)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2

    config.model.backbone = "resnet_tiny"
    config.model.fpn_channels = 64
    config.model.head_depth = 2
    config.model.head_channels = 64
    config.anchors.sizes = (16.0, 32.0, 64.0, 128.0, 256.0)

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.05
    config.optim.learning_rate_batch = 8
    config.optim.batch_size = 8
    config.optim.steps = 3000
    config.optim.schedule = "cosine"
    config.optim.milestones = ()
    config.optim.warmup_steps = 100
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.998
    config.eval.every = 1000
    config.checkpoint.every = 500
    return config
