"""The annotations of a TFDS split, read once from its records and kept where that takes long."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import simplejpeg

from focaljax.data.deadline import DATA_TIMEOUT, with_deadline
from focaljax.data.example import UnreadableImageError
from focaljax.data.images import decode_image

_READ_AT_ONCE = 64
# Reading all annotations of a large data set means reading all of its files: from here on the result is kept.
_KEEP_AFTER_SECONDS = 5.0
_KEPT_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """What a split's records say, without the pixels: N readable images with M objects, in the order of the records.

    Attributes:
        records: int64 `[N]`, position in the split.
        file_names: str `[N]`.
        image_ids: int64 `[N]`.
        sizes: int64 `[N, 2]`, height and width from the encoded image.
        counts: int64 `[N]`, number of objects.
        bboxes: float32 `[M, 4]`, as stored: ymin, xmin, ymax, xmax as fractions.
        labels: int64 `[M]`.
        is_crowd: bool `[M]`.
        areas: float64 `[M]`, NaN where there is none.
        annotation_ids: int64 `[M]`, 0 where there is none.
        skipped_names: str `[S]`, the images left out.
        skipped_ids: int64 `[S]`.
        skipped_reasons: str `[S]`.
    """

    records: np.ndarray
    file_names: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    bboxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray
    annotation_ids: np.ndarray
    skipped_names: np.ndarray
    skipped_ids: np.ndarray
    skipped_reasons: np.ndarray


def load_or_read_index(records: Any, folder: str, split: str, *, timeout: float = DATA_TIMEOUT) -> SplitIndex:
    """Returns the split's index from the file that an earlier start kept, or from the records.

    Raises:
        StalledError: some records did not come within `timeout` seconds.
    """
    kept = pathlib.Path(folder, f"focaljax-{records_state(records, folder, split)[:16]}.npz")
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return SplitIndex(**arrays)
    except Exception:
        pass  # none was kept, or it is damaged: the records are the truth
    start = time.monotonic()
    index = read_index(records, timeout=timeout, what=f"record from {folder}")
    if time.monotonic() - start > _KEEP_AFTER_SECONDS:
        _keep(index, kept)
    return index


def records_state(records: Any, folder: str, split: str) -> str:
    """Returns a digest of the split, its length, and the names, times and sizes of the data set's files."""
    files = sorted(path for path in pathlib.Path(folder).iterdir() if "array_record" in path.name)
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((_KEPT_FORMAT, split, len(records), state)).encode()).hexdigest()


def _keep(index: SplitIndex, path: pathlib.Path) -> None:
    """Writes an index whole or not at all; a folder that cannot be written to is no fault."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".focaljax-", suffix=".npz")
    except OSError:
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **{field.name: getattr(index, field.name) for field in dataclasses.fields(index)})
        os.replace(name, path)
    except OSError:
        pathlib.Path(name).unlink(missing_ok=True)


def read_index(records: Any, *, timeout: float = DATA_TIMEOUT, what: str = "record") -> SplitIndex:
    """Reads the annotations of all records; images are measured by their headers, not decoded."""
    images: list[tuple[int, str, int, tuple[int, int], int]] = []
    skipped: list[tuple[str, int, str]] = []
    columns = [_object_columns({})]
    for position, feature in _parsed(with_deadline(_chunks(records), timeout, what=what)):
        name = feature["image/filename"].bytes_list.value if "image/filename" in feature else ()
        ids = feature["image/id"].int64_list.value if "image/id" in feature else ()
        file_name = name[0].decode(errors="replace") if name else f"record {position}"
        image_id = ids[0] if ids else position + 1
        encoded = feature["image"].bytes_list.value if "image" in feature else ()
        try:
            size = _encoded_size(encoded[0] if encoded else b"", file_name, image_id)
        except UnreadableImageError as error:
            skipped.append((file_name, image_id, str(error).partition("): ")[2].split(" (", 1)[0]))
            continue
        try:
            objects = _object_columns(feature)
        except ValueError as error:
            skipped.append((file_name, image_id, str(error)))
            continue
        images.append((position, file_name, image_id, size, len(objects[0])))
        columns.append(objects)
    bboxes, labels, is_crowd, areas, annotation_ids = (np.concatenate(column) for column in zip(*columns))
    return SplitIndex(
        records=np.array([image[0] for image in images], np.int64),
        file_names=np.array([image[1] for image in images], str),
        image_ids=np.array([image[2] for image in images], np.int64),
        sizes=np.array([image[3] for image in images], np.int64).reshape(-1, 2),
        counts=np.array([image[4] for image in images], np.int64),
        bboxes=bboxes,
        labels=labels,
        is_crowd=is_crowd,
        areas=areas,
        annotation_ids=annotation_ids,
        skipped_names=np.array([entry[0] for entry in skipped], str),
        skipped_ids=np.array([entry[1] for entry in skipped], np.int64),
        skipped_reasons=np.array([entry[2] for entry in skipped], str),
    )


def _chunks(records: Any) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(records), _READ_AT_ONCE):
        yield records.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(records)))))


def _parsed(chunks: Iterable[Sequence[bytes]]) -> Iterator[tuple[int, Any]]:
    for position, record in enumerate(itertools.chain.from_iterable(chunks)):
        yield position, parse_record(record)


def parse_record(record: bytes) -> Any:
    """Returns a record's flat map from feature names to `tf.train.Feature` messages."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _object_columns(feature: Any) -> tuple[np.ndarray, ...]:
    """Returns (bboxes, labels, is_crowd, areas, annotation_ids) of one record, as in `SplitIndex`.

    Raises:
        ValueError: it has more of one than of another: which belong together cannot be told.
    """

    def numbers(name: str, count: int, default: float) -> np.ndarray:
        if f"objects/{name}" not in feature:
            return np.full(count, default)
        value = feature[f"objects/{name}"]
        return np.array(value.float_list.value or value.int64_list.value)

    corners = np.array(feature["objects/bbox"].float_list.value if "objects/bbox" in feature else (), np.float32)
    count = len(corners) // 4
    labels, is_crowd, is_difficult, areas, annotation_ids = columns = [
        numbers("label", count, -1),
        numbers("is_crowd", count, 0),
        numbers("is_difficult", count, 0),
        numbers("area", count, np.nan),
        numbers("id", count, 0),
    ]
    if len(corners) % 4 or any(len(column) != count for column in columns):
        raise ValueError("objects of unequal counts")
    return (
        corners.reshape(count, 4),
        labels.astype(np.int64),
        (is_crowd != 0) | (is_difficult != 0),
        areas.astype(np.float64),
        annotation_ids.astype(np.int64),
    )


def _encoded_size(encoded: bytes, file_name: str, image_id: int) -> tuple[int, int]:
    """Returns (height, width) from the header of a JPEG or PNG that looks whole; decodes anything else.

    Raises:
        UnreadableImageError: if it cannot be decoded.
    """
    if encoded[:2] == b"\xff\xd8" and b"\xff\xd9" in encoded[-1024:]:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        except (ValueError, RuntimeError):
            pass
        else:
            return height, width
    elif encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[12:16] == b"IHDR" and b"IEND" in encoded[-1024:]:
        width, height = struct.unpack(">II", encoded[16:24])
        return height, width
    height, width, _ = decode_image(encoded, file_name=file_name, image_id=image_id).shape
    return height, width
