"""Classification losses on logits: focal loss and its relatives, one value per element.

All are computed in float32 (float64 if the logits are) from log-space formulas: `log(p_t)` and `log(1 - p_t)` come from
`log_sigmoid`, never from a probability, so that values and gradients are finite for logits up to 1e30 in size.
"""

import jax
import jax.numpy as jnp
import numpy as np

# States of an anchor that has no class. They are labels, so that one integer array says everything about an anchor.
BACKGROUND = -1
IGNORED = -2

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def sigmoid_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Returns the binary cross entropy of each element, `-labels log(p) - (1 - labels) log(1 - p)`.

    With p = sigmoid(logits). It is the focal loss with gamma = 0 and without alpha.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `sigmoid_focal_loss`.

    Example:
        >>> print(f"{sigmoid_cross_entropy(0.0, 1.0):.6f}")
        0.693147
    """
    return sigmoid_focal_loss(logits, labels, alpha=None, gamma=0.0)


def balanced_cross_entropy(logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike) -> Array:
    """Returns the alpha-balanced binary cross entropy of each element, `-alpha_t log(p_t)`.

    It is the focal loss with gamma = 0. Source: Lin et al. 2017 (arXiv 1708.02002), section 3.1, equation 3.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`.
        alpha: weight of label 1, in [0, 1]; label 0 has the weight 1 - alpha. A number, or one per class `[K]`.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError, ValueError: as `sigmoid_focal_loss`.

    Example:
        >>> print(f"{balanced_cross_entropy(0.0, 1.0, alpha=0.25):.6f}")
        0.173287
    """
    return sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=0.0)


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the focal loss of each element, `-alpha_t (1 - p_t)^gamma log(p_t)`.

    With p = sigmoid(logits), p_t = p for label 1 and 1 - p for label 0, alpha_t likewise. For a soft label y the
    factors are `1 - p_t = y (1 - p) + (1 - y) p`, `alpha_t = y alpha + (1 - y) (1 - alpha)`, and `log(p_t)` becomes
    the cross entropy with y, as in optax's function of this name.

    Args:
        logits: floating, any shape.
        labels: in [0, 1], hard or soft, of a shape that broadcasts to that of `logits`.
        alpha: weight of label 1, in [0, 1]; label 0 has the weight 1 - alpha. None: no weights. A number, or one per
            class `[K]` (the last axis of `logits`).
        gamma: focusing parameter, at least 0; 0 gives the cross entropy.

    Returns:
        One value per element, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point.
        ValueError: gamma or alpha is a number out of its range, `labels` would enlarge `logits` when broadcast, or has
            the shape of `logits` without its last axis, which is that of class ids.

    Source: Lin et al. 2017 (arXiv 1708.02002), section 3.2, equation 5.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = sigmoid_focal_loss(jnp.log(jnp.array([9.0, 99.0])), jnp.ones(2))  # p = 0.9 and 0.99
        >>> print(", ".join(f"{value:.6g}" for value in loss))
        0.00105361, 1.00503e-06
    """
    logits = _as_loss_dtype(logits)
    labels = jnp.asarray(labels, logits.dtype)
    _check_gamma(gamma)
    _check_alpha(alpha)
    if labels.ndim and labels.shape == logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {labels.shape}, logits {logits.shape}: for class ids call "
            "sigmoid_focal_loss_with_integer_labels"
        )
    # A label column against a row of logits would make a matrix of losses, and a plausible sum.
    if not _broadcasts_to(labels.shape, logits.shape):
        raise ValueError(f"labels has shape {labels.shape}, which must broadcast to that of logits, {logits.shape}")
    cross_entropy = labels * jax.nn.softplus(-logits) + (1.0 - labels) * jax.nn.softplus(logits)
    loss = jnp.exp(gamma * _log_one_minus_p_t(logits, labels)) * cross_entropy
    if alpha is None:
        return loss
    alpha = jnp.asarray(alpha, logits.dtype)
    return (labels * alpha + (1.0 - labels) * (1.0 - alpha)) * loss


def sigmoid_focal_loss_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = 0.25, gamma: ArrayLike = 2.0
) -> Array:
    """Returns the focal loss of each anchor, summed over its K independent sigmoid outputs.

    Args:
        logits: floating `[..., K]`, background has no output of its own.
        labels: integer `[...]`: a class in 0..K-1, `BACKGROUND` (every output should be 0) or `IGNORED` (loss 0, no
            gradient).
        alpha: weight of the labelled class, in [0, 1]; the other outputs have 1 - alpha. None, a number, or one per
            class `[K]`.
        gamma: focusing parameter, at least 0.

    Returns:
        `[...]`, one value per anchor, float32 (float64 for float64 logits), at least 0.

    Raises:
        TypeError: the logits are not floating point, or the labels not integers.
        ValueError: gamma or alpha is a number out of its range, or `labels` is not one class id an anchor.

    Source: Lin et al. 2017 (arXiv 1708.02002), sections 3.2 and 4.1.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.zeros((3, 2))
        >>> print(sigmoid_focal_loss_with_integer_labels(logits, jnp.array([0, BACKGROUND, IGNORED])).round(4))
        [0.1733 0.2599 0.    ]
    """
    logits = _as_loss_dtype(logits)
    labels = jnp.asarray(labels)
    _check_gamma(gamma)
    _check_alpha(alpha)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class ids, BACKGROUND or IGNORED), got {labels.dtype}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {labels.shape}, logits {logits.shape}: labels must be one class id an anchor, "
            f"shape {logits.shape[:-1]}"
        )
    # Replaced before the loss as well as after it: 0 times the infinite gradient of an infinite logit is NaN.
    logits = jnp.where((labels == IGNORED)[..., None], 0.0, logits)
    is_class = labels[..., None] == jnp.arange(logits.shape[-1])
    # x_t = y x for y in {+1, -1}: the logit of the right answer. Everything depends on it alone.
    logits_t = jnp.where(is_class, logits, -logits)
    loss = jnp.exp(gamma * jax.nn.log_sigmoid(-logits_t)) * jax.nn.softplus(-logits_t)
    if alpha is not None:
        alpha = jnp.asarray(alpha, logits.dtype)
        loss = jnp.where(is_class, alpha, 1.0 - alpha) * loss
    return jnp.where(labels == IGNORED, 0.0, loss.sum(axis=-1))


def _log_one_minus_p_t(logits: Array, labels: Array) -> Array:
    """Returns `log(labels (1 - p) + (1 - labels) p)` without the underflow of p or 1 - p at hard labels."""
    is_hard = (labels == 0.0) | (labels == 1.0)
    hard = jax.nn.log_sigmoid(jnp.where(labels == 1.0, -logits, logits))
    soft_labels = jnp.where(is_hard, 0.5, labels)
    soft = jnp.log(soft_labels * jax.nn.sigmoid(-logits) + (1.0 - soft_labels) * jax.nn.sigmoid(logits))
    return jnp.where(is_hard, hard, soft)


def _as_loss_dtype(logits: ArrayLike) -> Array:
    """Returns the logits in float32, or in float64 if that is what they are."""
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floating point, got {logits.dtype}: pass raw scores, not class ids")
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _check_gamma(gamma: ArrayLike) -> None:
    if isinstance(gamma, int | float | np.number) and not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")


def _check_alpha(alpha: ArrayLike | None) -> None:
    if isinstance(alpha, int | float | np.number) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}; None for no weights")
