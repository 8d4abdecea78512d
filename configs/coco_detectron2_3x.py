"""RetinaNet-50 on COCO 2017 as detectron2's retinanet_R_50_FPN_3x: 270,000 steps of 16 images, 640 to 800 px.

Data: as configs/coco_r50_1x.py says. Weights: detectron2's ImageNetPretrained/MSRA/R-50.pkl, in the working directory
or named by --config.init.weights=FILE.

Source: detectron2's model zoo, COCO-Detection/retinanet_R_50_FPN_3x and its Base-RetinaNet. BGR pixels, stride in
the 1x1, L1 loss, a moving average as normaliser. detectron2 leaves out images without boxes, 1 in 116; here they stay.
Sizes: by the shorter side, and at most 1333 px for the longer one; here an image also fits into 1067 x 1067, so that
there is one shape. 640 x 480 and 480 x 640 are as published, longer ones, half of COCO, smaller: 3:2 becomes 1067 x
711; --config.data.image_size='(1200, 1200)' holds it at 800, for a quarter more arithmetic. Evaluation is at the
largest size. Crowd regions are neither objects nor background; there they are background.

Command: focaljax train --config configs/coco_detectron2_3x.py --workdir runs/coco_detectron2_3x \
    --config.model.dtype=bfloat16
ResNet-101, from MSRA/R-101.pkl, published for 3x only:
    --config.model.variant=detectron2_r101 --config.loss.normalizer=ema --config.init.weights=R-101.pkl
On a pod, the same at 256 images a step; the learning rate follows the batch, the steps are as many times fewer:
    focaljax train --config configs/coco_detectron2_3x.py --workdir runs/coco_detectron2_3x \
        --config.model.dtype=bfloat16 --config.optim.batch_size=256 --config.optim.steps=16875 \
        --config.optim.milestones='(13125, 15625)' --config.eval.batch_size=256

Published: AP 38.7; ResNet-101 40.4. Cost: three times configs/coco_detectron2_1x.py. Ours: planned, not measured.
"""

from focaljax.cli.config import apply_variant, default_config


def get_config():
    config = default_config()
    apply_variant(config, "detectron2_r50")
    config.init.weights = "R-50.pkl"

    config.data.root = "data/coco"
    for split, name in (("train", "train2017"), ("val", "val2017"), ("test", "val2017")):
        config.data[split].images = name
        config.data[split].annotations = f"annotations/instances_{name}.json"
    config.data.image_size = (1067, 1067)
    config.augment.short_sides = (640, 672, 704, 736, 768, 800)

    config.loss.normalizer = "ema"

    config.optim.steps = 270_000
    config.optim.milestones = (210_000, 250_000)
    config.optim.warmup_steps = 1000
    config.optim.bias_weight_decay = -1.0
    config.eval.every = 30_000
    config.checkpoint.every = 5000
    return config
