"""The relatives of the focal loss: exact against their papers' definitions, finite, and what they have in common."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from focaljax.losses.sigmoid import sigmoid_cross_entropy, sigmoid_focal_loss
from focaljax.losses.variants import (
    asymmetric_focal_loss,
    focal_loss_star,
    gaussian_focal_loss,
    poly1_focal_loss,
    quality_focal_loss,
    varifocal_loss,
)
from tests.losses import exact
from tests.users_programs import jit_as_users

SIZES = (1e-3, 0.1, 1.0, 3.0, 7.3, 13.0, 16.3, 20.0, 50.0, 88.0, 100.0, 1e3, 1e4)
LOGITS = np.array([-size for size in reversed(SIZES)] + [0.0, *SIZES], np.float32)
# Ten times the smallest normal float32: the terms of a normal sum may not be normal.
ABSOLUTE = 1.2e-37

# The definitions, in probabilities; `log0(p, y)` is y log(p), 0 for y = 0.


def log0(p, y):
    return y * mpmath.log(p) if y else mpmath.mpf(0)


def star(x, y, gamma, beta):
    def of(x_t):
        return -mpmath.log(1 / (1 + mpmath.exp(-(gamma * x_t + beta)))) / gamma

    return y * of(x) + (1 - y) * of(-x)


def quality(x, y, beta):
    p = 1 / (1 + mpmath.exp(-x))
    return abs(y - p) ** beta * -(log0(p, y) + log0(1 - p, 1 - y))


def varifocal(x, y, alpha, gamma):
    p = 1 / (1 + mpmath.exp(-x))
    if y > 0:
        return -y * (log0(p, y) + log0(1 - p, 1 - y))
    return -alpha * p**gamma * mpmath.log(1 - p)


def gaussian(x, y, gamma, beta):
    p = 1 / (1 + mpmath.exp(-x))
    return -((1 - p) ** gamma) * mpmath.log(p) if y == 1 else -((1 - y) ** beta) * p**gamma * mpmath.log(1 - p)


def asymmetric(x, y, gamma_positive, gamma_negative, margin):
    p = 1 / (1 + mpmath.exp(-x))
    p_m = max(p - margin, mpmath.mpf(0))
    return -((1 - p) ** gamma_positive) * log0(p, y) - p_m**gamma_negative * log0(1 - p_m, 1 - y)


def poly1(x, y, epsilon, gamma):
    p = 1 / (1 + mpmath.exp(-x))
    miss = y * (1 - p) + (1 - y) * p
    return miss**gamma * -(log0(p, y) + log0(1 - p, 1 - y)) + epsilon * miss ** (gamma + 1)


# The loss, its definition, the names of the hyperparameters, and values of them, the defaults first.
CASES = {
    "star": (focal_loss_star, star, ("gamma", "beta"), ((2.0, 1.0), (4.0, 0.0), (0.5, -0.7), (5.3, 0.7))),
    "quality": (quality_focal_loss, quality, ("beta",), ((2.0,), (0.0,), (0.1,), (1.5,))),
    "varifocal": (varifocal_loss, varifocal, ("alpha", "gamma"), ((0.75, 2.0), (0.75, 0.1), (2.0, 0.5))),
    "gaussian": (gaussian_focal_loss, gaussian, ("gamma", "beta"), ((2.0, 4.0), (0.0, 0.5), (0.1, 0.0))),
    "asymmetric": (
        asymmetric_focal_loss,
        asymmetric,
        ("gamma_positive", "gamma_negative", "margin"),
        ((1.0, 4.0, 0.05), (0.0, 1.5, 0.3), (0.1, 0.1, 0.0)),
    ),
    "poly1": (poly1_focal_loss, poly1, ("epsilon", "gamma"), ((1.0, 2.0), (-0.5, 0.0), (2.0, 0.1))),
}
CASE_NAMES = pytest.mark.parametrize("name", CASES)
# The defaults are known when tracing, the others traced, so that one program serves them all.
SETTINGS = [(name, values, i == 0) for name, case in CASES.items() for i, values in enumerate(case[3])]


@functools.cache
def truth(name, logit, label, values):
    """Returns the loss and its first and second derivative by the logit, from the definition."""
    _, definition, names, _ = CASES[name]
    # p differs from 1 by exp(-|x|), to its fifth power; beyond 1000 each loss is 0, constant, or a straight line.
    clipped = max(min(logit, 1e3), -1e3)
    with mpmath.workdps(80 + int(2.2 * abs(clipped))):
        arguments = dict(zip(names, map(mpmath.mpf, values)))
        x, h = mpmath.mpf(clipped), mpmath.mpf(10) ** -20
        below, here, above = (definition(x + step, mpmath.mpf(label), **arguments) for step in (-h, 0, h))
        first = (above - below) / (2 * h)
        value = here + first * (mpmath.mpf(logit) - x)
        return float(value), float(first), float((above - 2 * here + below) / h**2)


def truths(name, logits, label, values):
    return np.array([truth(name, float(x), label, values) for x in logits]).T


@functools.cache
def derivatives(name, *values):
    """A compiled function of logits, labels and, where no values are given, the hyperparameters: value and slopes."""
    loss, _, names, _ = CASES[name]
    return exact.value_slope_and_curvatures(
        lambda logits, labels, *traced: loss(logits, labels, **dict(zip(names, values or traced))),
        jit_as_users if values else jax.jit,
    )


@pytest.mark.parametrize(("name", "values", "is_known"), [*SETTINGS, ("quality", (1.5,), True)])
def test_value_and_derivatives_equal_fifty_digit_arithmetic(name, values, is_known):
    for label in exact.LABELS:
        arguments = (LOGITS, np.full_like(LOGITS, label))
        ours = derivatives(name, *values)(*arguments) if is_known else derivatives(name)(*arguments, *values)
        expected = truths(name, LOGITS, label, values)
        message = f"{name} {values}, label {label}"
        exact.assert_exact(ours[0], expected[0], LOGITS, message, floor=ABSOLUTE)
        exact.assert_exact(ours[1], expected[1], LOGITS, f"{message}, slope", floor=ABSOLUTE)
        for second in ours[2:]:
            np.testing.assert_allclose(second, expected[2], rtol=1e-4, atol=1e-6, err_msg=message)


@CASE_NAMES
def test_defaults_are_those_documented(name):
    loss, _, names, values = CASES[name]
    for label in (0.0, 1.0):
        np.testing.assert_array_equal(loss(LOGITS, label), loss(LOGITS, label, **dict(zip(names, values[0]))))


@CASE_NAMES
def test_huge_and_infinite_logits(name):
    values = CASES[name][3][0]
    logits = np.array([1e10, 1e30, np.inf, -1e10, -1e30, -np.inf], np.float32)
    for label in exact.LABELS:
        value, slope, *second = derivatives(name, *values)(logits, np.full_like(logits, label))
        at_thousand = np.repeat([truth(name, x, label, values)[:2] for x in (1e3, -1e3)], 3, axis=0).T
        np.testing.assert_allclose(slope, at_thousand[1], rtol=1e-6, atol=ABSOLUTE)
        np.testing.assert_array_equal(second, np.zeros((2, 6)))
        grows = np.abs(at_thousand[1]) > 1e-9
        np.testing.assert_allclose(value[~grows], at_thousand[0][~grows], rtol=1e-6, atol=ABSOLUTE)
        np.testing.assert_allclose(value[grows], (at_thousand[1][grows] * logits[grows]), rtol=1e-6)


@CASE_NAMES
def test_derivatives_by_label_and_hyperparameters(name):
    loss, definition, names, (values, *_) = CASES[name]
    # Varifocal and Gaussian loss jump at one end of the labels.
    first = 2 if name in ("varifocal", "gaussian") else 1
    which = tuple(range(first, 2 + len(values)))
    gradient = jax.grad(lambda x, y, *h: loss(x, y, **dict(zip(names, h))), which)
    gradients = jax.jit(jax.vmap(gradient, (0, 0, *[None] * len(values))))
    logits = np.array([-13.0, -7.0, -1.0, 0.5, 3.0, 13.0, 1e4, -1e30], np.float32)
    for label in exact.LABELS:
        columns = np.array(gradients(logits, np.full_like(logits, label), *values))
        assert np.isfinite(columns).all()
        for argument, column in zip(which, columns):
            for x, actual in zip(logits[:6], column):
                with mpmath.workdps(60):
                    here, h = [mpmath.mpf(float(value)) for value in (x, label, *values)], mpmath.mpf(10) ** -20
                    above, below = (
                        [*here[:argument], here[argument] + step, *here[argument + 1 :]] for step in (h, -h)
                    )
                    expected = float((definition(*above) - definition(*below)) / (2 * h))
                # A logarithm of p close to 1 is off by a rounding of 1, and is a factor of the loss.
                assert actual == pytest.approx(expected, rel=1e-5, abs=2e-6), f"argument {argument}, {label}, {x}"


# What they are to each other


def test_relatives_are_the_focal_loss_or_cross_entropy_where_they_should_be():
    hard, soft = np.tile(np.float32([0, 1]), 14)[:27], np.tile(np.float32([0, 1, 0.3, 0.8]), 7)[:27]
    cross_entropy = sigmoid_cross_entropy(LOGITS, soft)
    equal = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-37)
    equal(focal_loss_star(LOGITS, soft, gamma=1.0, beta=0.0), cross_entropy)
    equal(quality_focal_loss(LOGITS, soft, beta=0.0), cross_entropy)
    equal(poly1_focal_loss(LOGITS, soft, epsilon=0.0, gamma=0.0), cross_entropy)
    equal(quality_focal_loss(LOGITS, hard, beta=1.5), sigmoid_focal_loss(LOGITS, hard, gamma=1.5))
    equal(gaussian_focal_loss(LOGITS, hard, gamma=0.5), sigmoid_focal_loss(LOGITS, hard, gamma=0.5))
    equal(varifocal_loss(LOGITS, 0.0, alpha=0.3, gamma=2.0), 0.3 * sigmoid_focal_loss(LOGITS, 0.0))
    equal(varifocal_loss(LOGITS, 0.8), 0.8 * sigmoid_cross_entropy(LOGITS, 0.8))
    equal(poly1_focal_loss(LOGITS, soft, epsilon=0.0, alpha=0.25), sigmoid_focal_loss(LOGITS, soft, alpha=0.25))
    without_margin = asymmetric_focal_loss(LOGITS, hard, gamma_positive=2.0, gamma_negative=2.0, margin=0.0)
    equal(without_margin, sigmoid_focal_loss(LOGITS, hard, gamma=2.0))


def test_quality_loss_has_its_minimum_where_probability_equals_quality():
    # At p = y = 1/2: value 0, slope 0, curvature 2 (p (1 - p))^2 log(2) = log(2) / 8 for beta 2.
    at_half = functools.partial(derivatives("quality"), jnp.zeros(1), jnp.full(1, 0.5))
    for value, slope, *second in (at_half(2.0), derivatives("quality", 2.0)(jnp.zeros(1), jnp.full(1, 0.5))):
        assert value[0] < 1e-25
        assert abs(slope[0]) < 1e-12
        np.testing.assert_allclose(second, np.full((2, 1), math.log(2) / 8), rtol=1e-6)
    for beta in (0.1, 0.5, 1.0):
        _, slope, *second = at_half(beta)
        assert slope[0] == 0
        assert np.isfinite(second).all()
    assert (quality_focal_loss(np.array([-0.1, 0.1]), 0.5) > 0).all()


def test_pixel_beside_a_key_point_is_a_negative_of_little_weight():
    # -(1 - y)^4 p^2 log(1 - p) at p = 1/2, y = 1 - 2^-5: 2^-20 log(2) / 4.
    loss = gaussian_focal_loss(np.zeros(2), np.array([1 - 2**-5, 1.0]))
    np.testing.assert_allclose(loss, math.log(2) / 4 * np.array([2**-20, 1.0]), rtol=1e-6)


def test_asymmetric_loss_of_negatives_is_zero_below_the_margin_and_bounded():
    below, above = math.log(0.0499 / 0.9501), math.log(0.0501 / 0.9499)
    value_and_slope = jax.vmap(jax.value_and_grad(lambda x: asymmetric_focal_loss(x, 0.0, gamma_negative=0.0)))
    value, slope = value_and_slope(jnp.array([-math.inf, -50.0, below, above, math.inf]))
    np.testing.assert_array_equal(value[:3], np.zeros(3))
    np.testing.assert_array_equal(slope[:3], np.zeros(3))
    assert value[3] == pytest.approx(1e-4, rel=1e-2)
    assert slope[3] == pytest.approx(0.0501 * 0.9499, rel=1e-3)
    assert value[4] == pytest.approx(-math.log(0.05), rel=1e-6)
    assert slope[4] == 0


def test_alpha_weights_the_two_labels():
    logits, alpha = np.full((2, 3), 0.7, np.float32), np.array([0.0, 0.25, 1.0], np.float32)
    labels = np.array([[1.0] * 3, [0.0] * 3], np.float32)
    plain, weighted = (focal_loss_star(logits, labels, alpha=a) for a in (None, alpha))
    np.testing.assert_allclose(weighted, plain * np.array([alpha, 1 - alpha]), rtol=1e-6)
    # In Poly-1 it weights FL only: 1 - p_t is 0.331812 for label 1 at this logit.
    focal, weighted = sigmoid_focal_loss(logits, labels), poly1_focal_loss(logits, labels, alpha=alpha)
    np.testing.assert_allclose(weighted[0] - focal[0] * alpha, np.full(3, 0.331812**3), rtol=1e-5)
    np.testing.assert_allclose(varifocal_loss(logits[1], 0.0, alpha=alpha), alpha * focal[1], rtol=1e-5)


def test_poly1_with_epsilon_minus_one_is_off_by_a_rounding_of_its_larger_term():
    value, slope, *_ = derivatives("poly1", -1.0, 2.0)(LOGITS, np.ones_like(LOGITS))
    expected = truths("poly1", LOGITS, 1.0, (-1.0, 2.0))
    larger = np.abs(truths("poly1", LOGITS, 1.0, (0.0, 2.0)))
    assert (np.abs(value - expected[0]) <= 4e-6 * larger[0] + ABSOLUTE).all()
    assert (np.abs(slope - expected[1]) <= 4e-6 * larger[1] + ABSOLUTE).all()


@CASE_NAMES
def test_float64_reaches_thirteen_digits(name):
    values = CASES[name][3][0]
    with jax.enable_x64(True):
        logits = np.array([-30.0, -7.3, 0.1, 3.0, 30.0])
        for label in (0.0, 1.0, 0.3):
            value, slope, *_ = derivatives(name, *values)(logits, np.full(5, label))
            assert value.dtype == jnp.float64
            np.testing.assert_allclose((value, slope), truths(name, logits, label, values)[:2], rtol=1e-13)


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (focal_loss_star, {"gamma": 0.0}, "gamma must be greater than 0 and finite, got 0.0"),
        (focal_loss_star, {"beta": math.nan}, "beta must be finite, got nan"),
        (poly1_focal_loss, {"epsilon": math.inf}, "epsilon must be finite, got inf"),
        (poly1_focal_loss, {"epsilon": np.zeros(3)}, r"epsilon has shape \(3,\), expected a number: for several"),
        (varifocal_loss, {"alpha": None}, "alpha must be a number or one per class, got None"),
        (quality_focal_loss, {"beta": "2"}, "beta must be a number at least 0 and finite, got '2'"),
        (focal_loss_star, {"alpha": np.ones(2)}, r"alpha has shape \(2,\)"),
        (quality_focal_loss, {"beta": -1.0}, "beta must be at least 0.*, got -1.0"),
        (quality_focal_loss, {"labels": np.array([0.5, 1.5, 0.0])}, r"labels must be in \[0, 1\], got 1.5"),
        (varifocal_loss, {"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        (varifocal_loss, {"logits": np.zeros(3, int)}, "logits must be floating point, got int32"),
        (gaussian_focal_loss, {"labels": np.zeros(2)}, r"labels has shape \(2,\)"),
        (asymmetric_focal_loss, {"margin": 1.0}, "margin must be at least 0 and less than 1, got 1.0"),
        (asymmetric_focal_loss, {"gamma_negative": -1.0}, "gamma_negative must be at least 0"),
        (poly1_focal_loss, {"gamma": -2.0}, "gamma must be at least 0.*, got -2.0"),
    ],
)
def test_misuse_is_explained(loss, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(**{"logits": np.zeros(3), "labels": np.zeros(3), **arguments})
