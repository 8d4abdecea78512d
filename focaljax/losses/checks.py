"""Checks of arguments at public entry: they cost only at trace time."""

import operator
from collections.abc import Callable
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
    """Returns the labels as integers of at least 32 bits, one class id for each row of K logits.

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
    # In fewer bits, and in unsigned ones, a class would meet itself again as another, or as a special label.
    return labels.astype(jnp.promote_types(labels.dtype, jnp.int32))


def check_is_finite(name: str, value: ArrayLike) -> None:
    """Raises TypeError or ValueError if a hyperparameter is not one finite number, as far as it is known."""
    _check_number(name, value, lambda known: np.isfinite(known), "finite")


def check_above_0(name: str, value: ArrayLike) -> None:
    """Raises TypeError or ValueError if a hyperparameter is not one finite number above 0, as far as it is known."""
    _check_number(name, value, lambda known: (known > 0) & (known < np.inf), "greater than 0 and finite")


def check_at_least_0(name: str, value: ArrayLike) -> None:
    """Raises TypeError or ValueError if a hyperparameter is not one finite number from 0, as far as it is known."""
    _check_number(name, value, lambda known: (known >= 0) & (known < np.inf), "at least 0 and finite")


def check_fraction(name: str, value: ArrayLike) -> None:
    """Raises TypeError or ValueError if a hyperparameter is not one number in [0, 1), as far as it is known."""
    _check_number(name, value, lambda known: (known >= 0) & (known < 1), "at least 0 and less than 1")


def _check_number(name: str, value: ArrayLike, is_right: Callable[[np.ndarray], Any], expected: str) -> None:
    known = known_values(value)
    if known is not None and not jnp.issubdtype(known.dtype, jnp.number):
        raise TypeError(f"{name} must be a number {expected}, got {value!r}")
    # It would enlarge the loss, and give a plausible sum.
    if jnp.ndim(value):
        raise ValueError(f"{name} has shape {jnp.shape(value)}, expected a number: for several values vmap over them")
    if known is not None and not is_right(known):
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_whole(name: str, value: int, *, at_least: int = 0) -> int:
    """Returns an argument that shapes depend on, as an int.

    Raises:
        TypeError: it is no whole number, or traced.
        ValueError: it is less than `at_least`.
    """
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, known when tracing, got {value!r}") from None
    if whole < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {whole}")
    return whole


def check_alpha(alpha: ArrayLike | None, num_classes: int | None, *, at_most: float = 1.0, of: str = "logits") -> None:
    """Raises TypeError or ValueError if alpha is neither None nor a number nor one per class, or is out of range.

    Args:
        alpha: None, a number, or `[K]`.
        num_classes: K; None where the predictions have no axis.
        at_most: largest value of the range, which begins at 0; infinity for weights of any size.
        of: the argument whose last axis is the classes.
    """
    if alpha is None:
        return
    shape = jnp.shape(alpha)
    if shape not in ((), (num_classes,)):
        one_per_class = f" or one per class, ({num_classes},), the last axis of {of}" if num_classes else ""
        raise ValueError(f"alpha has shape {shape}, expected a number{one_per_class}")
    known = known_values(alpha)
    if known is not None and not jnp.issubdtype(known.dtype, jnp.number):
        raise TypeError(f"alpha must be a number, one per class, or None for no weights, got {alpha!r}")
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
