"""RetinaNet-50 on COCO 2017, 118,287 images, the 1x schedule: 90,000 steps of 16 images, about 12 epochs.

Data: `train2017/`, `val2017/` and `annotations/instances_*2017.json` as COCO publishes them, below `data.root`, which
is data/coco, or set --config.data.root=DIR. Weights: torchvision's `ResNet50_Weights.IMAGENET1K_V1`, the file
resnet50-0676ba61.pth, in the working directory or named by --config.init.weights=FILE; a .pth is read by torch,
without it `focaljax convert` on a machine that has torch makes a .safetensors of it.

Source: Lin et al. 2017 (arXiv 1708.02002), sections 4 and 5: schedule, loss, anchors. Frozen normalisation, stem and
first stage, as detectron2's retinanet_R_50_FPN_1x and torchvision. Images fit into 800 x 800 here, so that there is one
shape: COCO's usual 640 x 480 px becomes 800 x 600, the paper's 600 px; detectron2 trains at 640 to 800 px.

Command: focaljax train --config configs/coco_r50_1x.py --workdir runs/coco_r50_1x --config.model.dtype=bfloat16
On a pod, the same at 256 images a step; the learning rate follows the batch, the steps are as many times fewer:
    focaljax train --config configs/coco_r50_1x.py --workdir runs/coco_r50_1x --config.model.dtype=bfloat16 \
        --config.optim.batch_size=256 --config.optim.steps=5625 \
        --config.optim.milestones='(3750, 5000)' --config.eval.batch_size=256
    focaljax plan --config configs/coco_r50_1x.py --topology v5e:4x4 --batch 256       # whether it fits, before

Published: AP 34.3 at 600 px (the paper, table 1e), 36.4 (torchvision, 800 px), 37.4 (detectron2, 640 to 800 px).
Planned, not measured: val2017 AP 0.343. Seed 0.
Planned cost: docs/scaling.md has the least time that the chips' published peaks allow.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.init.weights = "resnet50-0676ba61.pth"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (800, 800)

    config.model.norm = "frozen_batch_norm"
    config.model.freeze_at = 2

    config.eval.every = 15_000
    config.checkpoint.every = 5000
    return config
