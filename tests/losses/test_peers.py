"""The focal loss equals that of other libraries, where those are right: at moderate logits."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from focaljax.losses import (
    BACKGROUND,
    sigmoid_cross_entropy,
    sigmoid_focal_loss,
    sigmoid_focal_loss_with_integer_labels,
)

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "loss_peers.npz"))
PEERS = tuple(json.loads(str(GOLDEN["versions"])))
# Some take 1 - p of a rounded p: at a logit of 5 that is 1/150, off by up to 6e-8 x 150 = 9e-6, and raise it to gamma,
# which is 5 at most; keras cuts p at 1e-7 from 0 and 1.
RELATIVE = 5e-5


def value_and_slope(logits, labels, alpha, gamma, loss=sigmoid_focal_loss):
    value, pull = jax.vjp(lambda x: loss(x, labels, alpha=alpha, gamma=gamma), logits)
    return jnp.stack([value, pull(jnp.ones_like(value))[0]])


def test_all_peers_are_there():
    assert set(PEERS) == {"optax", "torchvision", "fvcore", "kornia", "keras", "scenic"}


@pytest.mark.parametrize("peer", PEERS)
def test_value_and_gradient_equal_the_peer_s(peer):
    logits, gammas, alphas = (GOLDEN[name] for name in ("logits", "gammas", "alphas"))
    theirs = GOLDEN[peer]  # [value and slope, gamma, alpha, label, logit]
    # kornia's and scenic's losses of soft labels are others.
    labels = GOLDEN["labels"][: theirs.shape[3]]
    assert len(labels) == (2 if peer in ("kornia", "scenic") else 3)
    compiled = jax.jit(value_and_slope)
    for i, gamma in enumerate(gammas):
        for j, alpha in enumerate(alphas):
            for k, label in enumerate(labels):
                ours = compiled(logits, np.full_like(logits, label), None if np.isnan(alpha) else alpha, gamma)
                expected = theirs[:, i, j, k]
                message = f"gamma {gamma}, alpha {alpha}, label {label}"
                np.testing.assert_allclose(ours, expected, rtol=RELATIVE, err_msg=message)


@pytest.mark.parametrize("alpha", [0.25, 0.9])
def test_class_ids_equal_the_sum_over_torchvision_s_one_hot(alpha):
    logits, gamma = GOLDEN["logits"], 2.0
    i, j = (int(np.flatnonzero(GOLDEN[name] == np.float32(v))[0]) for name, v in (("gammas", gamma), ("alphas", alpha)))
    negative, positive = GOLDEN["torchvision"][0, i, j, :2]
    for anchor, label in ((negative.sum(), BACKGROUND), (negative.sum() - negative[4] + positive[4], 4)):
        ours = sigmoid_focal_loss_with_integer_labels(logits, label, alpha=alpha, gamma=gamma)
        np.testing.assert_allclose(ours, anchor, rtol=RELATIVE)


# optax is here to be called, at other points


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_equals_optax_where_optax_is_accurate(alpha):
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 3), scale=3).astype(np.float32)
    labels = (random.random((64, 3)) < 0.3).astype(np.float32)
    labels[:8] = 0.3
    ours, theirs = (
        jax.jit(jax.vjp, static_argnums=0)(functools.partial(loss, labels=labels, alpha=alpha, gamma=2.0), logits)
        for loss in (sigmoid_focal_loss, optax.sigmoid_focal_loss)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=4e-6)
    np.testing.assert_allclose(ours[1](np.ones((64, 3)))[0], theirs[1](np.ones((64, 3)))[0], rtol=1e-5, atol=1e-8)


def test_gamma_zero_equals_optax_cross_entropy():
    logits = np.linspace(-100, 100, 64, dtype=np.float32)
    labels = np.tile(np.float32([0, 1, 0.3, 0.7]), 16)
    expected = optax.sigmoid_binary_cross_entropy(logits, labels)
    np.testing.assert_allclose(sigmoid_cross_entropy(logits, labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(sigmoid_cross_entropy(logits, labels), sigmoid_focal_loss(logits, labels, gamma=0))
