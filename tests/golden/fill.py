"""Weights, images and objects from a seed, by name: made alike by the script that runs torchvision and by the tests.

Needs numpy alone. numpy promises that the bits of a `PCG64` never change; only uniform numbers are drawn, which are
these bits scaled.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

# Pixels of ImageNet, for channels in 0..1.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)

SAMPLES = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """One detector and its batch.

    Attributes:
        head: 'v1' or 'v2', which of torchvision's two RetinaNets: heads, source of P6 and box loss.
        backbone: 'resnet18' or 'resnet50'.
        is_frozen: the backbone's batch normalisation consists of constants.
        epsilon: of that normalisation.
        num_classes: K.
        min_size, max_size, multiple: of the image transform.
        image_sizes: (height, width) of each image as it comes.
    """

    head: str
    backbone: str
    is_frozen: bool
    epsilon: float
    num_classes: int
    min_size: int
    max_size: int
    multiple: int
    image_sizes: tuple[tuple[int, int], ...]


# The first two are the published detectors, the others exchange their kinds of normalisation. Live ones see a batch
# with odd sides. The first image of the frozen ones is resized by exactly 2.
CASES = {
    "v1": Case("v1", "resnet50", True, 0.0, 91, 96, 160, 32, ((48, 66), (50, 40))),
    "v2": Case("v2", "resnet50", False, 1e-5, 5, 97, 131, 1, ((97, 131), (50, 40))),
    "v1_live": Case("v1", "resnet18", False, 1e-5, 5, 97, 131, 1, ((97, 131), (50, 40))),
    "v2_frozen": Case("v2", "resnet18", True, 1e-5, 7, 96, 160, 32, ((48, 66), (50, 40))),
}


def whole_gradients(case: Case) -> tuple[str, ...]:
    """The parameters whose gradients are stored whole: six of few values, from the stem to the heads."""
    is_deep = case.backbone == "resnet50"
    return (
        "backbone.body.conv1.weight",
        "backbone.body.layer1.0.conv1.weight" if is_deep else "backbone.body.layer2.0.downsample.0.weight",
        "backbone.fpn.inner_blocks.1.0.bias",
        "backbone.fpn.extra_blocks.p6.bias",
        "head.classification_head.cls_logits.bias",
        "head.regression_head.bbox_reg.bias",
    )


def generator(name: str) -> np.random.Generator:
    """A generator seeded by a hash of the name."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")))


def fill_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Values for every entry of a detector's state_dict, float32, such that activations are of order 1.

    Convolutions keep the variance of a ReLU network; the last normalisation of each block is small, as residuals add
    up; statistics and scales vary around 1, biases around 0; class scores start near 0.03.
    """
    return {name: _entry(name, tuple(shape), shapes) for name, shape in shapes.items()}


# Of the variance, by a part of the name; 2 keeps that of a ReLU network.
_GAINS = {"inner_blocks": 0.4, "layer_blocks": 0.8, "cls_logits": 1.0, "bbox_reg": 0.05}
# detectron2's pixels keep their deviation of some 60, which its first convolution takes away.
_GAINS |= {"fpn_lateral": 0.4, "fpn_output": 0.8, "cls_score": 1.0, "bbox_pred": 0.05, "stem.conv1.weight": 2 / 60**2}


def _entry(name: str, shape: tuple[int, ...], names: Mapping[str, Sequence[int]]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    # Of variance 1.
    noise = np.sqrt(np.float32(12)) * (generator(name).random(shape, dtype=np.float32) - np.float32(0.5))
    if len(shape) == 4:
        gain = next((gain for part, gain in _GAINS.items() if part in name), 2.0)
        return noise * np.float32(np.sqrt(gain / np.prod(shape[1:])))
    if name.endswith("running_var"):
        return 1 + np.float32(0.2) * noise
    if name.endswith(("bias", "running_mean")):
        return np.float32(0.1) * noise - np.float32(3.5 if "cls_logits" in name or "cls_score" in name else 0)
    layer = name.removesuffix(".weight")
    is_last = layer.endswith(("bn3", "conv3.norm")) or (layer.endswith("bn2") and layer[:-1] + "3.weight" not in names)
    return np.float32(0.25 if is_last else 1) * (1 + np.float32(0.1) * noise)


def image(size: tuple[int, int], name: str) -> np.ndarray:
    """An image, uint8 `[H, W, 3]`: patches of 8 px in random colours, with noise."""
    height, width = size
    random = generator(f"image {name} {height} {width}")
    patches = random.random((-(-height // 8), -(-width // 8), 3)).repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return (200 * patches + 55 * random.random((height, width, 3))).astype(np.uint8)


def boxes(size: tuple[int, int], count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in an image, float64 `[N, 4]` with corners at quarters of a pixel, and numbers in 0..1 for their labels.

    The sides are at least 40% of the image's: torchvision adds 1e-7 to the areas in the GIoU, which boxes of less than
    100 square pixels show in the ninth digit.
    """
    height, width = size
    random = generator(f"boxes {name} {height} {width}")
    sides = (0.4 + 0.4 * random.random((count, 2))) * [width, height]
    corner = random.random((count, 2)) * ([width, height] - sides)
    return np.round(4 * np.concatenate([corner, corner + sides], axis=1)) / 4, random.random(count)


def case_images(case: Case) -> list[np.ndarray]:
    """The images of a case."""
    return [image(size, str(index)) for index, size in enumerate(case.image_sizes)]


def case_objects(case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each image its boxes in pixels of the image as it comes, and labels in 1..K-1."""
    objects = []
    for index, size in enumerate(case.image_sizes):
        boxes_xyxy, numbers = boxes(size, 3 + index, str(index))
        objects.append((boxes_xyxy, 1 + (numbers * (case.num_classes - 1)).astype(np.int64)))
    return objects


# (height, width) of the images that detectron2's detector sees; padded to 128 x 160.
DETECTRON2_SIZES = ((96, 132), (120, 90))
# By so much logits are lowered to leave fewer than the largest number of detections.
DETECTRON2_FEW = 8.0
# More than there are candidates.
DETECTRON2_MANY = 5000


def detectron2_objects(index: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes `[N, 4]` of one of these images, the last of 18 px, and labels in 0..K-1."""
    boxes_xyxy, numbers = boxes(DETECTRON2_SIZES[index], 4 + index, f"detectron2 {index}")
    boxes_xyxy[-1] = 2, 2, 20, 20
    return boxes_xyxy, (numbers * num_classes).astype(np.int64)


def sample(array: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """About `count` values in steps of odd length, and the norm of the whole as the last value; float64."""
    flat = np.asarray(array, np.float64).reshape(-1)
    return np.append(flat[:: flat.size // count | 1], np.linalg.norm(flat))


def matching_scenes() -> dict[str, np.ndarray]:
    """Boxes by the name of what is delicate about them, `[N, 4]` in pixels of the image of `MATCHING_IMAGE`."""
    random = boxes(MATCHING_IMAGE, 12, "matching")[0]
    small = np.concatenate([random[:, :2], random[:, :2] + 6 + random[:, :2] % 7], axis=1)
    return {
        "large": random,
        "small": small,
        "mixed": np.concatenate([random[:4], small[:4], random[4:6]]),
        # Anchors are centred at multiples of 8, 16 and 32: these have several that fit equally well.
        "ties": np.array(
            [[36.0, 36, 44, 44], [44, 52, 52, 60], [60, 60, 100, 100], [60, 60, 100, 100], [28, 4, 36, 28]]
        ),
        "far": np.array([[40.0, 40, 80, 90], [5000, 5000, 5040, 5040], [44, 40, 84, 90]]),
        "far_alone": np.array([[5000.0, 5000, 5040, 5040]]),
    }


MATCHING_IMAGE = (128, 160)

# Padded sizes, (height, width), whose anchors are compared.
ANCHOR_IMAGES = ((800, 1344), (640, 640), (128, 160), (97, 131), (121, 131), (33, 65), (800, 801), (511, 7))


def deltas_and_anchors() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deltas (some beyond the limit of growth), anchors and boxes, `[64, 4]` each."""
    random = generator("box coder")
    deltas = 8 * random.random((64, 4)) - 4
    deltas[:8, 2:] += 4
    corner = 200 * random.random((2, 64, 2))
    anchors, targets = np.concatenate([corner, corner + 1 + 99 * random.random((2, 64, 2))], axis=-1)
    return deltas, anchors, targets


def resize_sizes() -> list[tuple[int, int]]:
    """Image sizes (height, width) for the rule of resizing."""
    random = generator("resize")
    sizes = 20 + 2000 * random.random((500, 2)) ** 2
    usual = [(480, 640), (427, 640), (640, 640), (600, 800), (800, 1333), (1333, 800), (333, 1000), (1, 1), (3, 3000)]
    return usual + [(int(height), int(width)) for height, width in sizes]
