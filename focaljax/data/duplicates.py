"""Images that stand twice: exactly, by their pixels, and probably, by a small hash of what they look like."""

import collections
import dataclasses
import hashlib
from collections.abc import Hashable, Sequence

import cv2
import numpy as np

# Of 64. Hashes of unrelated photographs differ in about 32 bits; of one photograph, scaled or saved anew, in 0 to 3.
NEAR_BITS = 3
# A hash with fewer ones, or fewer zeros, is that of a flat image or of one gradient, which many images share.
_FEWEST_BITS = 8
_THUMBNAIL = (9, 8)  # width, height
_COMPARED_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class ImageHash:
    """An image in short.

    Attributes:
        pixels: the same for images of equal shape and pixels, and only for these.
        look: 64 bits that hardly change where an image is scaled, compressed or made brighter.
    """

    pixels: bytes
    look: int


def hash_image(image: np.ndarray) -> ImageHash:
    """Returns the hashes of an image.

    `look` is the difference hash: of the grey image in 9x8 pixels, whether each pixel is brighter than its right
    neighbour.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
    """
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    grey = cv2.cvtColor(cv2.resize(image, _THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    bits = grey[:, :-1] > grey[:, 1:]
    return ImageHash(digest.digest(), int.from_bytes(np.packbits(bits).tobytes(), "big"))


def equal_groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Returns the positions of equal keys, group by group, of those that occur more than once.

    Example:
        >>> equal_groups(["a", "b", "a", "c", "b"])
        [[0, 2], [1, 4]]
    """
    places: dict[Hashable, list[int]] = collections.defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [group for group in places.values() if len(group) > 1]


def near_groups(looks: Sequence[int], *, most_bits: int = NEAR_BITS) -> list[list[int]]:
    """Returns the groups of positions that are joined by hashes which differ in at most `most_bits` of their 64 bits.

    Two in a group may differ in more, if those between them do not: frames of a camera that hardly moves are one group.
    Hashes that are almost all zeros or ones say too little and are in no group. Of hashes that differ in 3 bits at
    least one of four 16-bit parts is equal, so only those with an equal part are compared.

    Args:
        looks: 64-bit numbers, see `ImageHash`.
        most_bits: in 0..3.

    Returns:
        Groups of at least two, positions ascending, in the order of the first.

    Raises:
        ValueError: `most_bits` is out of range.

    Example:
        >>> near_groups([0x00FF00FF00FF00FF, 0x00FF00FF00FF00FE, 0xF0F0F0F0F0F0F0F0])
        [[0, 1]]
    """
    if not 0 <= most_bits <= 3:
        raise ValueError(f"most_bits must be in 0..3, got {most_bits}")
    hashes, place_of = np.unique(np.array(looks, np.uint64), return_inverse=True)
    ones = np.bitwise_count(hashes)
    compared = np.flatnonzero((ones >= _FEWEST_BITS) & (ones <= 64 - _FEWEST_BITS))
    group = np.arange(len(hashes))  # of each hash, the smallest that it is joined with so far
    for part in range(4):
        parts = (hashes[compared] >> np.uint64(16 * part)) & np.uint64(0xFFFF)
        for places in (compared[same] for same in equal_groups(parts.tolist())):
            for start in range(0, len(places), _COMPARED_AT_ONCE):
                rows = places[start : start + _COMPARED_AT_ONCE]
                is_near = np.bitwise_count(hashes[rows][:, None] ^ hashes[places][None, :]) <= most_bits
                for near in is_near[is_near.sum(axis=1) > 1]:
                    joined = np.unique(group[places[near]])
                    if len(joined) > 1:
                        group[np.isin(group, joined)] = joined[0]
    is_compared = np.zeros(len(hashes), bool)
    is_compared[compared] = True
    # What is not compared is a group of its own, by its position.
    keys = [int(group[place]) if is_compared[place] else (index,) for index, place in enumerate(place_of.tolist())]
    return equal_groups(keys)
