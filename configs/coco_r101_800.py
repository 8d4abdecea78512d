"""RetinaNet-101 on COCO 2017 at 800 px, 90,000 steps of 16 images: the largest of the paper's table 1e.

Data: as configs/coco_r50_1x.py says. Weights: torchvision's `ResNet101_Weights.IMAGENET1K_V1`, the file
resnet101-63fe2227.pth, in the working directory or named by --config.init.weights=FILE.

Source: Lin et al. 2017 (arXiv 1708.02002), sections 4.1 and 5. Images fit into 800 x 1333 px, padded to that; portraits
become smaller than in the paper, where the shorter side is 800 px. Frozen normalisation, stem and first stage, as
detectron2. Other sizes and depths of table 1e: configs/coco_r50_600.py.

Command: focaljax train --config configs/coco_r101_800.py --workdir runs/coco_r101_800 --config.model.dtype=bfloat16
On a pod, the same at 256 images a step; the learning rate follows the batch, the steps are as many times fewer:
    focaljax train --config configs/coco_r101_800.py --workdir runs/coco_r101_800 --config.model.dtype=bfloat16 \
        --config.optim.batch_size=256 --config.optim.steps=5625 \
        --config.optim.milestones='(3750, 5000)' --config.eval.batch_size=256

Published: AP 37.8 (table 1e). The 39.1 on test-dev (table 2) was trained 1.5 times as long with scale jitter:
--config.optim.steps=135000 --config.optim.milestones='(90000, 120000)', the range of the jitter is not known.
Planned, not measured. Cost: not known.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.init.weights = "resnet101-63fe2227.pth"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (800, 1333)

    config.model.backbone = "resnet101"
    config.model.norm = "frozen_batch_norm"
    config.model.freeze_at = 2

    config.eval.every = 30_000
    config.checkpoint.every = 5000
    return config
