"""Detection data in COCO's annotation form: an images folder and a JSON file, or a document made in memory."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from focaljax.data import images as image_files
from focaljax.data.deadline import DATA_TIMEOUT, in_time, with_deadline
from focaljax.data.example import DataError, Example, UnreadableImageError
from focaljax.data.files import read_regular_file
from focaljax.data.repair import ImageEntry, read_annotations, read_classes, read_image_entries, repair_boxes
from focaljax.data.report import DataReport

_MEMBERS = ("images", "annotations", "categories")
# Threads hide the latency of network file systems; a task of some hundred files hides the cost of a thread pool.
_CHECK_THREADS = 16
_CHECK_CHUNK = 256


class AnnotatedImages:
    """A source made of a folder of image files and a document in COCO's annotation form.

    Annotations are repaired on reading and every repair is named in `report`; with its original ids, even where
    `ground_truth` has new ones. See `CocoSource` for the rules, and `focaljax.data.example.Source` for the attributes.

    Args:
        images: the images folder; file names in the document are relative to it.
        document: the members `images`, `annotations` and `categories` of a COCO annotation file.
        where: the annotation file or folder, for messages.
        class_names: see `CocoSource`.
        category_ids: see `CocoSource`.
        check_images: see `CocoSource`.
        timeout: see `CocoSource`.
        report: findings that were made before, to be continued.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        document: Mapping[str, Any],
        *,
        where: str,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        check_images: bool = True,
        timeout: float = DATA_TIMEOUT,
        report: DataReport | None = None,
    ) -> None:
        self.report = DataReport() if report is None else report
        self._folder = os.fspath(images)
        self.class_names, self.category_ids = read_classes(
            document["categories"],
            where=where,
            class_names=class_names,
            category_ids=category_ids,
            report=self.report,
        )
        listed, skipped_ids = read_image_entries(document["images"], where=where, report=self.report)
        kept = _readable(self._folder, listed, check_images=check_images, timeout=timeout, report=self.report)
        if not kept:
            raise DataError(_nothing_remains(self._folder, where, len(document["images"]), self.report))
        self._file_names = [entry.file_name for entry in kept]
        self._image_ids = [entry.image_id for entry in kept]
        self._sizes = np.array([entry.size for entry in kept], np.int64)

        truth, original_ids = read_annotations(
            document["annotations"],
            where=where,
            image_ids=self._image_ids,
            file_names=self._file_names,
            skipped_ids=skipped_ids | ({entry.image_id for entry in listed} - set(self._image_ids)),
            category_ids=self.category_ids,
            report=self.report,
        )
        self._truth = truth
        with np.errstate(over="ignore", invalid="ignore"):
            boxes_xyxy = np.concatenate([truth.bbox[:, :2], truth.bbox[:, :2] + truth.bbox[:, 2:]], axis=1)
        repaired = repair_boxes(boxes_xyxy, self._sizes[truth.image_index])
        for row, kind in repaired.faults:
            index = truth.image_index[row]
            self.report.add(
                kind,
                self._file_names[index],
                image_id=self._image_ids[index],
                annotation_id=original_ids[row],
            )
        # Boxes of one image lie side by side, so that an example is a slice.
        rows = np.flatnonzero(repaired.is_kept)
        rows = rows[np.argsort(truth.image_index[rows], kind="stable")]
        counts = np.bincount(truth.image_index[rows], minlength=len(kept))
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._boxes_xyxy = repaired.boxes_xyxy[rows]
        self._labels = truth.labels[rows]
        self._is_crowd = truth.is_crowd[rows]
        self.max_boxes = int(counts.max())

    def __len__(self) -> int:
        return len(self._file_names)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes image `index`.

        Raises:
            UnreadableImageError: if its file cannot be read or decoded, or has not the annotated size.
            IndexError: if there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image index {index} is not in 0..{len(self) - 1}")
        file_name, image_id = self._file_names[index], self._image_ids[index]
        try:
            encoded = read_regular_file(os.path.join(self._folder, file_name))
        except OSError as error:
            raise UnreadableImageError(f"{file_name} (image {image_id}): {error.strerror} in {self._folder}") from error
        height, width = self._sizes[index].tolist()
        image = image_files.decode_image(encoded, file_name=file_name, image_id=image_id, expected_size=(height, width))
        return self.with_image(index, image)

    def with_image(self, index: int, image: np.ndarray) -> Example:
        """Returns example `index` with this image, which is not read."""
        # Copies: what a caller does with an example must not change the next one.
        rows = slice(self._offsets[index], self._offsets[index + 1])
        return Example(
            image=image,
            boxes_xyxy=self._boxes_xyxy[rows].copy(),
            labels=self._labels[rows].copy(),
            is_crowd=self._is_crowd[rows].copy(),
            image_id=self._image_ids[index],
            file_name=self._file_names[index],
        )

    def fingerprint(self) -> str:
        """Returns a text that is another one if any image file has another name, time or size."""
        digest = hashlib.sha256(self._sizes.tobytes())
        for file_name in self._file_names:
            try:
                state = os.stat(os.path.join(self._folder, file_name))
            except (OSError, ValueError):  # ValueError: no file can have the name
                digest.update(repr((file_name, None)).encode())
            else:
                digest.update(repr((file_name, state.st_size, state.st_mtime_ns)).encode())
        return digest.hexdigest()

    def ground_truth(self) -> dict[str, Any]:
        """Returns the images kept with their annotations as they were, unclipped, in COCO's annotation form.

        Boxes, areas and crowd flags are those of the document, boxes of zero area included, so that AP equals that of
        other evaluations of the same file. Left out are annotations that cannot be evaluated (no finite box, a width
        or height below 0, unknown category) and outlines. A missing area becomes width times height. Annotation ids
        are kept if they are distinct non-zero integers; else all are numbered from 1, as pycocotools takes id 0 for
        'not matched'.
        """
        truth = self._truth
        is_box = np.isfinite(truth.bbox).all(axis=1) & np.isfinite(truth.area) & (truth.bbox[:, 2:] >= 0).all(axis=1)
        columns = zip(
            truth.ids.tolist(),
            truth.image_index.tolist(),
            truth.labels.tolist(),
            truth.bbox.tolist(),
            truth.area.tolist(),
            truth.is_crowd.tolist(),
        )
        return {
            "info": {},
            "images": [
                {"id": image_id, "file_name": file_name, "height": height, "width": width}
                for image_id, file_name, (height, width) in zip(self._image_ids, self._file_names, self._sizes.tolist())
            ],
            "annotations": [
                {
                    "id": annotation_id,
                    "image_id": self._image_ids[image_index],
                    "category_id": self.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(is_crowd),
                    "ignore": int(is_crowd),
                }
                for annotation_id, image_index, label, bbox, area, is_crowd in itertools.compress(columns, is_box)
            ],
            "categories": [{"id": k, "name": name} for k, name in zip(self.category_ids, self.class_names)],
        }


class CocoSource(AnnotatedImages):
    """A source that reads COCO's annotation form: an images folder and one JSON file.

    Images without boxes are kept. Label k is the class with the k-th smallest category id; classes that never occur
    count too. Repaired or left out, and named in `report`: images that are missing, unreadable, of another size than
    annotated, listed twice, or whose name leads out of the folder; annotations of unknown images or categories;
    boxes outside their image (clipped to it), without area, or not of four finite numbers. An image whose annotated
    size is that of its EXIF orientation is turned upright.

    Args:
        images: the images folder; file names in the JSON are relative to it.
        annotations: the JSON file.
        check_images: whether every image file is looked at now (its header and end, see
            `focaljax.data.images.check_image_file`), so that unreadable ones are left out at the start. If False, they
            show when they are read, and only images without an annotated size are looked at.
        class_names: the class of every label, where it must be that of another file (the training split's). Alone:
            annotations of other classes are left out, and every name must be in the JSON.
        category_ids: as `class_names`, by category id. With both given, label k is id `category_ids[k]` named
            `class_names[k]`, also if the JSON lacks it.
        timeout: the longest wait, in seconds, for the annotation file, and for the look at some hundred image files.

    Raises:
        StalledError: a disk or network folder hangs.
        DataError: if the file or folder is missing, the JSON is invalid or has not the members of a COCO annotation
            file, its categories are contradictory, or no readable image remains.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        check_images: bool = True,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        timeout: float = DATA_TIMEOUT,
    ) -> None:
        document = read_coco_json(annotations, timeout=timeout)
        require_folder(images, "images folder", timeout=timeout)
        super().__init__(
            images,
            document,
            where=os.fspath(annotations),
            class_names=class_names,
            category_ids=category_ids,
            check_images=check_images,
            timeout=timeout,
        )


def read_coco_json(path: str | os.PathLike[str], *, timeout: float = DATA_TIMEOUT) -> dict[str, Any]:
    """Returns a COCO annotation file's content; outlines (`segmentation`), most of its bytes, are left out.

    Args:
        path: the JSON file, UTF-8.
        timeout: the longest wait for it, in seconds.

    Raises:
        StalledError: the file hangs.
        DataError: if the file cannot be read, is not valid JSON (with line and column), or is not an object with the
            lists `images`, `annotations` and `categories`.
    """
    name = os.fspath(path)
    try:
        read = functools.partial(pathlib.Path(path).read_text, encoding="utf-8-sig")
        text = in_time(read, timeout, what=f"annotation file {name}")
    except FileNotFoundError:
        raise DataError(f"annotation file {name} does not exist; correct the path") from None
    except OSError as error:
        raise DataError(
            f"annotation file {name} cannot be read ({error.strerror}); give a readable JSON file"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"annotation file {name} is not UTF-8 text ({error}); give a COCO JSON file") from None
    try:
        document = json.loads(text, object_hook=_without_outline)
    except json.JSONDecodeError as error:
        raise DataError(
            f"annotation file {name} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "the file may be incomplete: fetch or write it again"
        ) from None
    except RecursionError:
        raise DataError(f"annotation file {name} is nested too deeply for a COCO annotation file") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(f"annotation file {name} holds a number that is none of COCO's: {error}") from None
    if not isinstance(document, dict):
        raise DataError(
            f"annotation file {name} holds a JSON {type(document).__name__}; expected an object with the lists "
            f"{', '.join(_MEMBERS)}. A COCO results file holds detections and cannot be read as annotations"
        )
    for member in _MEMBERS:
        if not isinstance(document.get(member), list):
            found = f"a {type(document[member]).__name__}" if member in document else "missing"
            raise DataError(
                f"annotation file {name}: {member!r} is {found}; expected a list. A COCO annotation file has the "
                f"lists {', '.join(_MEMBERS)}, this one has {', '.join(map(repr, document)) or 'no members'}"
            )
    return document


def require_folder(path: str | os.PathLike[str], what: str, *, timeout: float = DATA_TIMEOUT) -> None:
    """Raises a `DataError` that names `path` unless it is a folder; `what` says what it should hold.

    Raises:
        DataError: see above.
        StalledError: there was no answer within `timeout` seconds.
    """
    if not in_time(lambda: os.path.isdir(path), timeout, what=f"answer from {what} {os.fspath(path)}"):
        state = "is not a folder" if os.path.exists(path) else "does not exist"
        raise DataError(f"{what} {os.fspath(path)} {state}; correct the path")


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Drops an annotation's outline while the file is parsed, before a million of them fill the memory."""
    entry.pop("segmentation", None)
    return entry


def _readable(
    folder: str, entries: list[ImageEntry], *, check_images: bool, timeout: float, report: DataReport
) -> list[ImageEntry]:
    """Returns the entries whose file looks whole and has the annotated size, each with its size."""
    to_check = [entry for entry in entries if check_images or entry.size is None]

    def check(chunk: list[ImageEntry]) -> list[tuple[str | None, tuple[int, int] | None]]:
        return [
            image_files.check_image_file(os.path.join(folder, entry.file_name), expected_size=entry.size)
            for entry in chunk
        ]

    chunks = [to_check[start : start + _CHECK_CHUNK] for start in range(0, len(to_check), _CHECK_CHUNK)]
    pool = concurrent.futures.ThreadPoolExecutor(_CHECK_THREADS)
    try:
        checked = with_deadline(pool.map(check, chunks), timeout, what=f"check of {_CHECK_CHUNK} images in {folder}")
        results = itertools.chain.from_iterable(list(checked))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a thread that hangs would be waited for
    kept = []
    for entry in entries:
        if not check_images and entry.size is not None:
            kept.append(entry)
            continue
        reason, size = next(results)
        if reason is not None:
            report.add(f"{reason}: image skipped", entry.file_name, image_id=entry.image_id)
        elif entry.size is None:
            report.add("image without an annotated size: taken from the file", entry.file_name, image_id=entry.image_id)
            kept.append(dataclasses.replace(entry, size=size))
        elif size != entry.size:
            report.add("image of another size than annotated: image skipped", entry.file_name, image_id=entry.image_id)
        else:
            kept.append(entry)
    return kept


def _nothing_remains(folder: str, where: str, listed: int, report: DataReport) -> str:
    """Returns the message for a document without one usable image."""
    if not listed:
        return f"{where} lists no images; expected at least one entry in 'images'"
    return (
        f"none of the {listed} images in {where} can be used with the images folder {folder}; check that the folder "
        f"belongs to the annotations. Found: {'; '.join(report.lines(examples=1))}"
    )
