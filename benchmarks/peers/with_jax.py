"""The contestants that run on JAX: focaljax, optax, Keras, and the floor."""

import os

import numpy as np
from batch import ALPHA, GAMMA, synthetic_batch
from on_jax import OnJax

PACKAGES = ("jax", "jaxlib", "focaljax", "optax", "keras")


class Library(OnJax):
    """Holds the batch on the device and builds contestants.

    Args:
        size: B, A, K.
        dtype: of the logits, and of labels that are passed as one-hot.
        device: "cpu" or "gpu".
        threads: unused; the processor affinity, set before JAX starts, gives its number of threads.
        seed: of the batch.
    """

    def __init__(self, *, size: tuple[int, int, int], dtype: str, device: str, threads: int, seed: int) -> None:
        os.environ["KERAS_BACKEND"] = "jax"
        super().__init__(device)
        import jax.numpy as jnp

        self._jnp, self._num_classes = jnp, size[-1]
        logits, labels = synthetic_batch(size, seed)
        self.logits, self.labels = jnp.asarray(logits, dtype), jnp.asarray(labels)
        self._one_hot = None

    def build(self, name: str) -> dict:
        """Returns what to call for each part, "value" and "gradient"; the latter returns both.

        Raises:
            ModuleNotFoundError: the contestant's package is not installed.
        """
        if name == "floor":
            return {"gradient": self.compile(lambda logits: logits + 1, self.logits)}
        package, labels = name.split("/")
        loss_sum = getattr(self, f"_{package}")(labels)

        def objective(logits, ids, labels):
            return loss_sum(logits, ids, labels) / self._jnp.maximum((ids >= 0).sum(), 1)

        # A normaliser of focaljax's own, where it is part of what is timed.
        function = loss_sum if name == "focaljax/ids" else objective
        one_hot = self._given_one_hot() if labels == "one-hot given" else None
        arguments = (self.logits, self.labels, one_hot)
        return {
            "value": self.compile(function, *arguments),
            "gradient": self.compile(self.jax.value_and_grad(function), *arguments),
        }

    def answer(self, parts: dict) -> dict:
        """Returns the numbers by which contestants are compared: the value, and two that depend on every derivative."""
        jnp = self._jnp

        # Summed by rows here and in float64 by numpy: one sum of many million float32 would lose digits.
        @self.jax.jit
        def rows(gradient, logits):
            gradient = gradient.astype(jnp.float32)
            return (gradient**2).sum(-1), (gradient * logits.astype(jnp.float32)).sum(-1)

        value, gradient = parts["gradient"]()
        squares, products = rows(gradient, self.logits)
        return {
            "value": float(parts["value"]()),
            "value beside the gradient": float(value),
            "gradient norm": float(np.sqrt(np.asarray(squares, np.float64).sum())),
            "gradient times logits": float(np.asarray(products, np.float64).sum()),
            "gradient dtype": str(gradient.dtype),
        }

    def _given_one_hot(self):
        if self._one_hot is None:
            self._one_hot = self._make_one_hot(self.labels, self.logits.dtype)
        return self._one_hot

    def _make_one_hot(self, ids, dtype):
        return self.jax.nn.one_hot(ids, self._num_classes, dtype=dtype)  # a negative id gives a row of zeros

    def _with_one_hot(self, labels: str, elementwise):
        """Returns the sum of an elementwise loss whose labels are one-hot, passed or made inside."""

        def loss_sum(logits, ids, one_hot):
            if labels == "one-hot inside":
                one_hot = self._make_one_hot(ids, logits.dtype)
            return elementwise(logits, one_hot).sum(dtype=self._jnp.float32)

        return loss_sum

    def _focaljax(self, labels: str):
        from focaljax import losses

        if labels != "ids":
            return self._with_one_hot(
                labels, lambda logits, given: losses.sigmoid_focal_loss(logits, given, alpha=ALPHA, gamma=GAMMA)
            )

        def mean(logits, ids, _):
            loss = losses.sigmoid_focal_loss_with_integer_labels(logits, ids, alpha=ALPHA, gamma=GAMMA)
            return losses.global_mean_over_positives(loss, ids >= 0)

        return mean

    def _optax(self, labels: str):
        import optax

        return self._with_one_hot(
            labels, lambda logits, given: optax.sigmoid_focal_loss(logits, given, alpha=ALPHA, gamma=GAMMA)
        )

    def _keras(self, labels: str):
        import keras

        def elementwise(logits, one_hot):
            mean_over_classes = keras.losses.binary_focal_crossentropy(
                one_hot, logits, apply_class_balancing=True, alpha=ALPHA, gamma=GAMMA, from_logits=True
            )
            return mean_over_classes * self._num_classes

        return self._with_one_hot(labels, elementwise)
