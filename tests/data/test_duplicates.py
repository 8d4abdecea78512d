"""Images that stand twice: equal pixels, and the same look after scaling, compression and a change of brightness."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from focaljax.data.duplicates import hash_image, near_groups
from tests.data.coco_folders import noise


def test_equal_pixels_have_equal_hashes_and_one_level_of_one_pixel_changes_them():
    image = noise(0)
    changed = image.copy()
    changed[3, 4, 1] ^= 1
    assert hash_image(image) == hash_image(image.copy())
    assert hash_image(image[:, ::-1][:, ::-1]) == hash_image(image)  # a view in another order of memory
    assert hash_image(changed).pixels != hash_image(image).pixels
    flat = np.zeros((4, 6, 3), np.uint8)
    assert hash_image(flat).pixels != hash_image(flat.reshape(6, 4, 3)).pixels


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR),
        lambda image: (image * 0.8).astype(np.uint8),
    ],
)
def test_changed_copy_is_near_its_original_and_no_other_image(change):
    images = [noise(seed, 120, 160) for seed in range(20)]
    hashes = [hash_image(image) for image in (*images, change(images[7]))]
    assert hashes[7].pixels != hashes[20].pixels
    assert near_groups([found.look for found in hashes]) == [[7, 20]]


def test_flat_images_are_near_nothing():
    looks = [hash_image(np.full((30, 40, 3), level, np.uint8)).look for level in (0, 100, 255)]
    assert near_groups(looks) == []


@given(seed=st.integers(0, 200), most_bits=st.integers(0, 3))
def test_near_groups_are_those_that_a_loop_finds(seed, most_bits):
    rng = np.random.default_rng(seed)
    looks = rng.integers(0, 2**64, 6, np.uint64).tolist()
    for look in list(looks) * 2:
        for bit in rng.choice(64, rng.integers(0, 6), replace=False).tolist():
            look ^= 1 << bit
        looks.append(look)
    looks += [0, 0, 2**64 - 1, 2**64 - 1]
    is_telling = [8 <= look.bit_count() <= 56 for look in looks]
    groups = [{place} for place in range(len(looks))]
    for first, second in itertools.combinations(range(len(looks)), 2):
        if (looks[first] ^ looks[second]).bit_count() <= most_bits and is_telling[first] and is_telling[second]:
            joined = groups[first] | groups[second]
            for place in joined:
                groups[place] = joined
    expected = [sorted(group) for place, group in enumerate(groups) if len(group) > 1 and min(group) == place]
    assert near_groups(looks, most_bits=most_bits) == expected


def test_frames_of_one_camera_are_one_group_and_not_all_its_pairs():
    looks = [0x00FF00FF00FF00FF ^ (frame % 4) for frame in range(20_000)]
    (group,) = near_groups(looks)
    assert group == list(range(20_000))


def test_more_bits_than_parts_can_find_are_refused():
    with pytest.raises(ValueError, match="most_bits must be in 0..3, got 4"):
        near_groups([1, 2], most_bits=4)
