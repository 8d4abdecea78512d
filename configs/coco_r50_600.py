"""RetinaNet-50 on COCO 2017 at 600 px, 90,000 steps of 16 images: the setting of the paper's tables 1a to 1c.

Data and weights: as configs/coco_r50_1x.py says.

Source: Lin et al. 2017 (arXiv 1708.02002), sections 4.1 and 5. Images fit into 600 x 1000 px, padded to that; portraits
become smaller than in the paper, where the shorter side is 600 px. Frozen normalisation, stem and first stage, as
detectron2.

Command: focaljax train --config configs/coco_r50_600.py --workdir runs/coco_r50_600 --config.model.dtype=bfloat16
On a pod, and the experiments that start from it: docs/pods.md, experiments/.

Published: AP 34.0 (table 1b), 34.3 (table 1e). By size and depth (table 1e), each with --config.data.image_size=...
and for ResNet-101 --config.model.backbone=resnet101 --config.init.weights=resnet101-63fe2227.pth:
    image_size    '(400, 667)'  '(500, 833)'  (600, 1000)  '(700, 1167)'  '(800, 1333)'
    ResNet-50     30.5          32.5          34.3         35.1           35.7
    ResNet-101    31.9          34.4          36.0         37.1           37.8, configs/coco_r101_800.py
Planned, not measured.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.init.weights = "resnet50-0676ba61.pth"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (600, 1000)

    config.model.norm = "frozen_batch_norm"
    config.model.freeze_at = 2

    config.eval.every = 30_000
    config.checkpoint.every = 5000
    return config
