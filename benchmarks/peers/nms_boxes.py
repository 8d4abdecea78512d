"""The boxes that every contestant of the suppression benchmark is given: the same in every process, from a seed."""

import numpy as np

IMAGE_SIDE = 800  # pixels
CANDIDATES_AN_OBJECT = 8
SHARE_OF_OTHER_CLASSES = 0.2
LOWEST_SCORE = 0.05
# Corners in 1/16 pixel: torchvision moves the boxes of each class apart, by up to 80 x 800 pixels, and float32 holds
# these sums exactly. Otherwise it would compare other boxes than we do.
STEPS_A_PIXEL = 16


def synthetic_candidates(count: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what a detector finds around its objects: eight boxes each, most of them of the object's class.

    Args:
        count: M, at least 1.
        num_classes: K.
        seed: of the generator.

    Returns:
        boxes_xyxy: float32 `[M, 4]`, in an image of 800 x 800 pixels; objects have sides about 55 pixels.
        scores: float32 `[M]` in (0.05, 1], no two equal, in no order.
        labels: int32 `[M]` in 0..K-1.
    """
    rng = np.random.default_rng(seed)
    num_objects = max(1, count // CANDIDATES_AN_OBJECT)
    centers = rng.uniform(0, IMAGE_SIDE, (num_objects, 2))
    sides = np.exp(rng.normal(4, 0.7, (num_objects, 2)))
    classes = rng.integers(0, num_classes, num_objects)
    objects = rng.integers(0, num_objects, count)
    center = centers[objects] + rng.normal(0, 0.15, (count, 2)) * sides[objects]
    half = 0.5 * sides[objects] * np.exp(rng.normal(0, 0.2, (count, 2)))
    boxes = np.concatenate([center - half, center + half], axis=1).clip(0, IMAGE_SIDE)
    boxes = np.round(boxes * STEPS_A_PIXEL) / STEPS_A_PIXEL
    is_other = rng.random(count) < SHARE_OF_OTHER_CLASSES
    labels = np.where(is_other, rng.integers(0, num_classes, count), classes[objects])
    scores = LOWEST_SCORE + (1 - LOWEST_SCORE) * rng.permutation(np.arange(1, count + 1)) / count
    return boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int32)


def parse_name(name: str) -> tuple[int, int]:
    """Returns the numbers of candidates and of boxes wanted from a contestant's name, such as 'focaljax/5000/all'."""
    _, count, limit = name.split("/")
    return int(count), int(count) if limit == "all" else int(limit)
