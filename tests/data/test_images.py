"""Decoding of image files, and the cheap check of a file."""

import io
import os
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from focaljax.data import images as image_files
from focaljax.data.example import UnreadableImageError
from focaljax.data.files import read_regular_file
from focaljax.data.images import check_image_file, decode_image, decode_upright_image, exif_orientation

# JPEG at quality 95 of a smooth picture: a few grey levels per pixel.
JPEG_TOLERANCE = 4.0


@pytest.fixture
def pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (64, 48), interpolation=cv2.INTER_LINEAR)


def encode(pixels, image_format, *, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def decode(encoded, **options):
    return decode_image(encoded, file_name="a.img", image_id=7, **options)


def mean_difference(first, second):
    return np.abs(first.astype(int) - second.astype(int)).mean()


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("PNG", {}), ("BMP", {}), ("TIFF", {})],
)
def test_pixels_come_back_as_rgb(pixels, image_format, options):
    image = decode(encode(pixels, image_format, **options))
    assert image.dtype == np.uint8
    assert image.shape == (48, 64, 3)
    assert mean_difference(image, pixels) < JPEG_TOLERANCE


def test_cmyk_jpeg_becomes_rgb(pixels):
    assert mean_difference(decode(encode(pixels, "JPEG", mode="CMYK", quality=95)), pixels) < JPEG_TOLERANCE


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_grey_image_has_three_equal_channels(pixels, image_format):
    image = decode(encode(pixels, image_format, mode="L"))
    assert image.shape == (48, 64, 3)
    assert (image == image[..., :1]).all()


def test_alpha_is_dropped_without_blending(pixels):
    transparent = np.dstack([pixels, np.zeros((48, 64), np.uint8)])
    np.testing.assert_array_equal(decode(encode(transparent, "PNG", mode="RGBA")), pixels)


def test_sixteen_bits_become_eight(pixels):
    encoded = cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert np.abs(decode(encoded).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_jpeg_raises_with_file_and_id(pixels, options, kept):
    encoded = encode(pixels, "JPEG", **options)
    with pytest.raises(UnreadableImageError, match=r"a\.img \(image 7\).*truncated"):
        decode(encoded[: int(kept * len(encoded))])


def test_jpeg_closed_by_an_end_mark_after_half_of_its_data_raises(pixels):
    encoded = encode(pixels, "JPEG", quality=95)
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode(encoded[: len(encoded) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncated_png_raises(pixels, kept):
    encoded = encode(pixels, "PNG")
    with pytest.raises(UnreadableImageError, match=r"a\.img \(image 7\)"):
        decode(encoded[: int(kept * len(encoded))])


@pytest.mark.parametrize(
    "encoded", [b"", b"<html>404</html>", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\x00" * 99]
)
def test_bytes_that_are_no_image_raise(encoded):
    with pytest.raises(UnreadableImageError, match=r"a\.img \(image 7\)"):
        decode(encoded)


def test_stray_bytes_between_jpeg_segments_are_passed_over(pixels):
    encoded = encode(pixels, "JPEG")
    scan = encoded.index(b"\xff\xda")
    with_stray_bytes = encoded[:scan] + b"\1\2" + encoded[scan:]
    with pytest.raises(ValueError, match="extraneous"):  # the case is one that the strict decoder refuses
        simplejpeg.decode_jpeg(with_stray_bytes)
    np.testing.assert_array_equal(decode(with_stray_bytes), decode(encoded))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_where_the_stored_size_is_annotated(pixels, orientation):
    encoded = encode(pixels, "JPEG", exif=with_orientation(orientation))
    assert exif_orientation(encoded) == orientation
    np.testing.assert_array_equal(decode(encoded, expected_size=(48, 64)), decode(encode(pixels, "JPEG")))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_image_is_turned_upright_where_the_upright_size_is_annotated(pixels, orientation):
    encoded = encode(pixels, "JPEG", quality=95, exif=with_orientation(orientation))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    image = decode(encoded, expected_size=(64, 48))
    assert image.shape == upright.shape == (64, 48, 3)
    assert mean_difference(image, upright) < 1.0  # two decoders, up to rounding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_decoding_equals_pillows(pixels, orientation):
    encoded = encode(pixels, "JPEG", quality=95, exif=with_orientation(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    upright = decode_upright_image(encoded, file_name="photo.jpg", image_id=0)
    assert upright.shape == expected.shape
    assert mean_difference(upright, expected) < 1.0  # two decoders, up to rounding


@pytest.mark.parametrize("orientation", [1, 3])
def test_transposed_size_without_a_quarter_turn_raises(pixels, orientation):
    with pytest.raises(UnreadableImageError, match="48 x 64.*64 x 48"):
        decode(encode(pixels, "JPEG", exif=with_orientation(orientation)), expected_size=(64, 48))


def test_another_size_than_annotated_raises(pixels):
    with pytest.raises(UnreadableImageError, match=r"a\.img \(image 7\).*48 x 64.*48 x 65"):
        decode(encode(pixels, "PNG"), expected_size=(48, 65))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0XX*\0\x08\0\0\0\x01\0"])
def test_damaged_exif_counts_as_upright(exif):
    assert exif_orientation(b"\xff\xd8\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif) == 1


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("BMP", {}),
        # The size lies behind more metadata than the check reads at first.
        ("JPEG", {"comment": b"x" * 40000}),
    ],
)
def test_whole_file_passes_the_check_with_its_size(tmp_path, pixels, image_format, options):
    path = tmp_path / "a.img"
    path.write_bytes(encode(pixels, image_format, **options))
    assert check_image_file(path) == (None, (48, 64))


def test_jpeg_followed_by_other_bytes_passes_the_check(tmp_path, pixels):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(pixels, "JPEG") + b"\0" * 5000)
    assert check_image_file(path) == (None, (48, 64))
    assert decode(path.read_bytes()).shape == (48, 64, 3)


def test_check_names_each_fault(tmp_path, pixels):
    jpeg, png = encode(pixels, "JPEG"), encode(pixels, "PNG")
    contents = {
        "empty.jpg": (b"", image_files.EMPTY),
        "half.jpg": (jpeg[: len(jpeg) // 2], image_files.TRUNCATED),
        "last_bytes.jpg": (jpeg[:-2], image_files.TRUNCATED),
        "half.png": (png[: len(png) // 2], image_files.TRUNCATED),
        "text.jpg": (b"<html>404</html>", image_files.UNDECODABLE),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        assert check_image_file(tmp_path / name) == (reason, None), name
    assert check_image_file(tmp_path / "absent.jpg") == (image_files.MISSING, None)
    assert check_image_file(tmp_path) == (image_files.NO_ACCESS, None)
    assert check_image_file("a\0b.jpg") == (image_files.NO_ACCESS, None)


@pytest.mark.parametrize(("orientation", "size"), [(6, (64, 48)), (1, (48, 64))])
def test_check_gives_the_size_that_decoding_would_give(tmp_path, pixels, orientation, size):
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(pixels, "JPEG", exif=with_orientation(orientation)))
    assert check_image_file(path, expected_size=(64, 48)) == (None, size)


def bombs():
    """Files of a few hundred bytes that declare a billion pixels."""
    small = np.zeros((8, 8, 3), np.uint8)
    jpeg, png, bmp, gif = (bytearray(encode(small, kind)) for kind in ("JPEG", "PNG", "BMP", "GIF"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    png[16:24] = struct.pack(">II", 40000, 40000)
    bmp[18:26] = struct.pack("<ii", 40000, -40000)
    gif[6:10] = struct.pack("<HH", 40000, 40000)
    side = (40000 - 1).to_bytes(3, "little")
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + side + side
    entries = [(0x0100, 4, 1, 40000), (0x0101, 4, 1, 40000), (0x0106, 3, 1, 2)]
    tiff = b"II*\0" + struct.pack("<IH", 8, 3) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0" * 4
    big, swapped = (big_tiff(40000, 40000, order) for order in "<>")
    return {"jpg": jpeg, "png": png, "bmp": bmp, "gif": gif, "webp": webp, "tif": tiff, "big": big, "swapped": swapped}


def big_tiff(height, width, order, *, kind=4):
    """A BigTIFF's header, with numbers of 16 (kind 3), 32 (4) or 64 bits (16)."""
    entries = b"".join(
        struct.pack(order + "HHQ", tag, kind, 1)
        + struct.pack(order + {3: "H", 4: "I", 16: "Q"}[kind], side).ljust(8, b"\0")
        for tag, side in ((0x0100, width), (0x0101, height))
    )
    start = b"II+\0" if order == "<" else b"MM\0+"
    return start + struct.pack(order + "HHQQ", 8, 0, 16, 2) + entries + b"\0" * 8


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "tif", "big", "swapped"])
def test_image_that_declares_a_billion_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch, suffix):
    content = bytes(bombs()[suffix])
    decoded = []
    monkeypatch.setattr(image_files.simplejpeg, "decode_jpeg", lambda *_, **__: decoded.append(1))
    monkeypatch.setattr(image_files.cv2, "imdecode", lambda *_: decoded.append(1))
    with pytest.raises(UnreadableImageError, match=r"a\.img \(image 7\): .* x .* the most is 268435456 in all"):
        decode(content)
    (tmp_path / "a.img").write_bytes(content)
    assert check_image_file(tmp_path / "a.img") == (image_files.TOO_LARGE, None)
    assert not decoded


def test_tiff_of_either_byte_order_declares_its_true_size(pixels):
    for order, kind in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = [(0x0100, 3, 1, 64), (0x0101, 3, 1, 48)]
        packed = b"".join(struct.pack(order + "HHIHxx", *entry) for entry in entries)
        assert image_files._size_from_header(kind + struct.pack(order + "IH", 8, 2) + packed) == (48, 64)
    assert image_files._size_from_header(encode(pixels, "TIFF")) == (48, 64)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4, 16])
def test_big_tiff_declares_its_true_size(pixels, order, kind):
    assert image_files._size_from_header(encode(pixels, "TIFF", big_tiff=True)) == (48, 64)
    content = big_tiff(48, 64, order, kind=kind)
    assert image_files._size_from_header(content) == (48, 64)
    for length in range(len(content) - 16):  # before the last number's bytes
        assert image_files._size_from_header(content[:length]) is None
    for directory in (2**40, 2**63, 2**64 - 1):
        moved = content[:8] + struct.pack(order + "Q", directory) + content[16:]
        assert image_files._size_from_header(moved) is None


def test_format_that_is_not_measured_is_bounded_by_opencv(tmp_path):
    # OpenCV reads its bound once, when it is imported, so in a process of its own.
    (tmp_path / "a.pgm").write_bytes(b"P5\n20000 20000\n255\n" + b"\0" * 100)
    program = f"""
from focaljax.data.images import *
assert check_image_file({str(tmp_path / "a.pgm")!r}) == (TOO_LARGE, None)
import os
assert int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]) == MAX_PIXELS
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=100)


@pytest.mark.parametrize("name", ["zeros.jpg", "whole_at_both_ends.jpg"])
def test_sparse_file_of_a_terabyte_is_not_read(tmp_path, pixels, name):
    with (tmp_path / name).open("wb") as file:
        if name != "zeros.jpg":
            file.write(encode(pixels, "JPEG"))
        file.truncate(2**40 - 2)
        file.seek(0, os.SEEK_END)
        file.write(b"\xff\xd9")
    assert check_image_file(tmp_path / name) == (image_files.TOO_LONG, None)
    with pytest.raises(OSError, match="1099511627776 bytes, the most is 1073741824"):
        read_regular_file(tmp_path / name)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(5, "Input/output error"), image_files.NO_ACCESS), (FileNotFoundError(2, "gone"), image_files.MISSING)],
)
def test_file_that_fails_after_its_ends_were_read_is_a_finding(tmp_path, pixels, monkeypatch, error, reason):
    def fail(path):
        raise error

    monkeypatch.setattr(image_files, "read_regular_file", fail)
    (tmp_path / "half.jpg").write_bytes(encode(pixels, "JPEG")[:-2])
    assert check_image_file(tmp_path / "half.jpg") == (reason, None)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "device.jpg"):
        assert check_image_file(tmp_path / name) == (image_files.NO_ACCESS, None)
    assert check_image_file(tmp_path / "\ud800.jpg") == (image_files.NO_ACCESS, None)
