import jax
import numpy as np
import pytest


def fill(variables, *, seed=0, biases=0.1):
    """Random numbers for the shapes that `jax.eval_shape` gives; quicker than compiling an initialisation.

    Kernels keep the variance of a ReLU network; scales and variances are around 1; biases and means are around 0, with
    the standard deviation `biases`.
    """
    random = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name == "kernel":
            value = random.normal(size=shape.shape) * np.sqrt(2 / np.prod(shape.shape[:-1]))
        elif name in ("scale", "var"):
            value = random.uniform(0.8, 1.2, size=shape.shape)
        else:
            value = random.normal(size=shape.shape, scale=biases)
        return value.astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, variables)


def fill_evenly(variables):
    """Small positive weights that are all equal, and no biases: a bright spot spreads evenly and nothing cancels."""
    values = {"kernel": 0.01, "scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}
    return jax.tree_util.tree_map_with_path(lambda path, x: np.full(x.shape, values[path[-1].key], x.dtype), variables)


@pytest.fixture(scope="session", name="fill")
def fill_fixture():
    return fill


@pytest.fixture(scope="session", name="fill_evenly")
def fill_evenly_fixture():
    return fill_evenly
