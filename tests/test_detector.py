"""`Detector`: the same objects as its parts give one by one, whatever the batch, the shape and the view."""

import dataclasses
import functools
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from focaljax import Detector
from focaljax.data.example import UnreadableImageError
from focaljax.detection import postprocess, pyramid_anchors
from focaljax.detector import TestTimeAugmentation, recognize_variant
from focaljax.evaluation.drawing import write_image
from focaljax.models.pretrained import from_torchvision
from focaljax.models.variables import flatten_variables
from focaljax.models.variants import VARIANTS
from focaljax.models.weight_files import write_weights
from focaljax.models.weight_names import WeightsError
from tests import small_detectors
from tests.models import state_dicts
from tests.small_detectors import SMALL, images

# Flat and high ones: two padded shapes.
SIZES = ((48, 60), (70, 40), (48, 60), (64, 96), (70, 40))


@pytest.fixture(scope="module", autouse=True)
def tiny_variants():
    """Under names of their own beside the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchvision_v1", "detectron2_r50"):
            patch.setitem(VARIANTS, f"tiny_{name}", small_detectors.tiny_variant(name))
        yield


V1 = {"variant": "tiny_torchvision_v1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of weights: tiny.npz for what is computed, and the names of torchvision and detectron2 for what is read."""
    folder = tmp_path_factory.mktemp("weights")
    v1 = small_detectors.state_dict()
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64)
        for name in v1
        if name.endswith("running_var")
    }
    contents = {
        "tiny": flatten_variables(small_detectors.tiny_variables()),
        "v1": v1,
        "live": v1 | counters,
        "v2": small_detectors.state_dict(
            p6_from="c5", head_norm="group_norm", fpn_channels=128, head_channels=128, num_classes=5
        ),
        "detectron2": state_dicts.detectron2(small_detectors.state_dict(p6_from="c5", num_classes=80)),
        "classifier": {name.removeprefix("backbone.body."): v1[name] for name in v1 if "body" in name},
    }
    for name, state_dict in contents.items():
        write_weights(folder / f"{name}.npz", state_dict)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    return Detector.from_weights(folder / "tiny.npz", **V1, batch_size=2)


def by_hand(image, variant, *, norm_epsilon, channels=slice(None)):
    """(boxes, scores, labels) of one image, from the definition of each step and the parts that others test."""
    settings = VARIANTS[variant]
    height, width = image.shape[:2]
    factor = min(64 / min(height, width), 96 / max(height, width))
    new_height, new_width = int(height * factor), int(width * factor)
    pixels = cv2.resize(image[..., channels].astype(np.float32), (new_width, new_height))
    pixels = (pixels - settings.preprocessing.pixel_mean) / settings.preprocessing.pixel_std
    padded = np.zeros((-(-new_height // 32) * 32, -(-new_width // 32) * 32, 3), np.float32)
    padded[:new_height, :new_width] = pixels
    found = parts(variant, norm_epsilon)(padded, np.array([new_height, new_width]))
    kept = np.asarray(found.is_detection)
    boxes = np.asarray(found.boxes_xyxy)[kept] * np.tile([width / new_width, height / new_height], 2)
    return boxes, np.asarray(found.scores)[kept], np.asarray(found.labels)[kept]


@functools.cache
def parts(variant, norm_epsilon):
    settings, model = VARIANTS[variant], small_detectors.tiny(norm_epsilon=norm_epsilon)

    @jax.jit
    def detect(padded, size):
        class_logits, box_deltas = model.apply(small_detectors.tiny_variables(), padded[None])
        anchors = pyramid_anchors(padded.shape[:2], levels=small_detectors.LEVELS, **settings.anchors)
        class_logits, box_deltas = ([level[0] for level in levels] for levels in (class_logits, box_deltas))
        return postprocess(class_logits, box_deltas, anchors, size, **settings.thresholds)

    return detect


def assert_same(found, boxes, scores, labels):
    """The same detections; those of equal scores but for rounding may change places."""
    assert len(found) == len(scores) > 20
    assert np.all(np.diff(found.scores) <= 0)
    ours, theirs = (np.lexsort((-s, k)) for s, k in ((found.scores, found.labels), (scores, labels)))
    np.testing.assert_array_equal(found.labels[ours], labels[theirs])
    np.testing.assert_allclose(found.scores[ours], scores[theirs], atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy[ours], boxes[theirs], atol=1e-3)


def test_images_of_several_shapes_come_back_in_order_as_if_each_were_alone(plain):
    some = images(*SIZES)
    found = plain(some)
    assert [one.image_id for one in found] == list(range(len(some)))
    for image, one in zip(some, found, strict=True):
        assert_same(one, *by_hand(image, "tiny_torchvision_v1", norm_epsilon=0.0))
        height, width = image.shape[:2]
        assert np.all(one.boxes_xyxy >= 0)
        assert np.all(one.boxes_xyxy <= [width, height, width, height])


def test_bgr_and_centered_anchors_for_weights_of_detectron2(folder):
    (image,) = images((50, 70))
    (found,) = Detector.from_weights(folder / "tiny.npz", variant="tiny_detectron2_r50")(image)
    reverse = slice(None, None, -1)
    assert_same(found, *by_hand(image, "tiny_detectron2_r50", norm_epsilon=1e-5, channels=reverse))


def test_one_compilation_a_shape_and_none_for_more_images(folder):
    compiled = []
    detector = Detector.from_weights(folder / "tiny.npz", **V1, batch_size=2, on_compile=compiled.append)
    detector(images(*SIZES))
    # Flat images and high ones.
    assert [(one.name, one.count, one.shape[0]) for one in compiled] == [
        ("prediction step", 1, 2),
        ("prediction step", 2, 2),
    ]
    detector(images(*SIZES[:3]))
    detector(images((47, 60), (96, 144)))  # other sizes, the same padded shape
    assert len(compiled) == 2


def test_files_and_arrays_are_the_same_and_one_image_gives_a_list_of_one(plain, tmp_path):
    (image,) = images((48, 60))
    path = tmp_path / "image.png"
    write_image(path, image)
    alone = plain(image)
    assert len(alone) == 1
    for given in (path, str(path), [path], [image], image[None]):
        (found,) = plain(given)
        np.testing.assert_array_equal(found.boxes_xyxy, alone[0].boxes_xyxy)
    assert plain([]) == []


def test_a_batch_may_be_split_over_devices(plain, folder, mesh_of_eight):
    detector = Detector.from_weights(folder / "tiny.npz", **V1, mesh=mesh_of_eight)
    assert detector.batch_size == 8
    for one, other in zip(detector(images(*SIZES)), plain(images(*SIZES)), strict=True):
        assert_same(one, other.boxes_xyxy, other.scores, other.labels)
    with pytest.raises(ValueError, match="number of devices, 8"):
        Detector.from_weights(folder / "tiny.npz", **V1, mesh=mesh_of_eight, batch_size=4)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError, "float32.*uint8"),
        (np.zeros((4, 4), np.uint8), ValueError, r"shape \(4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"shape \(0, 4, 3\)"),
    ],
)
def test_what_is_no_image_is_named_by_its_place(plain, image, error, words):
    with pytest.raises(error, match=f"image 1.*{words}"):
        plain([*images((48, 60)), image])


def test_one_grey_image_is_not_taken_for_a_list_of_its_rows(plain):
    with pytest.raises(ValueError, match=r"image 0 has shape \(48, 60\), expected \[H, W, 3\]"):
        plain(np.zeros((48, 60), np.uint8))


def test_unreadable_file_is_named(plain, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        plain(tmp_path / "bad.png")


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("v1", "torchvision_v1 with resnet18, 91 classes, frozen_batch_norm with epsilon 0,"),
        ("live", "torchvision_v1 with resnet18, 91 classes, batch_norm with epsilon 1e-05,"),
        ("v2", "torchvision_v2 with resnet18, 5 classes, frozen_batch_norm with epsilon 1e-05,"),
        ("detectron2", "detectron2_r50 with resnet18, 80 classes, frozen_batch_norm with epsilon 1e-05,"),
    ],
)
def test_variant_is_read_from_names_and_shapes(folder, name, description):
    assert Detector.from_weights(folder / f"{name}.npz").description.startswith(description)


def test_depth_and_groups_tell_resnet101_of_detectron2_and_mlperf():
    of = {"head_norm": None, "backbone": "resnet101"}
    assert recognize_variant("detectron2", of) == "detectron2_r101"
    assert recognize_variant("torchvision", of) == "torchvision_v1"
    resnext = of | {"backbone": "resnext50_32x4d"}
    assert recognize_variant("torchvision", resnext | {"num_classes": 264}) == "mlperf"
    # A torchvision model of one's own, whose images are not stretched.
    assert recognize_variant("torchvision", resnext | {"num_classes": 91}) == "torchvision_v1"


def test_norm_epsilon_given_wins(folder):
    (image,) = images((48, 60))
    (found,) = Detector.from_weights(folder / "tiny.npz", **V1, norm_epsilon=0.5)(image)
    assert_same(found, *by_hand(image, "tiny_torchvision_v1", norm_epsilon=0.5))


def test_focaljax_own_names_need_the_name_of_the_variant(folder):
    with pytest.raises(WeightsError, match=r"do not say.*torchvision_v1"):
        Detector.from_weights(folder / "tiny.npz")


def test_class_names_are_cocos_for_its_detectors_and_numbers_for_others(folder):
    coco = Detector.from_weights(folder / "v1.npz")
    assert (coco.class_names[17], coco.category_ids[17]) == ("cat", 17)
    other = Detector.from_weights(folder / "v2.npz")
    assert (other.class_names[2], other.category_ids[2]) == ("class 2", 2)
    named = Detector.from_weights(folder / "v2.npz", class_names=list("abcde"))
    assert named.class_names == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("variant", "num_classes", "id_of_label"),
    [
        # COCO's ids end at 90 and have gaps, the first at 12; MLPerf's of OpenImages are 0..263.
        ("torchvision_v1", 91, {1: 1, 13: 13, 90: 90}),
        ("torchvision_v2", 91, {1: 1, 13: 13, 90: 90}),
        ("detectron2_r50", 80, {0: 1, 10: 11, 11: 13, 79: 90}),
        ("detectron2_r101", 80, {0: 1, 10: 11, 11: 13, 79: 90}),
        ("mlperf", 264, {0: 0, 263: 263}),
        # Other data: torchvision's labels are its ids; else ids count from 1.
        ("torchvision_v1", 5, {4: 4}),
        ("detectron2_r50", 5, {0: 1, 4: 5}),
    ],
)
def test_category_ids_are_those_of_the_variant_whatever_the_names(tmp_path, variant, num_classes, id_of_label):
    model = {"num_classes": num_classes, "p6_from": VARIANTS[variant].model["p6_from"]}
    if variant == "torchvision_v2":
        model |= {"head_norm": "group_norm", "fpn_channels": 128, "head_channels": 128}
    state_dict = small_detectors.state_dict(**model)
    named = {"torchvision": state_dict, "focaljax": flatten_variables(from_torchvision(state_dict))}
    if variant.startswith("detectron2"):
        named["detectron2"] = state_dicts.detectron2(state_dict)
    own = [f"class {label} of mine" for label in range(num_classes)]
    for source, weights in named.items():
        write_weights(tmp_path / f"{source}.npz", weights)
        # Names of one's own change nothing either.
        for class_names in (None, own) if source == "torchvision" else (None,):
            detector = Detector.from_weights(tmp_path / f"{source}.npz", variant=variant, class_names=class_names)
            found = {label: detector.category_ids[label] for label in id_of_label}
            assert found == id_of_label, source


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("nothing", {}, "does not exist"),
        ("classifier", {}, "backbone without pyramid"),
        ("v1", {"variant": "torchvision_v3"}, "variant must be one of paper"),
        ("v1", {"variant": "torchvision_v2"}, "p6_from 'p5', not 'c5'; head_norm None, not 'group_norm'"),
        ("v2", {"class_names": ["a", "b", "c", "d"]}, "class_names has 4 entries.*5 classes.*background"),
        ("v1", {"variant": "mlperf", "class_names": ["a"]}, "class_names has 1 entries, the weights have 91 classes$"),
        ("v1", {"thresholds": {"iou": 0.5}}, "thresholds must be some of score_threshold.*suppression.*got iou"),
    ],
)
def test_mistakes_are_named(folder, name, arguments, words):
    with pytest.raises(ValueError, match=words):
        Detector.from_weights(folder / f"{name}.npz", **arguments)


def test_soft_suppression_by_a_threshold_equals_its_parts(folder, monkeypatch):
    (image,) = images((48, 60))
    soft = {"suppression": "gaussian", "soft_sigma": 0.3}
    (found,) = Detector.from_weights(folder / "tiny.npz", **V1, thresholds=soft)(image)
    (hard,) = Detector.from_weights(folder / "tiny.npz", **V1)(image)
    assert np.max(np.abs(found.scores[:20] - hard.scores[:20])) > 1e-3
    variant = VARIANTS["tiny_torchvision_v1"]
    softer = dataclasses.replace(variant, thresholds={**variant.thresholds, **soft})
    monkeypatch.setitem(VARIANTS, "soft", softer)
    assert_same(found, *by_hand(image, "soft", norm_epsilon=0.0))


# Everything that the network proposes, before any suppression.
EVERYTHING = {"nms_iou": 1.0, "max_detections": 2000, "pre_nms_top_k": 100, "score_threshold": 0.3}


def class_wise_nms(boxes, scores, labels, iou_threshold):
    """Greedy suppression, one pair at a time; the indices of what is kept, best first."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        x1, y1, x2, y2 = boxes[index]
        for other in kept:
            u1, v1, u2, v2 = boxes[other]
            shared = max(0.0, min(x2, u2) - max(x1, u1)) * max(0.0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
            if labels[index] == labels[other] and shared > iou_threshold * union:
                break
        else:
            kept.append(index)
    return kept


def test_flip_and_scales_equal_one_suppression_over_the_candidates_of_each_view(folder):
    (image,) = images((50, 70))  # neither side fills its padding
    scales = (1.0, 1.5)
    load = lambda **arguments: Detector.from_weights(folder / "tiny.npz", **V1, **arguments)  # noqa: E731
    boxes, scores, labels = [], [], []
    for scale in scales:
        alone = load(tta=TestTimeAugmentation(scales=(scale,)), thresholds=EVERYTHING)
        (seen,), (mirrored,) = alone(image), alone(np.ascontiguousarray(image[:, ::-1]))
        unmirrored = np.array([70, 0, 70, 0]) + mirrored.boxes_xyxy[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]
        boxes += [seen.boxes_xyxy, unmirrored]
        scores += [seen.scores, mirrored.scores]
        labels += [seen.labels, mirrored.labels]
    counts = [len(array) for array in scores]
    boxes, scores, labels = (np.concatenate(arrays) for arrays in (boxes, scores, labels))
    kept = class_wise_nms(boxes, scores, labels, 0.5)
    thresholds = {**EVERYTHING, "nms_iou": 0.5}
    (found,) = load(tta=TestTimeAugmentation(flip=True, scales=scales), thresholds=thresholds)(image)
    assert 50 < len(kept) < len(scores)
    # Every view contributes.
    ends = np.cumsum(counts)
    assert set(np.searchsorted(ends, kept, side="right")) == {0, 1, 2, 3}
    assert_same(found, boxes[kept], scores[kept], labels[kept])


def test_a_scale_makes_the_image_larger(folder):
    (image,) = images((48, 60))
    double = dataclasses.replace(SMALL, min_size=128, max_size=192)
    (one,) = Detector.from_weights(folder / "tiny.npz", **V1, preprocessing=double)(image)
    tta = TestTimeAugmentation(scales=(2.0,))
    (other,) = Detector.from_weights(folder / "tiny.npz", **V1, tta=tta)(image)
    assert_same(one, other.boxes_xyxy, other.scores, other.labels)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (float("nan"),), (1.0, 1.0)])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ValueError, match="scales"):
        TestTimeAugmentation(scales=scales)


def test_importing_focaljax_loads_nothing_until_the_detector_is_asked_for():
    program = """
import sys, focaljax
assert not {"jax", "flax", "cv2", "numpy"} & set(sys.modules)
assert focaljax.Detector.__name__ == "Detector"
try:
    focaljax.Detektor
except AttributeError as error:
    assert "Detektor" in str(error)
else:
    raise AssertionError
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
