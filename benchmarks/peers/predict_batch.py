"""The work of the prediction benchmark: images and weights, the same in every process."""

from collections.abc import Mapping, Sequence

import numpy as np

NUM_CLASSES = 91
# What the weights of the scores are multiplied by and what is added to their biases. As filled, nearly all scores are 1
# at this image size; so, a few thousand candidates are above the threshold, as in images full of objects.
SCORES = "head.classification_head.cls_logits."
SCORE_FACTOR, SCORE_SHIFT = 0.2, -1.5

PATCH = 16  # pixels


def synthetic_images(count: int, size: int, seed: int) -> np.ndarray:
    """Returns images of patches in random colours with noise, uint8 `[B, size, size, 3]`."""
    rng = np.random.default_rng(seed)
    patches = -(-size // PATCH)
    coarse = rng.integers(0, 200, (count, patches, patches, 3)).repeat(PATCH, axis=1).repeat(PATCH, axis=2)
    return (coarse[:, :size, :size] + rng.integers(0, 56, (count, size, size, 3))).astype(np.uint8)


def filled_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Returns values for every entry of a state_dict of torchvision's RetinaNet, float32, each from its name.

    As the tests fill it, which keeps activations of order 1.

    Args:
        shapes: by name.
    """
    from tests.golden.fill import fill_state_dict

    state_dict = fill_state_dict(shapes)
    state_dict[SCORES + "weight"] *= np.float32(SCORE_FACTOR)
    state_dict[SCORES + "bias"] += np.float32(SCORE_SHIFT)
    return state_dict
