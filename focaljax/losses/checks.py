"""Checks of arguments at public entry: they cost only at trace time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ArrayLike = jax.typing.ArrayLike


def as_loss_dtype(logits: ArrayLike, name: str = "logits") -> Array:
    """Returns the logits in float32, or in float64 if that is what they are.

    Raises:
        TypeError: they are not floating point.
    """
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {logits.dtype}: pass raw scores, not class ids")
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def as_labels(labels: ArrayLike, logits: Array, *, for_class_ids: str | None = None) -> Array:
    """Returns labels in [0, 1] in the dtype of the logits, not broadcast.

    Args:
        labels: of a shape that broadcasts to that of `logits`.
        logits: as `as_loss_dtype` returns them.
        for_class_ids: the function to name to a caller whose labels have the shape of class ids.

    Raises:
        ValueError: the shape is that of class ids or would enlarge the logits, or a value known now is outside [0, 1].
    """
    raw, labels = labels, jnp.asarray(labels, logits.dtype)
    if labels.ndim and labels.shape == logits.shape[:-1]:
        advice = f"for class ids call {for_class_ids}" if for_class_ids else "give labels[..., None] for one per row"
        raise ValueError(f"labels has shape {labels.shape}, logits {logits.shape}: {advice}")
    # A label column against a row of logits would make a matrix of losses, and a plausible sum.
    if not broadcasts_to(labels.shape, logits.shape):
        raise ValueError(f"labels has shape {labels.shape}, which must broadcast to that of logits, {logits.shape}")
    known = known_values(raw)
    if known is not None and not ((known >= 0) & (known <= 1)).all():
        worst = known[~((known >= 0) & (known <= 1))].flat[0]
        advice = f"; for class ids call {for_class_ids}" if for_class_ids else ""
        raise ValueError(f"labels must be in [0, 1], got {worst}{advice}")
    return labels


def as_class_ids(labels: ArrayLike, logits: Array, *, special: dict[str, int]) -> Array:
    """Returns the labels as an integer array, one class id for each row of K logits.

    Args:
        labels: integers of the shape of `logits` without its last axis.
        logits: `[..., K]`.
        special: labels allowed beside 0..K-1, by name.

    Raises:
        TypeError: the labels are not integers.
        ValueError: the shape does not fit, or an id known now is out of range.
    """
    raw, labels = labels, jnp.asarray(labels)
    names = ", ".join(special)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers (class ids, {names}), got {labels.dtype}")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {labels.shape}, logits {logits.shape}: labels must be one class id an anchor, "
            f"shape {logits.shape[:-1]}"
        )
    known, num_classes = known_values(raw), logits.shape[-1]
    if known is not None:
        is_valid = ((known >= 0) & (known < num_classes)) | np.isin(known, list(special.values()))
        if not is_valid.all():
            listed = ", ".join(f"{name} ({value})" for name, value in special.items())
            raise ValueError(
                f"labels has {known[~is_valid].flat[0]}, logits are of {num_classes} classes: "
                f"expected 0..{num_classes - 1}, or {listed}"
            )
    return labels


def check_at_least_0(name: str, value: ArrayLike) -> None:
    """Raises ValueError if a hyperparameter is negative or not finite, where its value is known."""
    known = known_values(value)
    if known is not None and not ((known >= 0) & (known < np.inf)).all():
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_fraction(name: str, value: ArrayLike) -> None:
    """Raises ValueError if a hyperparameter is not in [0, 1), where its value is known."""
    known = known_values(value)
    if known is not None and not ((known >= 0) & (known < 1)).all():
        raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")


def check_alpha(alpha: ArrayLike | None, num_classes: int | None, *, at_most: float = 1.0) -> None:
    """Raises ValueError if alpha is neither None nor a number nor one per class, or is out of [0, at_most].

    Args:
        alpha: None, a number, or `[K]`.
        num_classes: K; None where the logits have no axis.
        at_most: largest value; infinity for weights of any size.
    """
    if alpha is None:
        return
    shape = jnp.shape(alpha)
    if shape not in ((), (num_classes,)):
        one_per_class = f" or one per class, ({num_classes},), the last axis of logits" if num_classes else ""
        raise ValueError(f"alpha has shape {shape}, expected a number{one_per_class}")
    known = known_values(alpha)
    if known is not None and not ((known >= 0).all() and (known <= at_most).all()):
        upper = f"in [0, {at_most:g}]" if at_most < np.inf else "at least 0"
        raise ValueError(f"alpha must be {upper}, got {alpha}; None for no weights")


def check_is_bool(name: str, mask: Array) -> None:
    """Raises TypeError if a mask is not bool."""
    # ~ of the integers 0 and 1 is -1 and -2, both of them true.
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name} must be bool, got {mask.dtype}: pass a comparison such as labels >= 0")


def known_values(values: Any) -> np.ndarray | None:
    """Returns the values as numpy, or None where they are traced and known only at run time."""
    if isinstance(values, jax.core.Tracer):
        return None
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return None
    return np.asarray(values)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Returns whether an array of the shape broadcasts to the target without enlarging it."""
    try:
        return jnp.broadcast_shapes(shape, target) == target
    except ValueError:
        return False
