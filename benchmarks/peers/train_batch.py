"""The work of the benchmark of the train step: batch, optimiser and number of steps, the same in every process."""

from collections.abc import Mapping, Sequence

import numpy as np

# SGD as torchvision trains its first RetinaNet: the decay is of every weight. The rate is one at which the losses move
# by more than a comparison leaves open, and do not grow.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-4, 0.9, 1e-4
# After the first step losses show the gradient, after the second the momentum too.
STEPS_COMPARED = 3

SCORES = "head.classification_head.cls_logits."


def synthetic_batch(
    size: int, *, batch_size: int, num_boxes: int, num_classes: int, seed: int
) -> dict[str, np.ndarray]:
    """Returns noise with random boxes, in the form of a training batch on the host.

    Args:
        size: height and width in pixels.
        batch_size: B.
        num_boxes: N, on each image, none of them padding.
        num_classes: K, at least 2; class 0, torchvision's background, has no box.
        seed: of the generator.

    Returns:
        image: uint8 `[B, size, size, 3]`.
        size: int32 `[B, 2]`, of the whole image.
        boxes: float32 `[B, N, 4]`, xyxy in pixels, sides 5% to 30% of the image's.
        labels: int32 `[B, N]` in 1..K-1.
        is_crowd, is_box: bool `[B, N]`: none and all.
    """
    rng = np.random.default_rng(seed)
    B, N = batch_size, num_boxes
    top_left = rng.uniform(0, 0.7, (B, N, 2))
    boxes = size * np.concatenate([top_left, top_left + rng.uniform(0.05, 0.3, (B, N, 2))], axis=-1)
    return {
        "image": rng.integers(0, 256, (B, size, size, 3), np.uint8),
        "size": np.full((B, 2), size, np.int32),
        "boxes": boxes.astype(np.float32),
        "labels": rng.integers(1, num_classes, (B, N), np.int32),
        "is_crowd": np.zeros((B, N), bool),
        "is_box": np.ones((B, N), bool),
    }


def filled_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Returns values for every entry of a state_dict of torchvision's RetinaNet, float32, each from its name.

    As the tests fill it, which keeps activations of order 1; only the scores are lower, all near 0.01 as where training
    starts: else the loss begins in the thousands, and no rate makes it fall at every size.

    Args:
        shapes: by name.
    """
    from tests.golden.fill import fill_state_dict

    state_dict = fill_state_dict(shapes)
    state_dict[SCORES + "weight"] *= np.float32(0.1)
    state_dict[SCORES + "bias"] -= np.float32(1.1)
    return state_dict


def parse_name(name: str) -> tuple[str, int]:
    """Returns what runs, and the side of its images or matrices, from a contestant's name, such as 'focaljax/512'."""
    kind, side = name.split("/")
    return kind, int(side)
