"""RetinaNet on MLPerf's part of OpenImages, 1,170,301 images of 264 classes, at 800 x 800 px, Adam: MLPerf Training's.

Data: what MLPerf's download_openimages_mlperf.sh writes, `train/` and `validation/` with `data/` and
`labels/openimages-mlperf.json` each, below `data.root`, which is data/openimages, or set --config.data.root=DIR.
Weights: torchvision's `ResNeXt50_32X4D_Weights.IMAGENET1K_V1`, the file resnext50_32x4d-7cdf4587.pth, in the working
directory or named by --config.init.weights=FILE.

Source: github.com/mlcommons/training, retired_benchmarks/retinanet: ResNeXt50-32x4d, flips, Adam 1e-4 without weight
decay (AdamW with 0 is Adam), the first epoch a warm-up, stem and first stage frozen, evaluated after each epoch until
AP is 0.34. At 256 images a step the reference took 4 epochs in each of 20 runs, with more images more
(mlcommons/logging, mlperf_logging/rcp_checker/training_5.0.0/rcps_retinanet.json): 4 are planned. MLPerf
stretches images to 800 x 800; here they are padded. Boxes around groups are objects there; here they are crowds,
neither objects nor background.

Command: focaljax train --config configs/openimages_mlperf.py --workdir runs/openimages_mlperf \
    --config.model.dtype=bfloat16 --config.optim.batch_size=32 --config.optim.steps=146284 \
    --config.optim.warmup_steps=36571 --config.eval.every=36571
On a pod, or 8 GPUs with 32 images each:
    focaljax train --config configs/openimages_mlperf.py --workdir runs/openimages_mlperf \
        --config.model.dtype=bfloat16 --config.eval.batch_size=256

Published: AP 0.34, the target. Published speed: 290 images/s per H100, 122 per A100 (8 of them, 32 images each), 37 per
TPU v4 chip. Ours: planned, not measured.
"""

from focaljax.cli.config import apply_variant, default_config


def get_config():
    config = default_config()
    apply_variant(config, "mlperf")
    config.init.weights = "resnext50_32x4d-7cdf4587.pth"

    config.data.root = "data/openimages"
    for split, folder in (("train", "train"), ("val", "validation"), ("test", "validation")):
        config.data[split].images = f"{folder}/data"
        config.data[split].annotations = f"{folder}/labels/openimages-mlperf.json"

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-4
    config.optim.learning_rate_batch = 0  # the same rate for all batches
    config.optim.weight_decay = 0.0
    config.optim.batch_size = 256
    # 4571 steps are an epoch.
    config.optim.steps = 18_284
    config.optim.warmup_steps = 4571
    config.optim.schedule = "constant"
    config.optim.milestones = ()
    config.eval.every = 4571
    config.eval.batch_size = 32
    config.checkpoint.every = 1000
    return config
