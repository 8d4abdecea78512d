"""State dicts of other projects, filled with random numbers, from their lists of names and shapes in tests/golden."""

import pathlib
import re

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def torchvision(name, seed=0):
    """The state_dict of a network of torchvision, in its order."""
    random = np.random.default_rng(seed)
    state_dict = {}
    for line in (GOLDEN / f"names_{name}.txt").read_text().splitlines()[1:]:
        key, size, dtype = line.split()
        shape = () if size == "-" else tuple(map(int, size.split("x")))
        if dtype == "int64":
            state_dict[key] = np.asarray(random.integers(1, 10**9), np.int64)
        else:
            state_dict[key] = random.random(shape, np.float32) - np.float32(0.5)
    return state_dict


def with_old_names(state_dict):
    """The names of torchvision before 0.13, which lack a number for the convolution beside its normalisation."""

    def old(name):
        name = re.sub(r"_blocks\.(\d)\.0\.", r"_blocks.\1.", name)
        # One number for each convolution and each ReLU.
        return re.sub(r"_head\.conv\.(\d)\.0\.", lambda m: f"_head.conv.{2 * int(m[1])}.", name)

    return {old(name): array for name, array in state_dict.items()}


def detectron2(state_dict):
    """The state_dict of torchvision's RetinaNet under the names of detectron2, as its modules give them."""
    subnets = {"classification_head": ("cls_subnet", "cls_score"), "regression_head": ("bbox_subnet", "bbox_pred")}

    def rename(name):
        if name.startswith("backbone.body."):
            name = name.removeprefix("backbone.body.")
            if not name.startswith("layer"):
                return "backbone.bottom_up.stem." + name.replace("bn1.", "conv1.norm.")
            stage, block, *rest = name.removeprefix("layer").split(".")
            layer = ".".join(rest)
            layer = re.sub(r"^bn(\d)\.", r"conv\1.norm.", layer)
            layer = layer.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
            return f"backbone.bottom_up.res{int(stage) + 1}.{block}.{layer}"
        if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0\.(\w+)", name):
            kind = {"inner": "lateral", "layer": "output"}[match[1]]
            return f"backbone.fpn_{kind}{int(match[2]) + 3}.{match[3]}"
        if name.startswith("backbone.fpn.extra_blocks."):
            return name.replace("fpn.extra_blocks", "top_block")
        _, head, *rest = name.split(".")
        subnet, output = subnets[head]
        if rest[0] == "conv":
            return f"head.{subnet}.{2 * int(rest[1])}.{rest[3]}"
        return f"head.{output}.{rest[1]}"

    return {rename(name): array for name, array in state_dict.items()}


def same(one, other):
    """Whether two state_dicts have the same names, dtypes, shapes and bytes."""
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        for a, b in ((one[name], other[name]) for name in one)
    )
