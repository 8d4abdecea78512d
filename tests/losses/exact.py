"""The sigmoid focal loss to 50 digits, from its definition in probabilities, and its difference quotients."""

import functools

import mpmath
import numpy as np

SIZES = (1e-3, 0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 13.0, 16.2, 20.0, 50.0, 88.0, 100.0, 1e3, 1e4)
LOGITS = np.array([-size for size in reversed(SIZES)] + [0.0, *SIZES], np.float32)
GAMMAS = (0.0, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 5.0)
ALPHAS = (None, 0.25, 0.9)
LABELS = (0.0, 1.0, float(np.float32(0.3)))


def weight(label, alpha):
    return 1.0 if alpha is None else label * alpha + (1.0 - label) * (1.0 - alpha)


@functools.cache
def focal(logit, label, gamma):
    """Returns the loss without alpha and its first and second derivative by the logit, as floats."""
    # p differs from 1 by exp(-|x|), which has to be seen: |x| / log(10) digits, and 50 of it. Beyond |x| = 2000 the
    # loss is 0 or a straight line in float64.
    clipped = max(min(float(logit), 2000.0), -2000.0)
    with mpmath.workdps(60 + 2 * int(abs(clipped) / 2.3)):
        y, gamma = mpmath.mpf(label), mpmath.mpf(gamma)

        def loss(x):
            p = 1 / (1 + mpmath.exp(-x))
            miss = y * (1 - p) + (1 - y) * p
            return miss**gamma * -(y * mpmath.log(p) + (1 - y) * mpmath.log(1 - p))

        x, h = mpmath.mpf(clipped), mpmath.mpf(10) ** -15
        below, here, above = loss(x - h), loss(x), loss(x + h)
        first = (above - below) / (2 * h)
        value = here + first * (mpmath.mpf(float(logit)) - x)
        return float(value), float(first), float((above - 2 * here + below) / h**2)


def focal_of(logits, label, alpha, gamma):
    """Returns value, first and second derivative `[3, L]` in float64."""
    return weight(label, alpha) * np.array([focal(float(x), label, gamma) for x in logits]).T
