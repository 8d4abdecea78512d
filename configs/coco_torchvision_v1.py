"""RetinaNet-50 on COCO 2017 as torchvision's retinanet_resnet50_fpn: 26 epochs, 16 images a step, 800 px.

Data and weights: as configs/coco_r50_1x.py says.

Source: torchvision's references/detection, the recipe of `RetinaNet_ResNet50_FPN_Weights.COCO_V1`: SGD 0.01 for 16
images, divided by 10 after 16 and 22 epochs, weight decay on everything, flips. torchvision leaves out images without
boxes, 1 in 116, and has 91 outputs, of which COCO's 80 classes use 80; here all images stay and there are 80.
Sizes: by the shorter side, and at most 1333 px for the longer one; here an image also fits into 1067 x 1067, so that
there is one shape. 640 x 480 and 480 x 640 are as published, longer ones, half of COCO, smaller: 3:2 becomes 1067 x
711; --config.data.image_size='(1200, 1200)' holds it at 800, for a quarter more arithmetic. Evaluation is at the
largest size. Crowd regions are neither objects nor background; there they are background.

Command: focaljax train --config configs/coco_torchvision_v1.py --workdir runs/coco_torchvision_v1 \
    --config.model.dtype=bfloat16
On a pod, the same at 256 images a step; the learning rate follows the batch, the steps are as many times fewer:
    focaljax train --config configs/coco_torchvision_v1.py --workdir runs/coco_torchvision_v1 \
        --config.model.dtype=bfloat16 --config.optim.batch_size=256 --config.optim.steps=12012 \
        --config.optim.milestones='(7392, 10164)' --config.eval.batch_size=256

Published: AP 36.4. Cost: not known. Ours: planned, not measured.
"""

from focaljax.cli.config import apply_variant, default_config


def get_config():
    config = default_config()
    apply_variant(config, "torchvision_v1")
    config.model.norm_epsilon = 1e-5  # 0 is for the published weights alone
    config.init.weights = "resnet50-0676ba61.pth"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (1067, 1067)
    config.augment.short_sides = (800,)

    # 7392 steps are an epoch.
    config.optim.steps = 192_192
    config.optim.milestones = (118_272, 162_624)
    config.optim.warmup_steps = 1000
    config.optim.norm_weight_decay = -1.0
    config.optim.bias_weight_decay = -1.0
    config.eval.every = 29_568
    config.checkpoint.every = 5000
    return config
