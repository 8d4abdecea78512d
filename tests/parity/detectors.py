"""focaljax's side of the comparison: the detectors of `tests.golden.fill`, filled, fed and run as torchvision was."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from focaljax.detection import assign_anchors, postprocess, pyramid_anchors
from focaljax.models.pretrained import from_torchvision, to_torchvision
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variants import VARIANTS
from focaljax.training.classification import make_classification_loss
from focaljax.training.objective import detection_loss, make_box_loss
from focaljax.training.optimizer import make_optimizer
from tests.golden import fill

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LEVELS = (3, 4, 5, 6, 7)


@functools.cache
def golden(name):
    """The reference values of a case, or of the parts, by name."""
    with np.load(GOLDEN / f"torchvision_{name}.npz") as file:
        return dict(file)


@functools.cache
def state_dict(name):
    """torchvision's state_dict of a case, float32."""
    shapes = zip(golden(name)["names"], golden(name)["shapes"], strict=True)
    return fill.fill_state_dict({str(entry): tuple(map(int, shape.split())) for entry, shape in shapes})


def bilinear(image, height, width):
    """The image `[H, W, C]` resized by the definition of bilinear interpolation, float64."""

    def along(axis, new, image):
        old = image.shape[axis]
        position = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        low = np.floor(position).astype(int)
        share = np.expand_dims(position - low, tuple(range(1, image.ndim)))
        image = np.moveaxis(image, axis, 0)
        return np.moveaxis((1 - share) * image[low] + share * image[np.minimum(low + 1, old - 1)], 0, axis)

    return along(1, width, along(0, height, np.asarray(image, np.float64)))


def network_input(name):
    """The batch that the network of a case sees, float64 `[B, H, W, 3]`."""
    shape = golden(name)["batch_shape"]
    batch = np.zeros((shape[0], shape[2], shape[3], 3))
    for image, size, row in zip(fill.case_images(fill.CASES[name]), golden(name)["image_sizes"], batch, strict=True):
        row[: size[0], : size[1]] = (bilinear(image, *size) / 255 - fill.PIXEL_MEAN) / fill.PIXEL_STD
    return batch


def objects(name):
    """The case's padded ground truth: boxes in pixels of the batch `[B, N, 4]`, labels, is_crowd, is_box `[B, N]`."""
    labels = [labels for _, labels in fill.case_objects(fill.CASES[name])]
    is_box = np.arange(max(map(len, labels))) < np.array([len(row) for row in labels])[:, None]
    padded_labels, boxes_xyxy = np.full(is_box.shape, -1), np.zeros((*is_box.shape, 4))
    for row, image_labels in enumerate(labels):
        padded_labels[row, : len(image_labels)] = image_labels
        boxes_xyxy[row, : len(image_labels)] = golden(name)[f"boxes{row}"]
    return boxes_xyxy, padded_labels, np.zeros_like(is_box), is_box


@dataclasses.dataclass(frozen=True)
class Detector:
    """A case's model with what belongs to it."""

    name: str
    dtype: str

    @property
    def case(self):
        return fill.CASES[self.name]

    @property
    def variant(self):
        return VARIANTS[f"torchvision_{self.case.head}"]

    @property
    def model(self):
        norm = "frozen_batch_norm" if self.case.is_frozen else "batch_norm"
        attributes = self.variant.model | {"backbone": self.case.backbone, "norm": norm, "freeze_at": 0}
        attributes |= {"norm_epsilon": self.case.epsilon, "dtype": jnp.dtype(self.dtype)}
        return RetinaNet(self.case.num_classes, self.variant.anchors_per_position, **attributes)

    def variables(self):
        variables = from_torchvision(state_dict(self.name))
        return jax.tree.map(lambda x: x.astype(self.dtype), {k: variables[k] for k in ("params", "batch_stats")})

    def apply(self, variables, images, *, train):
        """Returns the outputs by level, everything on the way by torchvision's names, and the new statistics."""
        (class_logits, box_deltas), state = self.model.apply(
            variables,
            images,
            train=train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.name in ("backbone", "fpn"),
        )
        features, pyramid = (state["intermediates"][part]["__call__"][0] for part in ("backbone", "fpn"))
        values = {f"c{level}": feature.transpose(0, 3, 1, 2) for level, feature in features.items()}
        values |= {f"p{level}": feature.transpose(0, 3, 1, 2) for level, feature in zip(LEVELS, pyramid, strict=True)}
        values |= {f"class_logits{level}": value for level, value in zip(LEVELS, class_logits, strict=True)}
        values |= {f"box_deltas{level}": value for level, value in zip(LEVELS, box_deltas, strict=True)}
        return (class_logits, box_deltas), values, state.get("batch_stats", {})

    def anchors(self, images):
        return pyramid_anchors(images.shape[1:3], levels=LEVELS, **self.variant.anchors)

    def features(self, variables, images):
        """Returns what the network computes in evaluation and, where that differs, in training."""
        modes = ("eval",) if self.case.is_frozen else ("eval", "train")
        return {mode: self.apply(variables, images, train=mode == "train")[1] for mode in modes}

    def everything(self, variables, images, sizes, objects):
        """Returns features, detections, losses, gradients and the variables after one step of SGD."""
        outputs, values, _ = self.apply(variables, images, train=False)
        anchors = self.anchors(images)
        detect = lambda logits, deltas, size: postprocess(logits, deltas, anchors, size, **self.variant.thresholds)  # noqa: E731
        detections = jax.vmap(detect)(*outputs, sizes)

        anchors_xyxy = jnp.concatenate(anchors)
        assign = functools.partial(assign_anchors, anchors_xyxy, **self.variant.matching)
        targets = jax.vmap(assign)(*objects)
        settings = self.variant.loss

        def loss_of_params(params):
            outputs, values, batch_stats = self.apply(variables | {"params": params}, images, train=True)
            loss = detection_loss(
                *(jnp.concatenate(levels, axis=1) for levels in outputs),
                anchors_xyxy,
                targets,
                classification_loss=make_classification_loss(
                    settings["classification"], alpha=settings["alpha"], gamma=settings["gamma"]
                ),
                box_loss=make_box_loss(settings["box"]),
                normalizer=settings["normalizer"],
            )
            return loss.total, (loss, values, batch_stats)

        gradients, (loss, train_values, batch_stats) = jax.grad(loss_of_params, has_aux=True)(variables["params"])
        optimizer = make_optimizer("sgd", lambda step: 0.01, momentum=0.9, weight_decay=1e-4)
        updates, _ = optimizer.update(gradients, optimizer.init(variables["params"]), variables["params"])
        return {
            "eval": values,
            "train": train_values,
            "detections": detections,
            "losses": loss,
            "gradients": {"params": gradients, "batch_stats": batch_stats},
            "after": {"params": optax.apply_updates(variables["params"], updates), "batch_stats": batch_stats},
        }


@functools.cache
def features32(name):
    """`Detector.features` of a case in float32, as numpy arrays."""
    detector = Detector(name, "float32")
    images = network_input(name).astype(np.float32)
    return jax.tree.map(np.asarray, jax.jit(detector.features)(detector.variables(), images))


@functools.cache
def everything64(name):
    """`Detector.everything` of a case in float64, as numpy arrays; gradients and variables by torchvision's names."""
    detector = Detector(name, "float64")
    with jax.enable_x64(True):
        sizes = golden(name)["image_sizes"]
        result = jax.jit(detector.everything)(detector.variables(), network_input(name), sizes, objects(name))
    result = jax.tree.map(np.asarray, result)
    return result | {key: to_torchvision(result[key]) for key in ("gradients", "after")}
