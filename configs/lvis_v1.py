"""RetinaNet-50 on LVIS v1, 1203 classes, 100,170 images of COCO's, 90,000 steps of 16 images at 640 to 800 px.

Data: COCO's `train2017/` and `val2017/`, and `annotations/lvis_v1_{train,val}.json` as LVIS publishes them, below
`data.root`, which is data/coco, or set --config.data.root=DIR. Weights: as configs/coco_r50_1x.py says.

Source: Gupta et al. 2019 (arXiv 1908.03195), the data; model, loss and schedule as configs/coco_r50_1x.py, multi-scale
as detectron2's LVIS baselines. Two things differ from LVIS's way: a class that was not looked for in an image counts as
absent, in training and in the metrics, which are COCO's and so lower than LVIS's federated AP; and rare classes are not
repeated. Sizes: as configs/coco_detectron2_1x.py says.

Command: focaljax train --config configs/lvis_v1.py --workdir runs/lvis_v1 --config.model.dtype=bfloat16
On a pod, the same at 256 images a step; the learning rate follows the batch, the steps are as many times fewer:
    focaljax train --config configs/lvis_v1.py --workdir runs/lvis_v1 --config.model.dtype=bfloat16 \
        --config.optim.batch_size=256 --config.optim.steps=5625 \
        --config.optim.milestones='(3750, 5000)' --config.eval.batch_size=256

Published: not known for RetinaNet-50. Planned, not measured. Cost: not known.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.init.weights = "resnet50-0676ba61.pth"

    config.data.root = "data/coco"
    # LVIS's validation has images of train2017 too; the annotations name the folder.
    for split, name in (("train", "train"), ("val", "val"), ("test", "val")):
        config.data[split].images = "."
        config.data[split].annotations = f"annotations/lvis_v1_{name}.json"
    config.data.image_size = (1067, 1067)
    config.augment.short_sides = (640, 672, 704, 736, 768, 800)

    config.model.norm = "frozen_batch_norm"
    config.model.freeze_at = 2

    config.eval.every = 30_000
    config.eval.score_threshold = 1e-4
    config.eval.max_detections = 300
    config.checkpoint.every = 5000
    return config
