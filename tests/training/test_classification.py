"""Classification losses by name against the library's own, and the anchors that mining leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax import losses
from focaljax.detection import softmax_log_odds
from focaljax.losses import BACKGROUND, IGNORED
from focaljax.training.classification import (
    CLASSIFICATION_LOSSES,
    ghm_counts_after,
    is_softmax,
    make_classification_loss,
    make_mining,
)

# One image of four anchors and three classes.
LOGITS = jnp.array([[[1.0, -2.0, 0.5], [-3.0, 0.2, -1.0], [0.3, 0.1, -4.0], [2.0, 2.0, 2.0]]])
LABELS = jnp.array([[0, 1, BACKGROUND, IGNORED]])
QUALITY = jnp.array([[0.7, 0.4, 0.9, 0.9]])
HARD = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
SOFT = jnp.array([[0.7, 0.0, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]])
# The first three, with background as a fourth class.
WITH_BACKGROUND = jnp.pad(LOGITS[0, :3], ((0, 0), (0, 1)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("focal", losses.sigmoid_focal_loss(LOGITS[0, :3], HARD, alpha=0.3, gamma=1.5).sum(-1)),
        ("balanced_cross_entropy", losses.balanced_cross_entropy(LOGITS[0, :3], HARD, alpha=0.3).sum(-1)),
        ("cross_entropy", losses.sigmoid_cross_entropy(LOGITS[0, :3], HARD).sum(-1)),
        ("focal_star", losses.focal_loss_star(LOGITS[0, :3], HARD, gamma=1.5, beta=0.5, alpha=0.3).sum(-1)),
        (
            "poly1_focal",
            ((0.7 - 0.4 * HARD) * losses.poly1_focal_loss(LOGITS[0, :3], HARD, epsilon=-0.5, gamma=1.5)).sum(-1),
        ),
        ("quality_focal", losses.quality_focal_loss(LOGITS[0, :3], SOFT, beta=1.5).sum(-1)),
        ("varifocal", losses.varifocal_loss(LOGITS[0, :3], SOFT, alpha=0.3, gamma=1.5).sum(-1)),
        ("ghm", losses.ghm_classification_loss(LOGITS[0, :3], HARD, bins=4).sum(-1)),
        (
            "softmax_focal",
            losses.softmax_focal_loss(
                WITH_BACKGROUND,
                jax.nn.one_hot(jnp.array([0, 1, 3]), 4),
                alpha=jnp.array([0.3, 0.3, 0.3, 0.7]),
                gamma=1.5,
            ),
        ),
        (
            "softmax_cross_entropy",
            losses.softmax_cross_entropy(WITH_BACKGROUND, jax.nn.one_hot(jnp.array([0, 1, 3]), 4)),
        ),
    ],
)
def test_loss_by_name_is_the_librarys(name, expected):
    loss = make_classification_loss(name, alpha=0.3, gamma=1.5, star_beta=0.5, poly_epsilon=-0.5, ghm_bins=4)
    for function in (loss, jax.jit(loss)):
        found = function(LOGITS, LABELS, QUALITY)
        np.testing.assert_allclose(found[0, :3], expected, rtol=1e-5)
        assert found[0, 3] == 0.0


def test_ghm_weighs_by_the_moving_average_of_its_counts():
    loss = make_classification_loss("ghm", ghm_bins=4)
    of_batch = losses.ghm_counts(LOGITS[0, :3], HARD, bins=4)
    before = jnp.array([8.0, 0.0, 4.0, 0.0])
    after = jax.jit(ghm_counts_after, static_argnames="momentum")(before, LOGITS, LABELS, momentum=0.75)
    np.testing.assert_allclose(after, 0.75 * before + 0.25 * of_batch, rtol=1e-6)
    expected = losses.ghm_classification_loss(LOGITS[0, :3], HARD, bins=4, counts=after).sum(-1)
    np.testing.assert_allclose(loss(LOGITS, LABELS, QUALITY, counts=after)[0, :3], expected, rtol=1e-6)
    # Without a past the average is the batch, and the weights do not care for its size.
    alone = ghm_counts_after(jnp.zeros(4), LOGITS, LABELS, momentum=0.75)
    np.testing.assert_allclose(alone, 0.25 * of_batch, rtol=1e-6)
    np.testing.assert_array_equal(ghm_counts_after(before, LOGITS, LABELS, momentum=0.0), of_batch)
    with pytest.raises(ValueError, match=r"ghm_momentum must be in \[0, 1\), got 1.0"):
        ghm_counts_after(before, LOGITS, LABELS, momentum=1.0)


def test_no_loss_rewards_what_is_wrong():
    """What is more wrong costs more, with the alphas and epsilons that papers use: the loss is at least 0 and grows."""
    wrong = jnp.linspace(-6.0, 6.0, 25)
    for name in CLASSIFICATION_LOSSES:
        if name == "ghm":  # its weights depend on all anchors
            continue
        for epsilon in (-1.0, 1.0):
            loss = make_classification_loss(name, alpha=0.25, poly_epsilon=epsilon)
            for label, logits in ((0, -wrong), (BACKGROUND, wrong)):
                costs = loss(logits[None, :, None], jnp.full((1, 25), label), jnp.ones((1, 25)))[0]
                assert (costs >= -1e-6).all(), name
                assert (jnp.diff(costs) > -1e-6).all(), name


@pytest.mark.parametrize("name", CLASSIFICATION_LOSSES)
def test_gradient_is_finite_and_that_of_an_ignored_anchor_zero_though_its_logits_are_infinite(name):
    logits = LOGITS.at[0, 3].set(jnp.array([jnp.inf, -jnp.inf, 0.0]))
    loss = make_classification_loss(name)
    gradient = jax.jit(jax.grad(lambda x: loss(x, LABELS, QUALITY).sum()))(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 3], 0.0)
    assert (np.abs(gradient[0, :3]).sum(-1) > 0).all()


@pytest.mark.parametrize("alpha", [-0.5, 1.5])
def test_alpha_out_of_range_is_an_error_of_the_compiled_loss_too(alpha):
    for name in ("focal", "softmax_focal"):
        loss = jax.jit(make_classification_loss(name, alpha=alpha))
        with pytest.raises(ValueError, match="alpha"):
            loss(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2)))


def test_unknown_names_are_errors_that_list_the_known_ones():
    with pytest.raises(ValueError, match="focal, balanced_cross_entropy, cross_entropy"):
        make_classification_loss("hinge")
    with pytest.raises(ValueError, match="'' or one of hard_negatives, ohem, got 'topk'"):
        make_mining("topk")


def test_scores_of_a_softmax_are_those_of_sigmoids_of_its_log_odds():
    expected = jax.nn.softmax(WITH_BACKGROUND)[:, :3]
    np.testing.assert_allclose(jax.nn.sigmoid(softmax_log_odds(LOGITS[0, :3])), expected, rtol=1e-6)
    extreme = softmax_log_odds(jnp.array([[300.0, -300.0, 0.0], [-300.0, -300.0, -300.0]]))
    assert np.isfinite(extreme).all()
    np.testing.assert_allclose(jax.nn.sigmoid(extreme), [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], atol=1e-6)
    assert is_softmax("softmax_focal")
    assert not is_softmax("focal")


ANCHORS = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0], [9.0, 9.0, 12.0, 12.0], [20.0, 0.0, 24.0, 4.0]])
LOSS = jnp.array([0.8, 0.9, 0.3, 5.0])
IS_POSITIVE, IS_IGNORED = jnp.arange(4) == 0, jnp.arange(4) == 3


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"name": "hard_negatives", "negatives_per_positive": 1}, [1, 1, 0, 0]),
        ({"name": "hard_negatives", "negatives_per_positive": 3}, [1, 1, 1, 0]),
        # The second anchor overlaps the first by 0.8 and is harder.
        ({"name": "ohem", "negatives_per_positive": 0, "size": 4}, [0, 1, 1, 0]),
        ({"name": "ohem", "negatives_per_positive": 0, "size": 4, "iou_threshold": 0.9}, [1, 1, 1, 0]),
        ({"name": "ohem", "negatives_per_positive": 1, "size": 4, "iou_threshold": 0.9}, [1, 1, 0, 0]),
    ],
)
def test_mining_keeps_the_hardest(arguments, kept):
    mine = make_mining(**arguments)
    np.testing.assert_array_equal(mine(LOSS, ANCHORS, IS_POSITIVE, IS_IGNORED), kept)


def test_no_mining_is_none():
    assert make_mining("") is None


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_poly1_with_a_weight_of_zero_has_no_nan_at_infinite_logits(alpha):
    loss = make_classification_loss("poly1_focal", alpha=alpha, gamma=2.0)
    logits = jnp.array([[[jnp.inf, -jnp.inf, jnp.inf], [-jnp.inf, jnp.inf, 0.0], [1.0, 0.0, -jnp.inf]]])
    value, slope = jax.value_and_grad(lambda x: loss(x, LABELS[:, :3], QUALITY[:, :3])[0, 2].sum())(logits)
    assert not np.isnan(value)
    assert not np.isnan(slope).any()
    assert not np.isnan(loss(logits, LABELS[:, :3], QUALITY[:, :3])).any()
