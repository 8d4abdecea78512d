"""detectron2's RetinaNet against its own numbers, in the variants as they stand; see tests/golden/README.md."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.data.resize import padded_size, resize_bilinear, shortest_edge_size
from focaljax.detection import assign_anchors, clip_boxes, pyramid_anchors
from focaljax.detection.postprocess import candidates, suppress
from focaljax.losses import ema_normalizer
from focaljax.models.pretrained import from_detectron2, to_torchvision
from focaljax.models.retinanet import RetinaNet, normalize_images
from focaljax.models.variants import VARIANTS
from tests.golden import fill
from tests.models import state_dicts
from tests.parity import detectors

VARIANT = VARIANTS["detectron2_r50"]
SIZES = np.array(fill.DETECTRON2_SIZES)
FROZEN = ("backbone.bottom_up.stem.", "backbone.bottom_up.res2.")


@functools.cache
def golden():
    with np.load(detectors.GOLDEN / "detectron2.npz") as file:
        return dict(file)


def state_dict(prefix=""):
    shapes = zip(golden()[f"{prefix}names"], golden()[f"{prefix}shapes"], strict=True)
    return fill.fill_state_dict({str(name): tuple(map(int, shape.split())) for name, shape in shapes})


class Detector(detectors.Detector):
    """One of the variants, filled."""

    @property
    def variant(self):
        return VARIANTS[self.name]

    @property
    def model(self):
        attributes = self.variant.model | {"dtype": jnp.dtype(self.dtype)}
        return RetinaNet(self.variant.num_classes, self.variant.anchors_per_position, **attributes)

    def variables(self):
        variables = from_detectron2(state_dict("r101/" if self.name.endswith("r101") else ""))
        return jax.tree.map(lambda x: x.astype(self.dtype), variables)

    def anchors(self, images):
        return tuple(level.astype(self.dtype) for level in super().anchors(images))

    def clipped_last(self, outputs, images, sizes, **thresholds):
        """The detections of `postprocess`, but with the boxes clipped after suppression."""
        away = 4096.0
        anchors = [level + away for level in self.anchors(images)]
        thresholds = self.variant.thresholds | thresholds
        limits = {key: thresholds.pop(key) for key in ("score_threshold", "pre_nms_top_k")}

        def detect(logits, deltas, size):
            # So far from all borders nothing is clipped.
            found = suppress(candidates(logits, deltas, anchors, jnp.full(2, 2 * away), **limits), **thresholds)
            return dataclasses.replace(found, boxes_xyxy=clip_boxes(found.boxes_xyxy - away, size))

        return jax.vmap(detect)(*outputs, sizes)


def network_input(images, dtype):
    """The normalised and padded batch `[B, H, W, 3]` of RGB images."""
    sizes = np.array([image.shape[:2] for image in images])
    settings = VARIANT.preprocessing
    batch = np.zeros((len(images), *padded_size(sizes, multiple=settings.pad_multiple), 3), dtype)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return normalize_images(
        batch, sizes, mean=settings.pixel_mean, std=settings.pixel_std, channel_order=settings.channel_order
    )


def objects():
    """Padded ground truth of the batch: boxes, labels, is_crowd, is_box."""
    all_boxes, all_labels = np.zeros((2, 5, 4)), np.full((2, 5), -1)
    is_box = np.arange(5) < np.array([[4], [5]])
    for index in range(2):
        all_boxes[index, is_box[index]], all_labels[index, is_box[index]] = fill.detectron2_objects(
            index, VARIANT.num_classes
        )
    return all_boxes, all_labels, np.zeros_like(is_box), is_box


@functools.cache
def everything():
    """All that is computed of the batch in float64, as numpy arrays; gradients by detectron2's names."""
    detector = Detector("detectron2_r50", "float64")
    with jax.enable_x64(True):
        images = network_input([*map(fill.image, fill.DETECTRON2_SIZES, "01")], np.float64)

        def run(variables, images, sizes, objects):
            outputs, _, _ = detector.apply(variables, images, train=False)
            less_certain = [logits - fill.DETECTRON2_FEW for logits in outputs[0]]
            assign = functools.partial(
                assign_anchors, jnp.concatenate(detector.anchors(images)), **detector.variant.matching
            )
            return detector.everything(variables, images, sizes, objects) | {
                "clipped_last": detector.clipped_last(outputs, images, sizes),
                "many": detector.clipped_last(outputs, images, sizes, max_detections=fill.DETECTRON2_MANY),
                "few": detector.clipped_last((less_certain, outputs[1]), images, sizes),
                "labels": jax.vmap(assign)(*objects).labels,
            }

        result = jax.jit(run)(detector.variables(), images, SIZES, objects())
    result = jax.tree.map(np.asarray, result) | {"input": np.asarray(images)}
    return result | {"gradients": state_dicts.detectron2(to_torchvision(result["gradients"]))}


def assert_samples_equal(values, expected, tolerance, count=fill.SAMPLES):
    for name, value in values.items():
        samples, reference = fill.sample(value, count), expected[name]
        # The last value is the norm of the whole.
        np.testing.assert_allclose(
            samples[:-1], reference[:-1], rtol=0, atol=tolerance * abs(reference[:-1]).max(), err_msg=name
        )
        np.testing.assert_allclose(samples[-1], reference[-1], rtol=tolerance, err_msg=f"{name}, the norm")


def test_network_sees_the_pixels_that_detectron2_makes():
    batch = everything()["input"].transpose(0, 3, 1, 2)
    assert batch.shape == tuple(golden()["batch_shape"]) == (2, 3, 128, 160)
    np.testing.assert_allclose(fill.sample(batch), golden()["eval/input"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["detectron2_r50", "detectron2_r101"])
def test_weights_fit_the_model_of_the_variant(name):
    detector = Detector(name, "float32")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    expected = jax.eval_shape(lambda images: detector.model.init(jax.random.key(0), images), images)
    shapes = jax.tree.map(lambda x: x.shape, detector.variables())
    assert shapes == jax.tree.map(lambda x: x.shape, dict(expected))


def test_features_and_heads_in_float64():
    expected = {key.removeprefix("eval/"): value for key, value in golden().items() if key.startswith("eval/")}
    assert expected.keys() == everything()["eval"].keys() | {"input"}
    assert_samples_equal(everything()["eval"], expected, 1e-10)


def test_features_and_heads_of_resnet101_in_float32():
    detector = Detector("detectron2_r101", "float32")
    images = network_input([fill.image((64, 64), "r101")], np.float32)
    values = jax.jit(lambda variables, images: detector.apply(variables, images, train=False)[1])(
        detector.variables(), images
    )
    expected = {key.removeprefix("r101/"): value for key, value in golden().items() if key.startswith("r101/")}
    assert_samples_equal(values | {"input": images.transpose(0, 3, 1, 2)}, expected, 1e-4, count=32)


@pytest.mark.parametrize("size", fill.ANCHOR_IMAGES)
def test_anchors_are_equal_bit_for_bit(size):
    make = functools.partial(pyramid_anchors, size, levels=VARIANT.model["levels"], **VARIANT.anchors)
    anchors = np.concatenate(jax.jit(make)())
    name = f"anchors{size[0]}x{size[1]}"
    np.testing.assert_array_equal(anchors[:: len(anchors) // 64 | 1], golden()[name])
    assert hashlib.sha256(anchors.tobytes()).hexdigest() == str(golden()[f"{name}/sha256"])


@pytest.mark.parametrize("scene", fill.matching_scenes())
def test_labels_of_anchors_are_equal(scene):
    anchors = np.concatenate(pyramid_anchors(fill.MATCHING_IMAGE, **VARIANT.anchors))
    boxes = fill.matching_scenes()[scene].astype(np.float32)
    count = len(boxes)
    targets = jax.jit(functools.partial(assign_anchors, **VARIANT.matching))(
        anchors, boxes, np.arange(count), np.zeros(count, bool), np.ones(count, bool)
    )
    np.testing.assert_array_equal(targets.labels, golden()[f"matches/{scene}"])


def test_labels_of_the_batch_with_boxes_that_low_quality_matches_alone_find():
    np.testing.assert_array_equal(everything()["labels"], [golden()["labels0"], golden()["labels1"]])
    boxes_xyxy, _, is_crowd, is_box = objects()
    anchors = np.concatenate(pyramid_anchors((128, 160), **VARIANT.anchors))
    for index, last in enumerate((3, 4)):
        arguments = anchors, boxes_xyxy[index].astype(np.float32), np.arange(5), is_crowd[index], is_box[index]
        assert last not in assign_anchors(*arguments, low_quality=False).labels
        assert last in assign_anchors(*arguments, **VARIANT.matching).labels


def test_losses_divided_by_the_moving_average_that_detectron2_keeps():
    losses, (normalizer, second) = everything()["losses"], golden()["normalizers"]
    assigned = 2 * float(losses.positives)
    for value, name in ((losses.classification, "loss_cls"), (losses.box, "loss_box_reg")):
        assert value * assigned / normalizer == pytest.approx(golden()[name].item(), rel=1e-9)
    with jax.enable_x64(True):
        ours = ema_normalizer(100.0, assigned)
        np.testing.assert_allclose([ours, ema_normalizer(ours, assigned)], [normalizer, second], rtol=1e-14)


def test_gradients_of_every_parameter():
    gradients = everything()["gradients"]
    factor = 2 * float(everything()["losses"].positives) / golden()["normalizers"][0]
    reference = {k.removeprefix("gradient/"): v for k, v in golden().items() if k.startswith("gradient/")}
    # detectron2 freezes the stem and the first stage.
    frozen = {name for name in gradients if name.startswith(FROZEN)}
    assert reference.keys() == {name for name in gradients if ".norm." not in name} - frozen
    assert not any(gradients[name].any() for name in frozen if ".norm." not in name)
    for name, expected in reference.items():
        samples = factor * fill.sample(gradients[name], 16)
        np.testing.assert_allclose(
            samples[:-1], expected[:-1], rtol=0, atol=1e-8 * max(abs(expected[:-1])), err_msg=name
        )
        np.testing.assert_allclose(samples[-1], expected[-1], rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("ours", "theirs", "count"),
    # `postprocess` clips boxes before suppression, as torchvision does; detectron2 by itself clips what is left.
    [("detections", "clipped_first", 100), ("clipped_last", "detections", 100), ("few", "few", None)],
)
def test_detections(ours, theirs, count, index):
    found = everything()[ours]
    expected = {key: golden()[f"{theirs}{index}/{key}"] for key in ("boxes", "scores", "labels")}
    boxes, is_detection = found.boxes_xyxy[index], found.is_detection[index]
    assert is_detection.sum() == (count or is_detection.sum())
    # detectron2 drops boxes without an area in the image, out of its 100.
    kept = is_detection & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    assert kept.sum() == len(expected["scores"]) > 10
    np.testing.assert_array_equal(found.labels[index, kept], expected["labels"])
    np.testing.assert_allclose(found.scores[index, kept], expected["scores"], rtol=1e-10)
    np.testing.assert_allclose(boxes[kept], expected["boxes"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_detections_are_as_many_as_suppression_leaves_of_the_best_candidates_of_each_level(index):
    found = everything()["many"]
    boxes = found.boxes_xyxy[index]
    kept = found.is_detection[index] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    expected = {key: golden()[f"many{index}/{key}"] for key in ("count", "boxes", "scores", "labels")}
    assert kept.sum() == expected["count"] > 300
    np.testing.assert_array_equal(fill.sample(found.labels[index, kept]), expected["labels"])
    np.testing.assert_allclose(fill.sample(found.scores[index, kept]), expected["scores"], rtol=1e-10)
    np.testing.assert_allclose(fill.sample(boxes[kept]), expected["boxes"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_order_of_clipping_and_suppression_shows_in_the_batch(index):
    assert set(golden()[f"detections{index}/scores"]) != set(golden()[f"clipped_first{index}/scores"])


def test_detectron2_rounds_sides_of_resized_images_to_the_nearest_where_we_round_down():
    sizes = np.array([shortest_edge_size(*size) for size in fill.resize_sizes()])
    assert set((golden()["resized_sizes"] - sizes).ravel()) == {0, 1}


def test_resized_pixels_are_whole_in_detectron2_and_averaged_where_the_image_shrinks():
    image = fill.image((60, 83), "transform")
    difference = {
        name: abs(resize_bilinear(image, *golden()[name].shape[:2]) - golden()[name]) for name in ("larger", "smaller")
    }
    # Pillow rounds after each of the two axes.
    assert difference["larger"].max() < 1
    assert difference["smaller"].max() > 50
