"""RetinaNet-50 on Pascal VOC: trainval of 2007 and 2012, 16,551 images of 20 classes, to test of 2007, 4,952 images.

Data: VOC2007 and VOC2012 as published, in one folder `data.root`, which is data/voc, or set --config.data.root=DIR:
    mkdir -p data/voc/JPEGImages data/voc/Annotations data/voc/lists
    for year in VOC2007 VOC2012; do for part in JPEGImages Annotations; do
        find "$PWD/VOCdevkit/$year/$part" -type f -exec ln -st data/voc/$part {} +; done; done
    cat VOCdevkit/VOC20*/ImageSets/Main/trainval.txt > data/voc/lists/trainval0712.txt
    cp VOCdevkit/VOC2007/ImageSets/Main/test.txt data/voc/lists/test2007.txt
Weights: as configs/coco_r50_1x.py says.

Source: the split that is usual since Girshick 2015 (arXiv 1504.08083); model and loss as configs/coco_r50_600.py. The
schedule is ours: 12 epochs, as 1x on COCO. Objects marked difficult are neither objects nor background; VOC counts
pixels from 1, which is taken as from 0.

Command: focaljax train --config configs/voc_0712.py --workdir runs/voc_0712 --config.model.dtype=bfloat16
On a pod, at 128 images a step:
    focaljax train --config configs/voc_0712.py --workdir runs/voc_0712 --config.model.dtype=bfloat16 \
        --config.optim.batch_size=128 --config.optim.steps=1552 --config.optim.warmup_steps=200 \
        --config.optim.milestones='(1034, 1422)' --config.eval.batch_size=128

Published: not known for RetinaNet-50. COCO's metrics are printed; their AP50 is nearest to VOC's AP.
Planned, not measured. Cost: not known.
"""

from focaljax.cli.config import default_config


def get_config():
    config = default_config()
    config.init.weights = "resnet50-0676ba61.pth"

    config.data.source = "voc"
    config.data.root = "data/voc"
    for split, name in (("train", "trainval0712"), ("val", "test2007"), ("test", "test2007")):
        config.data[split].images = "JPEGImages"
        config.data[split].annotations = "Annotations"
        config.data[split].name = f"lists/{name}.txt"
    config.data.image_size = (600, 1000)

    config.model.norm = "frozen_batch_norm"
    config.model.freeze_at = 2

    # 1034 steps are an epoch.
    config.optim.steps = 12_408
    config.optim.milestones = (8272, 11_374)
    config.eval.every = 4136
    config.checkpoint.every = 1034
    return config
