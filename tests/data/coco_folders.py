"""Small data sets in COCO's form, written by the tests that read them."""

import json

import cv2
import numpy as np


def write_coco(folder, images, annotations, names=("cat", "dog")):
    """Writes images (a list of uint8 `[H, W, 3]`) and annotations (image number, class number, bbox, is_crowd)."""
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(images):
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), image[..., ::-1])
    document = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": image.shape[0], "width": image.shape[1]}
            for number, image in enumerate(images)
        ],
        "annotations": [
            {"id": 1 + row, "image_id": image, "category_id": 1 + label, "bbox": list(bbox), "iscrowd": int(any(crowd))}
            for row, (image, label, bbox, *crowd) in enumerate(annotations)
        ],
        "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(names)],
    }
    (folder / "annotations.json").write_text(json.dumps(document))


def noise(seed, height=48, width=64):
    """Returns a picture of blurred noise: no two are alike, and each keeps its look when it is scaled."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
