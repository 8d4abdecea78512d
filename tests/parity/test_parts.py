"""The parts around the network against torchvision's; see tests/golden/README.md."""

import hashlib

import jax
import numpy as np
import pytest

from focaljax.data.resize import padded_size, resize_bilinear, restore_boxes, shortest_edge_size
from focaljax.detection import assign_anchors, decode_boxes, encode_boxes, pyramid_anchors
from focaljax.models.retinanet import normalize_images
from tests.golden import fill
from tests.parity.detectors import bilinear, golden


@pytest.mark.parametrize("size", fill.ANCHOR_IMAGES)
def test_anchors_are_equal_bit_for_bit(size):
    anchors = np.concatenate(jax.jit(lambda: pyramid_anchors(size, layout="torchvision"))())
    name = f"anchors{size[0]}x{size[1]}"
    np.testing.assert_array_equal(anchors[:: len(anchors) // 64 | 1], golden("parts")[name])
    assert hashlib.sha256(anchors.tobytes()).hexdigest() == str(golden("parts")[f"{name}/sha256"])


@pytest.fixture(scope="module")
def match():
    """From boxes and the rule, the index of each anchor's box, or BACKGROUND or IGNORED: torchvision's numbers too."""
    anchors = np.concatenate(pyramid_anchors(fill.MATCHING_IMAGE, layout="torchvision"))
    assign = jax.jit(assign_anchors, static_argnames=("low_quality", "low_quality_at_zero"))

    def match(boxes, **rule):
        # Padded to one shape for all scenes, which matching must not notice.
        count = len(boxes)
        padded = np.concatenate([boxes, np.zeros((12 - count, 4))]).astype(np.float32)
        is_box = np.arange(12) < count
        return np.asarray(assign(anchors, padded, np.arange(12), np.zeros(12, bool), is_box, **rule).labels)

    return match


@pytest.mark.parametrize("scene", fill.matching_scenes())
def test_matches_are_equal(match, scene):
    boxes, reference = fill.matching_scenes()[scene], golden("parts")
    plain = match(boxes, low_quality=False)
    np.testing.assert_array_equal(plain, reference[f"matches/{scene}/plain"])
    expected = reference[f"matches/{scene}/low_quality"]
    np.testing.assert_array_equal(match(boxes, low_quality_at_zero=True), expected)
    if "far" not in scene:
        np.testing.assert_array_equal(match(boxes), expected)


def test_box_that_meets_no_anchor_takes_them_all_in_torchvision_alone(match):
    far = fill.matching_scenes()["far"]
    assert (golden("parts")["matches/far/low_quality"] >= 0).all()
    # By default the image is as it would be without that box.
    without = match(far[[0, 2]])
    np.testing.assert_array_equal(match(far), np.where(without == 1, 2, without))
    assert (match(fill.matching_scenes()["far_alone"]) == -1).all()


def test_box_coder():
    deltas, anchors, boxes = fill.deltas_and_anchors()
    with jax.enable_x64(True):
        decoded, encoded = (np.asarray(x) for x in jax.jit(lambda d, a, b: (decode_boxes(d, a), encode_boxes(b, a)))(
            deltas, anchors, boxes
        ))  # fmt: skip
    assert decoded.dtype == encoded.dtype == np.float64
    np.testing.assert_allclose(decoded, golden("parts")["decoded"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(encoded, golden("parts")["encoded"], rtol=1e-12, atol=1e-12)


def test_sizes_of_resized_images():
    sizes = [shortest_edge_size(*size) for size in fill.resize_sizes()]
    np.testing.assert_array_equal(sizes, golden("parts")["resized_sizes"])


def test_resized_normalised_and_padded_batch():
    images, reference = [fill.image(size, "transform") for size in ((60, 83), (123, 211))], golden("parts")
    sizes = [shortest_edge_size(*image.shape[:2], min_size=90, max_size=140) for image in images]
    np.testing.assert_array_equal(sizes, reference["transformed_sizes"])
    height, width = padded_size(sizes)
    assert (2, 3, height, width) == tuple(reference["transformed_shape"])
    batch = np.zeros((2, height, width, 3), np.float32)
    for image, size, row in zip(images, sizes, batch, strict=True):
        row[: size[0], : size[1]] = resize_bilinear(image, *size)
    normalized = np.asarray(normalize_images(batch, np.array(sizes)))
    # 1e-4 of 0..255 where it was resized, over a standard deviation of 57.
    np.testing.assert_allclose(
        fill.sample(normalized.transpose(0, 3, 1, 2), 2000)[:-1], reference["transformed"][:-1], rtol=0, atol=4e-6
    )


def test_large_image_is_resized_to_the_exact_values():
    image, (height, width) = fill.image((427, 640), "transform"), golden("parts")["resized_shape"]
    assert shortest_edge_size(427, 640) == (height, width)
    expected = golden("parts")["resized"][:-1]
    resized = resize_bilinear(image, int(height), int(width))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(fill.sample(resized.transpose(2, 0, 1), 2000)[:-1], expected, rtol=0, atol=1e-4)
    by_definition = bilinear(image, height, width)
    np.testing.assert_allclose(fill.sample(by_definition.transpose(2, 0, 1), 2000)[:-1], expected, rtol=1e-12)
    np.testing.assert_allclose(resized, by_definition, rtol=0, atol=1e-4)


def test_boxes_are_restored_with_the_same_ratios():
    restored = restore_boxes(fill.deltas_and_anchors()[2], (90, 125), (60, 83))
    np.testing.assert_allclose(restored, golden("parts")["restored_boxes"], rtol=1e-14)
