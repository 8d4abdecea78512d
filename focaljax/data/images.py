"""Image files: decoding to RGB pixels, and a cheap check of a file at the start of a run."""

import errno
import os
import struct

import cv2
import numpy as np
import simplejpeg

from focaljax.data.example import UnreadableImageError
from focaljax.data.files import open_regular_file, read_regular_file

# The input pipeline has one thread a core; OpenCV's own threads would compete with them.
cv2.setNumThreads(1)

MISSING = "image file missing"
NO_ACCESS = "image file cannot be opened"
EMPTY = "image file empty"
TRUNCATED = "image file truncated"
UNDECODABLE = "image file not decodable"
TOO_LARGE = "image file declares more pixels than are decoded"
TOO_LONG = "image file longer than is read"

# A few bytes can declare any size, and decoding would fill the memory: three bytes a pixel, in each thread. The
# largest cameras of phones have 200 million pixels. OpenCV is told the same in `focaljax/__init__.py`.
MAX_PIXELS = 2**28

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND"
# Most headers fit; where metadata pushes the size further back, the whole file is read.
_HEAD_BYTES = 16384
_TAIL_BYTES = 1024
# The types of a TIFF's numbers that are read -> their form.
_TIFF_TYPES = {3: "H", 4: "I", 16: "Q"}
_TIFF_MAX_ENTRIES = 2**16
# EXIF orientations 5 to 8 exchange height and width.
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
# What cv2.flip does after the transposition, if any: 1 left-right, 0 upside down, -1 both.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def decode_image(
    encoded: bytes, *, file_name: str, image_id: int, expected_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Returns the image as uint8 `[H, W, 3]`, RGB.

    Any format that OpenCV reads: grey becomes three equal channels, 16 bits become 8, alpha is dropped. Pixels are
    taken as stored, without regard to an EXIF orientation, because annotations count them so; with one exception,
    see `expected_size`. A JPEG that ends early is an error, not a half-grey image; other faults that JPEG decoders
    recover from (stray bytes between segments) are passed over.

    Args:
        encoded: the file's bytes.
        file_name: for messages.
        image_id: for messages.
        expected_size: the annotated (height, width), if known. If the stored image has its transpose and the EXIF
            orientation is one that exchanges height and width, the annotations were made on the upright image: the
            pixels are turned upright. Any other difference is an error, as the boxes would not fit.

    Raises:
        UnreadableImageError: if the bytes cannot be decoded in full, have another size than expected, or declare more
            than `MAX_PIXELS` pixels, in which case nothing is decoded.

    Example:
        >>> import cv2, numpy as np
        >>> encoded = cv2.imencode(".png", np.zeros((2, 3), np.uint8))[1].tobytes()
        >>> decode_image(encoded, file_name="grey.png", image_id=1).shape
        (2, 3, 3)
    """
    image, reason = _decode_pixels(encoded)
    if image is None:
        raise UnreadableImageError(f"{file_name} (image {image_id}): {reason}")
    size = (image.shape[0], image.shape[1])
    if expected_size is None or size == tuple(expected_size):
        return image
    if size == (expected_size[1], expected_size[0]):
        orientation = exif_orientation(encoded)
        if orientation in _TRANSPOSED_ORIENTATIONS:
            return _upright(image, orientation)
    raise UnreadableImageError(
        f"{file_name} (image {image_id}): the file has {size[0]} x {size[1]} pixels (height x width), but its "
        f"annotation says {expected_size[0]} x {expected_size[1]}; correct the annotation or replace the file"
    )


def decode_upright_image(encoded: bytes, *, file_name: str, image_id: int) -> np.ndarray:
    """Returns the image as uint8 `[H, W, 3]`, RGB, turned as its EXIF orientation says: as a person sees it.

    Of use where no annotations count the stored pixels. Otherwise as `decode_image`, errors included.
    """
    image = decode_image(encoded, file_name=file_name, image_id=image_id)
    return _upright(image, exif_orientation(encoded))


def check_image_file(
    path: str | os.PathLike[str], *, expected_size: tuple[int, int] | None = None
) -> tuple[str | None, tuple[int, int] | None]:
    """Returns `(None, (height, width))` for a file that looks whole, else `(reason, None)`.

    JPEG and PNG files are judged by their header and their end mark alone; if one of these is not as it should be,
    and for all other formats, the file is decoded. So a reason is never a false alarm, but damage in the middle of a
    file shows only in `decode_image`.

    Args:
        path: the file.
        expected_size: as for `decode_image`; the size returned is the one that `decode_image` would give, or, where
            that would raise because the sizes do not fit, the size as stored.

    Returns:
        The reason is one of the constants of this module (`MISSING`, `NO_ACCESS`, `EMPTY`, `TRUNCATED`,
        `UNDECODABLE`, `TOO_LARGE`, `TOO_LONG`), the same for all files with one fault. Only files are opened: a named
        pipe, which would hang, and a device, which may have no end, are `NO_ACCESS`; so are files whose reading fails.
    """
    try:
        return _check_content(path, expected_size)
    except FileNotFoundError:
        return MISSING, None
    except OSError as error:
        return TOO_LONG if error.errno == errno.EFBIG else NO_ACCESS, None


def _check_content(
    path: str | os.PathLike[str], expected_size: tuple[int, int] | None
) -> tuple[str | None, tuple[int, int] | None]:
    head, tail = _read_ends(path)
    if not head:
        return EMPTY, None
    size = _size_from_header(head)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        return TOO_LARGE, None
    if size is None or not _has_end_mark(head, tail):
        head = read_regular_file(path)
        image, reason = _decode_pixels(head)
        if image is None:
            return reason.split(" (", 1)[0], None
        size = (image.shape[0], image.shape[1])
    if (
        expected_size is not None
        and size != tuple(expected_size)
        and size == (expected_size[1], expected_size[0])
        and exif_orientation(head) in _TRANSPOSED_ORIENTATIONS
    ):
        size = (expected_size[0], expected_size[1])
    return None, size


def exif_orientation(encoded: bytes) -> int:
    """Returns the EXIF orientation (1 to 8) of a JPEG; 1, upright, if it has none or is no JPEG.

    Args:
        encoded: the file's bytes, or its first part up to the end of the EXIF segment.

    Example:
        >>> exif_orientation(b"no jpeg")
        1
    """
    position = 2
    while encoded[:2] == _JPEG_START and position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker, length = encoded[position + 1], int.from_bytes(encoded[position + 2 : position + 4], "big")
        if marker == 0xDA or length < 2:  # start of scan: no metadata after this
            break
        segment = encoded[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _orientation_from_tiff(segment[6:])
        position += 2 + length
    return 1


def _orientation_from_tiff(tiff: bytes) -> int:
    """Returns the value of tag 0x0112 in the first directory of an EXIF block."""
    value = _tiff_value(tiff, 0x0112)
    return value if value is not None and 1 <= value <= 8 else 1


def _tiff_value(tiff: bytes, wanted: int) -> int | None:
    """Returns the number that a tag has in the first directory of a TIFF, None if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    # A BigTIFF has offsets and counts of 64 bits.
    is_big = tiff[2:4] in (b"+\0", b"\0+")
    offset_form, count_form, count_bytes, entry_bytes = ("Q", "Q", 8, 20) if is_big else ("I", "H", 2, 12)
    try:
        (directory,) = struct.unpack_from(order + offset_form, tiff, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + count_form, tiff, directory)
        for entry in range(min(entries, _TIFF_MAX_ENTRIES)):
            start = directory + count_bytes + entry_bytes * entry
            tag, kind = struct.unpack_from(order + "HH", tiff, start)
            if tag == wanted:
                value_at = start + 4 + struct.calcsize("=" + offset_form)
                return struct.unpack_from(order + _TIFF_TYPES.get(kind, "H"), tiff, value_at)[0]
    except (struct.error, OverflowError):  # an offset behind the end
        pass
    return None


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels upright; orientation 1..8 as EXIF defines it."""
    if orientation in _TRANSPOSED_ORIENTATIONS:
        image = cv2.transpose(image)
    flip = _FLIPS.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


def _decode_pixels(encoded: bytes) -> tuple[np.ndarray | None, str]:
    """Returns (RGB pixels as stored, '') or (None, reason)."""
    if not encoded:
        return None, EMPTY
    declared = _size_from_header(encoded)
    if declared is not None and declared[0] * declared[1] > MAX_PIXELS:
        return None, f"{TOO_LARGE} ({declared[0]} x {declared[1]}, the most is {MAX_PIXELS} in all: cut or reduce it)"
    if encoded[:2] == _JPEG_START:
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB"), ""
        except (ValueError, RuntimeError, MemoryError) as error:
            # The decoders below would fill what is missing with grey.
            if "premature end" in str(error).lower() or _JPEG_END not in encoded[-_TAIL_BYTES:]:
                return None, f"{TRUNCATED} ({error})"
        try:
            return simplejpeg.decode_jpeg(encoded, "RGB", strict=False), ""
        except (ValueError, RuntimeError, MemoryError):
            pass  # colour spaces that TurboJPEG refuses
    elif encoded[:8] == _PNG_START and _PNG_END not in encoded[-_TAIL_BYTES:]:
        return None, f"{TRUNCATED} (the PNG has no end mark)"
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        kind = TOO_LARGE if "CV_IO_MAX_IMAGE_PIXELS" in str(error) else UNDECODABLE
        return None, f"{kind} ({' '.join(str(error).split())})"
    if image is None:
        return None, f"{UNDECODABLE} (damaged, or not an image)"
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), ""


def _read_ends(path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Returns the first and last bytes of a file; the whole file as both, if it is short."""
    with open_regular_file(path) as file:
        head = file.read(_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            return head, head[-_TAIL_BYTES:]
        file.seek(-_TAIL_BYTES, os.SEEK_END)
        return head, file.read(_TAIL_BYTES)


def _size_from_header(head: bytes) -> tuple[int, int] | None:
    """Returns (height, width) as an image file's first part declares it, None if it does not say.

    Of JPEG, PNG, BMP, GIF, WebP and TIFF; OpenCV bounds all others, see `MAX_PIXELS`. A TIFF may say it anywhere, so
    all of the file is needed.
    """
    if head[:2] == _JPEG_START:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(head)
        except (ValueError, RuntimeError):
            return None
    elif head[:8] == _PNG_START and head[12:16] == b"IHDR" and len(head) >= 24:
        width, height = struct.unpack(">II", head[16:24])
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        width, height = (_tiff_value(head, tag) or 0 for tag in (0x0100, 0x0101))
    elif head[:2] == b"BM" and len(head) >= 26:
        width, height = map(abs, struct.unpack("<ii", head[18:26]))  # a height below 0: from the top
    elif head[:4] == b"GIF8" and len(head) >= 10:
        width, height = struct.unpack("<HH", head[6:10])
    elif head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) >= 30:
        width, height = (1 + int.from_bytes(head[start : start + 3], "little") for start in (24, 27))
    else:
        return None  # WebP's other forms have 14 bits a side
    return (height, width) if height > 0 and width > 0 else None


def _has_end_mark(head: bytes, tail: bytes) -> bool:
    """Returns whether the last part of a JPEG or PNG has its end mark; False for formats without one."""
    if head[:2] == _JPEG_START:
        return _JPEG_END in tail
    return head[:8] == _PNG_START and _PNG_END in tail
