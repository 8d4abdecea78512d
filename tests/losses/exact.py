"""The sigmoid focal loss to 50 digits, from its definition in probabilities; how near float32 has to come."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

SIZES = (1e-3, 0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 13.0, 16.2, 20.0, 50.0, 88.0, 100.0, 1e3, 1e4)
LOGITS = np.array([-size for size in reversed(SIZES)] + [0.0, *SIZES], np.float32)
GAMMAS = (0.0, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 5.0)
ALPHAS = (None, 0.25, 0.9)
LABELS = (0.0, 1.0, float(np.float32(0.3)))
# The bars of the library, for float32: a few roundings up to |logit| = 20, where logarithms are small numbers, and
# |logit| times a rounding beyond.
NEAR, RELATIVE_NEAR, RELATIVE_FAR = 20.0, 4e-6, 4e-5
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


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


def assert_exact(actual, expected, logits, message, *, floor=SMALLEST_NORMAL):
    """Fails unless each float32 is finite and as close to the truth as the bars ask, or to within the floor."""
    assert np.isfinite(actual).all(), message
    allowed = np.where(np.abs(logits) <= NEAR, RELATIVE_NEAR, RELATIVE_FAR) * np.abs(expected)
    is_off = np.abs(np.asarray(actual, np.float64) - expected) > np.maximum(allowed, floor)
    assert not is_off.any(), f"{message}, logits {logits[is_off]}: {actual[is_off]}, not {expected[is_off]}"


def value_slope_and_curvatures(loss, jit=jax.jit):
    """A compiled function of logits and further arguments: per element the loss and three of its derivatives."""

    def all_of(logits, *args):
        def slope(x):
            return jax.grad(lambda x: loss(x, *args).sum())(x)

        forward_over_reverse = jax.jvp(slope, (logits,), (jnp.ones_like(logits),))[1]
        reverse_over_reverse = jax.grad(lambda x: slope(x).sum())(logits)
        return loss(logits, *args), slope(logits), forward_over_reverse, reverse_over_reverse

    return jit(all_of)
