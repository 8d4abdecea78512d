"""RetinaNet-50 on COCO 2017 as torchvision's retinanet_resnet50_fpn_v2: AdamW, 26 epochs, 480 to 800 px.

Data: as configs/coco_r50_1x.py says. Weights: torchvision's `ResNet50_Weights.IMAGENET1K_V2`, the file
resnet50-11ad3fa6.pth, in the working directory or named by --config.init.weights=FILE.

Source: the recipe of `RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1`, github.com/pytorch/vision/pull/5756: AdamW 1e-4 for
16 images, weight decay 0.05 but 0 of normalisations, divided by 10 after 16 and 22 epochs, multi-scale, live
normalisation over all devices. torchvision does not train the stem and the first stage, but goes on with their
statistics; here they are trained. Images without boxes stay.
Sizes: by the shorter side, and at most 1333 px for the longer one; here an image also fits into 1067 x 1067, so that
there is one shape. 640 x 480 and 480 x 640 are as published, longer ones, half of COCO, smaller: 3:2 becomes 1067 x
711; --config.data.image_size='(1200, 1200)' holds it at 800, for a quarter more arithmetic. Evaluation is at the
largest size. Crowd regions are neither objects nor background; there they are background.

Command: focaljax train --config configs/coco_torchvision_v2.py --workdir runs/coco_torchvision_v2 \
    --config.model.dtype=bfloat16
On a pod, the same at 256 images a step, the steps are as many times fewer. The rate is the published one by the square
root rule for Adam (Malladi et al. 2022, arXiv 2205.10287), not in proportion to the batch; not tried:
    focaljax train --config configs/coco_torchvision_v2.py --workdir runs/coco_torchvision_v2 \
        --config.model.dtype=bfloat16 --config.optim.batch_size=256 --config.optim.steps=12012 \
        --config.optim.milestones='(7392, 10164)' --config.eval.batch_size=256 \
        --config.optim.learning_rate=4e-4 --config.optim.learning_rate_batch=0

Published: AP 41.5, AP50 61.8, AP75 43.9. Cost: not known. Ours: planned, not measured.
"""

from focaljax.cli.config import apply_variant, default_config


def get_config():
    config = default_config()
    apply_variant(config, "torchvision_v2")
    config.init.weights = "resnet50-11ad3fa6.pth"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (1067, 1067)
    config.augment.short_sides = tuple(range(480, 801, 32))

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay = 0.05
    config.optim.bias_weight_decay = -1.0
    # 7392 steps are an epoch.
    config.optim.steps = 192_192
    config.optim.milestones = (118_272, 162_624)
    config.optim.warmup_steps = 1000
    config.eval.every = 29_568
    config.checkpoint.every = 5000
    return config
