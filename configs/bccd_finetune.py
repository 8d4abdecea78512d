"""RetinaNet-50 from torchvision's COCO weights, fine-tuned on BCCD (205 photographs of blood cells, three classes).

Data: as configs/bccd.py. Weights: torchvision's `RetinaNet_ResNet50_FPN_Weights.COCO_V1`, the file
retinanet_resnet50_fpn_coco-eeacb38b.pth, in the working directory or named by --config.init.weights=FILE. A .pth is
read by torch; without it `focaljax convert` on a machine that has torch makes a .safetensors of it.

Command: focaljax train --config configs/bccd_finetune.py --workdir runs/bccd_finetune
    focaljax evaluate --workdir runs/bccd_finetune --split test
Planned, not measured: test AP 0.60, AP50 0.91 (from scratch, configs/bccd.py: 0.589, 0.897). Seed 0.
Planned cost: 1 hour on 2 cores; 5 minutes on one GPU.
"""

import pathlib

from focaljax.cli.config import apply_variant, default_config


def get_config():
    config = default_config()
    # Frozen normalisation and, as torchvision fine-tunes it, frozen weights up to the first stage.
    apply_variant(config, "torchvision_v1")
    config.init.weights = "retinanet_resnet50_fpn_coco-eeacb38b.pth"

    folders = ("data/bccd", "../shared/data/bccd")
    config.data.root = next((folder for folder in folders if pathlib.Path(folder).is_dir()), folders[0])
    for split in ("train", "val", "test"):
        config.data[split].images = "images"
        config.data[split].annotations = f"annotations/instances_{split}.json"
    config.data.image_size = (480, 640)

    config.augment.vertical_flip = 0.5
    config.augment.scale = (0.8, 1.3)
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.hue = 0.02

    config.optim.learning_rate = 0.01  # torchvision's, for a batch of 16
    config.optim.batch_size = 4
    config.optim.steps = 1000
    config.optim.milestones = (700, 900)
    config.optim.warmup_steps = 100
    # torchvision's weight decay acts on all that is trained.
    config.optim.norm_weight_decay = -1.0
    config.optim.bias_weight_decay = -1.0
    config.optim.clip_norm = 10.0
    config.eval.every = 250
    config.eval.batch_size = 4
    config.checkpoint.every = 250
    return config
