"""The work that every contestant is given: the same logits and class ids in every process, from a seed."""

import numpy as np

POSITIVE_SHARE = 1e-3
LOGIT_MEAN, LOGIT_DEVIATION = -4.0, 2.0
BACKGROUND = -1
ALPHA, GAMMA = 0.25, 2.0


def synthetic_batch(size: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and labels of a detector that has begun to learn: nearly all anchors are easy background.

    Args:
        size: B, A, K.
        seed: of the generator.

    Returns:
        logits: float32 `[B, A, K]`, normal with mean -4 and standard deviation 2.
        labels: int32 `[B, A]`: a class id at one anchor in 1000 (at least one in all), BACKGROUND at the others.
    """
    B, A, K = size
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(size, np.float32)
    logits *= LOGIT_DEVIATION
    logits += LOGIT_MEAN
    labels = np.full(B * A, BACKGROUND, np.int32)
    num_positives = max(1, round(POSITIVE_SHARE * B * A))
    labels[rng.choice(B * A, num_positives, replace=False)] = rng.integers(0, K, num_positives)
    return logits, labels.reshape(B, A)
