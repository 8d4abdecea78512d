"""Objects and detections that every contestant of the evaluation benchmark is given: the same, from a seed.

As on COCO's val2017: 7.3 objects an image, of which 41% are small and 24% large, one in a hundred a crowd; few classes
have most of the objects. As of a trained detector: boxes near most of the objects, and others with low scores.
"""

import numpy as np

IMAGE_SIDES = np.array([640.0, 480.0])  # width and height, pixels
OBJECTS_AN_IMAGE = 7.3
# The side of an object, pixels: log-normal, below 32 with 41% and above 96 with 24%.
LOG_SIDE_MEAN, LOG_SIDE_DEVIATION = 3.73, 1.18
LOG_ASPECT_DEVIATION = 0.3
SHARE_OF_CROWDS = 0.01
SHARE_FOUND, SHARE_WITH_A_SECOND_BOX, SHARE_OF_THE_RIGHT_CLASS = 0.8, 0.5, 0.85


def synthetic_evaluation(
    *, num_images: int, detections_an_image: int, num_classes: int, seed: int
) -> tuple[dict, list[dict]]:
    """Returns a ground truth in COCO's annotation form and detections in its results form.

    Args:
        num_images: I.
        detections_an_image: D, the same for every image.
        num_classes: K.
        seed: of the generator.
    """
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, num_classes + 1)
    shares /= shares.sum()
    annotations: list[dict] = []
    detections: list[dict] = []
    for image_id in range(1, num_images + 1):
        count = rng.poisson(OBJECTS_AN_IMAGE)
        boxes, classes = _boxes(rng, count), rng.choice(num_classes, count, p=shares)
        is_crowd = rng.random(count) < SHARE_OF_CROWDS
        for bbox, label, crowd in zip(boxes.round(2).tolist(), classes.tolist(), is_crowd.tolist()):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, "bbox": bbox}
            annotations.append({**annotation, "area": bbox[2] * bbox[3], "iscrowd": int(crowd)})

        is_near = rng.random(count) < SHARE_FOUND
        near = np.flatnonzero(np.concatenate([is_near, is_near & (rng.random(count) < SHARE_WITH_A_SECOND_BOX)]))
        near = near[:detections_an_image]
        is_second = near >= count
        near = near % max(count, 1)
        jitter = rng.normal(0, np.where(is_second, 0.3, 0.08)[:, None], (len(near), 4))
        sides = boxes[near, 2:]
        moved = np.concatenate([boxes[near, :2] + jitter[:, :2] * sides, sides * np.exp(jitter[:, 2:])], axis=1)
        others = detections_an_image - len(near)
        found_boxes = np.concatenate([moved, _boxes(rng, others)]).astype(np.float32)
        is_right = rng.random(len(near)) < SHARE_OF_THE_RIGHT_CLASS
        found_classes = np.where(is_right, classes[near], rng.integers(0, num_classes, len(near)))
        found_classes = np.concatenate([found_classes, rng.choice(num_classes, others, p=shares)])
        scores = np.concatenate(
            [np.where(is_second, rng.beta(2, 4, len(near)), rng.beta(4, 2, len(near))), rng.beta(1, 8, others)]
        )
        # Best first, as a detector gives them; float32 numbers.
        order = np.argsort(-scores)
        columns = (found_classes[order] + 1, found_boxes[order], scores[order].astype(np.float32))
        detections += [
            {"image_id": image_id, "category_id": label, "bbox": bbox, "score": score}
            for label, bbox, score in zip(*(column.tolist() for column in columns))
        ]
    images = [
        {"id": number, "width": int(IMAGE_SIDES[0]), "height": int(IMAGE_SIDES[1])}
        for number in range(1, num_images + 1)
    ]
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, num_classes + 1)]
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}, detections


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns boxes in an image as x, y, width, height, float64 `[N, 4]`."""
    side = np.exp(rng.normal(LOG_SIDE_MEAN, LOG_SIDE_DEVIATION, (count, 1)))
    aspect = np.exp(rng.normal(0, LOG_ASPECT_DEVIATION, (count, 1)))
    sides = np.minimum(np.concatenate([side * aspect, side / aspect], axis=1), IMAGE_SIDES)
    return np.concatenate([rng.random((count, 2)) * (IMAGE_SIDES - sides), sides], axis=1)
