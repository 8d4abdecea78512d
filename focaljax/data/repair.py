"""What is repaired in, or left out of, annotations: classes, images, and boxes that lie outside their image.

The readers here take the lists of a document in COCO's annotation form and give arrays; all other formats of
annotation are brought to that form first, so that each fault is treated alike everywhere.
"""

import collections
import dataclasses
import difflib
import reprlib
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np

from focaljax.data.example import DataError
from focaljax.data.report import DataReport

NOT_FINITE = "box with NaN or infinite corners: dropped"
NO_AREA = "box of zero or negative area: dropped"
WHOLLY_OUTSIDE = "box wholly outside the image: dropped"
CLIPPED = "box outside the image: clipped"

# Annotation tools round sizes and corners differently; less than half a pixel outside is no fault worth a report.
SILENT_OVERSHOOT = 0.5

# In place of an index, so below 0.
_UNKNOWN = -1
_OF_SKIPPED_IMAGE = -2


@dataclasses.dataclass(frozen=True)
class RepairedBoxes:
    """Boxes that lie in their image, and what was wrong with those that did not.

    Attributes:
        boxes_xyxy: float32 `[M, 4]`, the clipped boxes in the order given; zeros where a box is dropped.
        is_kept: bool `[M]`, False where a box is dropped; kept boxes have `0 <= x1 < x2 <= W`, `0 <= y1 < y2 <= H`.
        faults: `(row, kind)` of every fault in the order of the rows, ready for `DataReport.add`.
    """

    boxes_xyxy: np.ndarray
    is_kept: np.ndarray
    faults: list[tuple[int, str]]


def repair_boxes(boxes_xyxy: np.ndarray, sizes: np.ndarray) -> RepairedBoxes:
    """Returns the boxes clipped to their images, with those dropped that have no area there.

    A box that is not finite, has `x2 <= x1` or `y2 <= y1`, or lies wholly outside its image is dropped. A box that
    reaches half a pixel or more over the edge is clipped and named in `faults`; less is clipped silently. No boxes
    give empty arrays.

    Args:
        boxes_xyxy: `[M, 4]`, corners in pixels, any real dtype; they may hold NaN and infinities.
        sizes: `[M, 2]` (or `[2]`, one size for all boxes), (height, width) of each box's image in pixels.

    Raises:
        ValueError: if the shapes are not as above.

    Example:
        >>> import numpy as np
        >>> repaired = repair_boxes(np.array([[-5.0, 2, 8, 9], [3, 3, 3, 7]]), np.array([10, 10]))
        >>> repaired.boxes_xyxy[repaired.is_kept].tolist()
        [[0.0, 2.0, 8.0, 9.0]]
        >>> repaired.faults
        [(0, 'box outside the image: clipped'), (1, 'box of zero or negative area: dropped')]
    """
    boxes = np.asarray(boxes_xyxy, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes_xyxy must have the shape [M, 4], got {list(boxes.shape)}")
    image_sizes = np.asarray(sizes)
    if image_sizes.shape not in ((2,), (len(boxes), 2)):
        raise ValueError(f"sizes must have the shape [2] or [{len(boxes)}, 2], got {list(image_sizes.shape)}")

    limits = np.broadcast_to(image_sizes[..., [1, 0, 1, 0]], boxes.shape).astype(np.float64)
    is_finite = np.asarray(np.isfinite(boxes).all(axis=1))
    boxes = np.where(is_finite[:, None], boxes, 0.0)
    clipped = np.clip(boxes, 0.0, limits)
    # Areas are compared in float32, the type that is handed on: corners that differ in float64 may fall together.
    clipped_float32 = clipped.astype(np.float32)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    has_area_inside = (clipped_float32[:, 2:] > clipped_float32[:, :2]).all(axis=1)
    is_kept = np.asarray(is_finite & has_area & has_area_inside)
    is_outside = (np.abs(clipped - boxes) >= SILENT_OVERSHOOT).any(axis=1)
    is_wholly_outside = ((boxes[:, :2] >= limits[:, :2]) | (boxes[:, 2:] <= 0.0)).any(axis=1)

    kinds = np.select(
        [~is_finite, ~has_area, is_wholly_outside, ~has_area_inside, is_outside],
        [NOT_FINITE, NO_AREA, WHOLLY_OUTSIDE, NO_AREA, CLIPPED],
        default="",
    )
    faults = [(int(row), str(kinds[row])) for row in np.flatnonzero(kinds != "")]
    return RepairedBoxes(np.where(is_kept[:, None], clipped_float32, np.float32(0.0)), is_kept, faults)


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """One image as a document lists it: its id, its file relative to the images folder, (height, width) if stated."""

    image_id: int
    file_name: str
    size: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class AnnotationArrays:
    """M annotations of known images and classes, with boxes as annotated.

    Attributes:
        image_index: int64 `[M]`, position of the image in the list of image ids.
        labels: int32 `[M]`, class index in 0..K-1.
        bbox: float64 `[M, 4]`, (x, y, width, height) in pixels; may hold NaN and infinities.
        area: float64 `[M]`, in square pixels; width times height where the document has none.
        is_crowd: bool `[M]`.
        ids: int64 `[M]`, distinct and not 0.
    """

    image_index: np.ndarray
    labels: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    is_crowd: np.ndarray
    ids: np.ndarray


def read_classes(
    categories: Sequence[Any],
    *,
    where: str,
    class_names: Sequence[str] = (),
    category_ids: Sequence[int] = (),
    report: DataReport,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the class names and category ids in label order, which is that of the ids unless classes are given.

    Args:
        categories: a document's list of `{"id": integer, "name": text}`.
        where: the document, for messages.
        class_names: names in the label order wanted; alone, each must be listed.
        category_ids: ids in the label order wanted; alone, each must be listed.
        report: takes a finding for each name that several ids share, which is made distinct by its id.

    Raises:
        DataError: if there is no class, an entry is malformed, an id has two classes, a class asked for is not
            listed, or the list contradicts the classes asked for.

    Example:
        >>> read_classes([{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}], where="a.json", report=DataReport())
        (('dog', 'cat'), (3, 7))
    """
    listed: dict[int, str] = {}
    for entry in categories:
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not isinstance(entry.get("name"), str):
            shown = reprlib.repr(entry)
            raise DataError(f'{where}: category {shown} must be {{"id": integer, "name": text}}; correct the entry')
        if entry["id"] in listed:
            raise DataError(
                f"{where}: category id {entry['id']} stands for two classes, {listed[entry['id']]!r} and "
                f"{entry['name']!r}; give every class its own id"
            )
        listed[entry["id"]] = entry["name"]
    names, ids = tuple(class_names), tuple(category_ids)
    for what, values in (("class_names", names), ("category_ids", ids)):
        if len(set(values)) != len(values):
            raise DataError(f"{what} holds a value twice: {list(values)}; give every class once")
    if names and ids:
        return _require_agreement(listed, names, ids, where)
    if not listed:
        raise DataError(f"{where} lists no categories; add the classes of its annotations to 'categories'")
    if ids:
        for category_id in ids:
            if category_id not in listed:
                raise DataError(f"{where} has no category id {category_id}; it has {sorted(listed)}")
        return tuple(listed[category_id] for category_id in ids), ids
    if names:
        id_of = {name: category_id for category_id, name in reversed(listed.items())}
        for name in names:
            if name not in id_of:
                near = difflib.get_close_matches(name, id_of, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {sorted(id_of)}"
                raise DataError(f"{where} has no class {name!r}; {hint}")
        return names, tuple(id_of[name] for name in names)
    ids = tuple(sorted(listed))
    repeated = {name for name, count in collections.Counter(listed.values()).items() if count > 1}
    for name in sorted(repeated):
        report.add(f"class name {name!r} with several category ids: id added to the name", where)
    return tuple(f"{listed[k]} ({k})" if listed[k] in repeated else listed[k] for k in ids), ids


def _require_agreement(
    listed: dict[int, str], names: tuple[str, ...], ids: tuple[int, ...], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the classes asked for, if the listed ones do not contradict them."""
    if len(names) != len(ids):
        raise DataError(f"class_names has {len(names)} entries and category_ids {len(ids)}; give one id a name")
    name_of, id_of = dict(zip(ids, names)), dict(zip(names, ids))
    for category_id, name in listed.items():
        expected_name, expected_id = name_of.get(category_id, name), id_of.get(name, category_id)
        if (expected_name, expected_id) != (name, category_id):
            raise DataError(
                f"{where}: category id {category_id} is {name!r}, but the classes asked for have "
                f"{name_of.get(category_id, 'no class')!r} there and {name!r} as id {id_of.get(name, 'none')}; use "
                "annotation files whose categories agree"
            )
    return names, ids


def read_image_entries(
    images: Sequence[Any], *, where: str, report: DataReport
) -> tuple[list[ImageEntry], set[Hashable]]:
    """Returns the usable image entries in their order, and the ids of the entries skipped.

    Skipped and reported are entries without an integer id or a file name, with an id used before, or with a file
    name that leads out of the images folder.

    Args:
        images: a document's list of `{"id", "file_name", "height", "width"}`; in place of `file_name` there may be
            LVIS's `coco_url`, of which the last folder and the name count.
        where: the document, for messages.
        report: takes the findings.
    """
    entries: dict[int, ImageEntry] = {}
    skipped: set[Hashable] = set()
    for image in images:
        entry = image if isinstance(image, dict) else {}
        image_id: Any = entry.get("id")
        file_name = entry.get("file_name") or _file_of_url(entry.get("coco_url"))
        if not _is_id(image_id) or not isinstance(file_name, str) or not file_name:
            name = file_name if isinstance(file_name, str) and file_name else where
            report.add("image entry without an integer id and a file name: skipped", name)
            if image_id is not None and isinstance(image_id, Hashable):
                skipped.add(image_id)
        elif image_id in entries:
            report.add("image id used before: image skipped", file_name, image_id=image_id)
        elif leaves_folder(file_name):
            report.add("file name that leads out of the images folder: image skipped", file_name, image_id=image_id)
            skipped.add(image_id)
        else:
            height, width = _pixels(entry.get("height")), _pixels(entry.get("width"))
            entries[image_id] = ImageEntry(image_id, file_name, (height, width) if height and width else None)
    return list(entries.values()), skipped - entries.keys()


def _file_of_url(url: Any) -> str | None:
    """Returns folder and name of a file of COCO by its address, which is what LVIS has in place of a file name."""
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


def leaves_folder(file_name: str) -> bool:
    """Returns whether a relative file name is none, or would lead out of the folder that it is relative to.

    Example:
        >>> [leaves_folder(name) for name in ("a/b.jpg", "a/../b.jpg", "../b.jpg", "/b.jpg")]
        [False, False, True, True]
    """
    depth = 0
    parts = file_name.replace("\\", "/").split("/")
    for part in parts:
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return True
    return parts[0] == "" or parts[0].endswith(":")


def read_annotations(
    annotations: Sequence[Any],
    *,
    where: str,
    image_ids: Sequence[int],
    file_names: Sequence[str],
    skipped_ids: Collection[Hashable],
    category_ids: Sequence[int],
    report: DataReport,
) -> tuple[AnnotationArrays, list[int | None]]:
    """Returns the usable annotations in their order, and the id that the document gives to each of them.

    Dropped and reported are annotations of unknown images or categories, and those whose bbox is not a list of four
    numbers. Annotations of images that were skipped go with them, without a finding of their own.

    Args:
        annotations: a document's list of `{"id", "image_id", "category_id", "bbox", "area", "iscrowd"}`; the last
            two may be missing.
        where: the document, for messages.
        image_ids: the ids of the images kept.
        file_names: their files, for messages.
        skipped_ids: ids of images that are listed but not kept.
        category_ids: the category ids in label order.
        report: takes the findings.
    """
    entries = [entry if isinstance(entry, dict) else {} for entry in annotations]
    index_of: dict[Hashable, int] = {image_id: index for index, image_id in enumerate(image_ids)}
    index_of.update((image_id, _OF_SKIPPED_IMAGE) for image_id in skipped_ids)
    label_of: dict[Hashable, int] = {category_id: label for label, category_id in enumerate(category_ids)}
    image_index = np.array(_look_up(index_of, [entry.get("image_id") for entry in entries]), np.int64)
    labels = np.array(_look_up(label_of, [entry.get("category_id") for entry in entries]), np.int32)
    bbox, is_bbox = _float_rows([entry.get("bbox") for entry in entries])
    raw_ids = [entry.get("id") for entry in entries]
    original_ids = [value if _is_id(value) else None for value in raw_ids]

    for row in np.flatnonzero((image_index == _UNKNOWN) | ((image_index >= 0) & ((labels < 0) | ~is_bbox))).tolist():
        image_id = entries[row].get("image_id")
        if image_index[row] == _UNKNOWN:
            kind, file_name = "annotation of an unknown image: dropped", where
        else:
            file_name = file_names[image_index[row]]
            kind = "annotation of an unknown category: dropped"
            if labels[row] >= 0:
                kind = "annotation without a bbox of four numbers: dropped"
        image_id = image_id if _is_id(image_id) else None
        report.add(kind, file_name, image_id=image_id, annotation_id=original_ids[row])

    rows = np.flatnonzero((image_index >= 0) & (labels >= 0) & is_bbox)
    distinct = set(original_ids)
    if None in distinct or 0 in distinct or len(distinct) < len(original_ids):
        report.add("annotation ids missing, repeated or 0: numbered from 1 for the evaluation", where)
        ids = np.arange(1, len(entries) + 1)
    else:
        ids = np.array(original_ids, np.int64)
    area, has_area = _float_rows([[entry.get("area")] for entry in entries], width=1)
    with np.errstate(over="ignore", invalid="ignore"):
        area = np.where(has_area & np.isfinite(area[:, 0]), area[:, 0], bbox[:, 2] * bbox[:, 3])
    arrays = AnnotationArrays(
        image_index=image_index[rows],
        labels=labels[rows],
        bbox=bbox[rows],
        area=area[rows],
        is_crowd=np.array([entry.get("iscrowd") in (1, "1") for entry in entries], bool)[rows],
        ids=ids[rows],
    )
    return arrays, [original_ids[row] for row in rows.tolist()]


def _is_id(value: Any) -> bool:
    """Returns whether a value is an integer that fits int64; JSON's true and 1.0 are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def _pixels(value: Any) -> int | None:
    """Returns a positive whole number as an integer, None for all else; no image has 2^31 pixels a side."""
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole and 0 < value < 2**31 else None


def _look_up(table: dict[Hashable, int], keys: list[Any]) -> list[int]:
    """Returns the table's value for every key, `_UNKNOWN` for keys that it lacks."""
    try:
        return [table.get(key, _UNKNOWN) for key in keys]
    except TypeError:  # a key that is a list or an object
        return [table.get(key, _UNKNOWN) if isinstance(key, Hashable) else _UNKNOWN for key in keys]


def _float_rows(values: list[Any], *, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Returns float64 `[M, width]`, and bool `[M]`: whether a value is a list of `width` numbers; NaN where not."""
    is_row = np.array([isinstance(value, list) and len(value) == width for value in values], bool)
    rows = np.full((len(values), width), np.nan)
    chosen = [value for value, good in zip(values, is_row) if good]
    try:
        rows[is_row] = np.array(chosen, np.float64).reshape(-1, width)
    except (TypeError, ValueError, OverflowError):
        for position in np.flatnonzero(is_row):
            try:
                rows[position] = np.array(values[position], np.float64)
            except (TypeError, ValueError, OverflowError):
                is_row[position] = False
    return rows, is_row
