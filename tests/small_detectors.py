"""Files of weights of small detectors that find something in any image, with torchvision's names, from a seed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.models.pretrained import to_torchvision
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variants import VARIANTS, Preprocessing
from tests.golden import fill

LEVELS = (3, 4)

# Images of a few dozen pixels: each forward pass takes milliseconds.
SMALL = Preprocessing(min_size=64, max_size=96)


def model(**attributes):
    """torchvision v1 in small; attributes over it."""
    small = {"backbone": "resnet18", "fpn_channels": 16, "head_channels": 16, "p6_from": "p5", "num_classes": 91}
    return RetinaNet(**{**small, **attributes})


def tiny(**attributes):
    """Smaller yet, of no published kind: compiled in a second or two."""
    return model(**{"backbone": "resnet_tiny", "levels": LEVELS, "head_depth": 1, "num_classes": 7, **attributes})


def tiny_variant(name):
    """The published variant of that name, for `tiny` and small images."""
    variant = VARIANTS[name]
    return dataclasses.replace(
        variant,
        model={**variant.model, "levels": LEVELS},
        anchors={**variant.anchors, "sizes": (16.0, 32.0)},
        preprocessing=dataclasses.replace(variant.preprocessing, min_size=64, max_size=96),
        thresholds={**variant.thresholds, "pre_nms_top_k": 200, "max_detections": 50},
    )


@functools.cache
def state_dict(**attributes):
    """Weights of `model`: the names of torchvision, and values by name."""
    names = to_torchvision(jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(model(**attributes))))
    return fill.fill_state_dict({name: array.shape for name, array in names.items()})


@functools.cache
def tiny_variables(**attributes):
    """Variables of `tiny`: scores from near 0 to near 1, boxes near their anchors."""

    def value(path, leaf):
        name = jax.tree_util.keystr(path)
        noise = np.random.default_rng(list(name.encode())).standard_normal(leaf.shape).astype(np.float32)
        if "kernel" in name:
            gain = 0.02 if "box_head" in name else 1.0
            return noise * np.float32(np.sqrt(gain / np.prod(leaf.shape[:-1])))
        if "scale" in name or "var" in name:
            return 1 + np.float32(0.2) * np.abs(noise)
        return np.float32(0.1) * noise - np.float32(2 if "class_head" in name and "output" in name else 0)

    return jax.tree_util.tree_map_with_path(value, shapes(tiny(**attributes)))


def shapes(module):
    """The shapes of a module's variables."""
    init = functools.partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def images(*sizes):
    """Images of these (height, width), each another one."""
    return [fill.image(size, f"detector {index}") for index, size in enumerate(sizes)]
