"""Detection data prepared by TensorFlow Datasets, read from its array_record files without TensorFlow."""

import functools
import importlib
import os
import pathlib
from typing import Any

import numpy as np

from focaljax.data.deadline import DATA_TIMEOUT, StalledError, in_time
from focaljax.data.example import DataError, Example, UnreadableImageError
from focaljax.data.images import decode_image
from focaljax.data.repair import repair_boxes
from focaljax.data.report import DataReport
from focaljax.data.tfds_index import load_or_read_index, parse_record, records_state

_INFO_FILE = "dataset_info.json"


class TfdsSource:
    """A source that reads any prepared TFDS data set with the features of TFDS's `coco` or `voc`.

    Needed are `image` and a sequence `objects` of `bbox` and `label`; used if present are `image/filename`,
    `image/id`, and of the objects `is_crowd`, `is_difficult` (treated as a crowd: neither a target nor background),
    `area` and `id`. Label k stands for category id k + 1. Corners are rounded to a hundredth of a pixel, which undoes
    the rounding of the fractions that TFDS stores. Boxes outside their image are clipped, those without area dropped,
    images that are empty, truncated or of an unknown format left out, and so are those with, say, more boxes than
    labels; all are named in `report`. See `focaljax.data.example.Source` for the attributes.

    All annotations are read at the start; where that takes long they are kept in a file beside the data
    (`focaljax-*.npz`), if that folder is writable, and the next start is quick.

    Args:
        builder_dir_or_name: the folder that holds `dataset_info.json`, a folder above it that holds one configuration,
            or a name such as `coco/2017` or `coco/2017:1.1.0` below `data_dir`. Of several versions the newest is
            taken.
        split: a split's name, or a part in TFDS's notation: `train[:50%]`, `train+validation`.
        data_dir: the folder of TFDS data sets; by default the environment's TFDS_DATA_DIR, or `~/tensorflow_datasets`.
        timeout: the longest wait, in seconds, for the data set's description, and for some of its records.

    Raises:
        DataError: if the data set is not there or has another layout or file format, the split is unknown, no readable
            image remains, or a package is missing.
        StalledError: a disk or network folder hangs.
    """

    def __init__(
        self,
        builder_dir_or_name: str | os.PathLike[str],
        split: str,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        timeout: float = DATA_TIMEOUT,
    ) -> None:
        tfds = _import_tfds()
        find = functools.partial(find_builder_dir, builder_dir_or_name, data_dir=data_dir)
        folder = in_time(find, timeout, what=f"answer from the folder of {os.fspath(builder_dir_or_name)}")
        builder = in_time(lambda: _open_builder(tfds, folder), timeout, what=f"description of the data set in {folder}")
        self.class_names = _class_names(tfds, builder.info.features, folder)
        self.category_ids = tuple(range(1, len(self.class_names) + 1))
        self.report = DataReport()
        # Picklable, safe among threads, and free of TFDS's own decoding.
        open_split = functools.partial(_open_split, tfds, builder, split, folder)
        self._records = in_time(open_split, timeout, what=f"list of the records in {folder}")
        self._folder, self._split = folder, split
        try:
            index = load_or_read_index(self._records, folder, split, timeout=timeout)
        except StalledError:
            raise
        except Exception as error:  # a damaged or missing file shows as one of many errors of the reader
            raise DataError(f"the records of {folder} cannot be read: {error}; prepare the data set again") from error
        self._index = index
        for file_name, image_id, reason in zip(index.skipped_names, index.skipped_ids.tolist(), index.skipped_reasons):
            self.report.add(f"{reason}: image skipped", str(file_name), image_id=image_id)
        if not len(index.records):
            raise DataError(f"split {split!r} of {folder} has no readable image: {'; '.join(self.report.lines())}")
        self._image_ids = self._unique_image_ids()
        self._prepare_boxes()

    def __len__(self) -> int:
        return len(self._index.records)

    def __getitem__(self, index: int) -> Example:
        """Reads and decodes image `index`.

        Raises:
            UnreadableImageError: if it cannot be decoded, or has another size than its header says.
            IndexError: if there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image index {index} is not in 0..{len(self) - 1}")
        file_name, image_id = str(self._index.file_names[index]), int(self._image_ids[index])
        try:
            feature = parse_record(self._records[int(self._index.records[index])])
        except Exception as error:  # the reader's own exceptions vary; damaged data is the one cause that remains
            raise UnreadableImageError(f"{file_name} (image {image_id}): its record is damaged ({error})") from error
        image = decode_image(feature["image"].bytes_list.value[0], file_name=file_name, image_id=image_id)
        return self.with_image(index, image)

    def with_image(self, index: int, image: np.ndarray) -> Example:
        """Returns example `index` with this image, which is not read."""
        rows = slice(self._offsets[index], self._offsets[index + 1])
        return Example(
            image=image,
            boxes_xyxy=self._boxes_xyxy[rows].copy(),
            labels=self._labels[rows].copy(),
            is_crowd=self._is_crowd[rows].copy(),
            image_id=int(self._image_ids[index]),
            file_name=str(self._index.file_names[index]),
        )

    def fingerprint(self) -> str:
        """Returns a text that is another one if the split or any of the data set's files is."""
        return records_state(self._records, self._folder, self._split)

    def ground_truth(self) -> dict[str, Any]:
        """Returns the split in COCO's annotation form, with the boxes as annotated.

        Boxes of zero area are included and `area` is the data set's own where it has one, as in other evaluations of
        the same data; TFDS's coco keeps whole areas only. Left out are boxes that are not finite or of unknown classes.
        Annotation ids are the data set's if they are distinct and not 0, else they count from 1.
        """
        index = self._index
        xywh = np.concatenate([self._annotated[:, :2], self._annotated[:, 2:] - self._annotated[:, :2]], axis=1)
        xywh = np.round(xywh, 2)
        has_area = np.isfinite(index.areas)
        areas = np.where(has_area, index.areas, xywh[:, 2] * xywh[:, 3])
        ids = index.annotation_ids
        if (ids == 0).any() or len(np.unique(ids)) < len(ids):
            ids = np.arange(1, len(ids) + 1)
        rows = np.flatnonzero(np.isfinite(xywh).all(axis=1) & self._is_known)
        return {
            "info": {},
            "images": [
                {"id": image_id, "file_name": str(file_name), "height": height, "width": width}
                for image_id, file_name, (height, width) in zip(
                    self._image_ids.tolist(), index.file_names, index.sizes.tolist()
                )
            ],
            "annotations": [
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": int(is_crowd),
                    "ignore": int(is_crowd),
                }
                for annotation_id, image_id, label, bbox, area, is_crowd in zip(
                    ids[rows].tolist(),
                    self._image_ids[self._image_of[rows]].tolist(),
                    index.labels[rows].tolist(),
                    xywh[rows].tolist(),
                    areas[rows].tolist(),
                    index.is_crowd[rows].tolist(),
                )
            ],
            "categories": [{"id": k, "name": name} for k, name in zip(self.category_ids, self.class_names)],
        }

    def _unique_image_ids(self) -> np.ndarray:
        """Returns the data set's image ids, or the records' numbers from 1 where two images share an id."""
        ids = self._index.image_ids
        if len(np.unique(ids)) == len(ids):
            return ids
        _, first = np.unique(ids, return_index=True)
        for row in np.setdiff1d(np.arange(len(ids)), first).tolist():
            name = str(self._index.file_names[row])
            self.report.add("image id used before: images numbered from 1", name, image_id=int(ids[row]))
        return self._index.records + 1

    def _prepare_boxes(self) -> None:
        """Sets the repaired boxes that examples are slices of, and reports the repairs."""
        index = self._index
        self._image_of = np.repeat(np.arange(len(self)), index.counts)
        sizes = index.sizes[self._image_of]
        # TFDS stores float32 fractions [ymin, xmin, ymax, xmax].
        corners = index.bboxes.astype(np.float64) * sizes[:, [0, 1, 0, 1]]
        self._annotated = np.round(corners, 2)[:, [1, 0, 3, 2]]
        self._is_known = (index.labels >= 0) & (index.labels < len(self.class_names))
        repaired = repair_boxes(self._annotated, sizes)
        faults = [(row, kind) for row, kind in repaired.faults if self._is_known[row]]
        faults += [
            (row, "annotation of an unknown category: dropped") for row in np.flatnonzero(~self._is_known).tolist()
        ]
        for row, kind in faults:
            image = self._image_of[row]
            self.report.add(
                kind,
                str(index.file_names[image]),
                image_id=int(self._image_ids[image]),
                annotation_id=int(index.annotation_ids[row]) or None,
            )
        is_kept = repaired.is_kept & self._is_known
        counts = np.bincount(self._image_of[is_kept], minlength=len(self))
        self._offsets = np.concatenate([[0], np.cumsum(counts)])
        self._boxes_xyxy = repaired.boxes_xyxy[is_kept]
        self._labels = index.labels[is_kept].astype(np.int32)
        self._is_crowd = index.is_crowd[is_kept]
        self.max_boxes = int(counts.max())


def find_builder_dir(name: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> str:
    """Returns the folder with the `dataset_info.json` that a name or folder means; see `TfdsSource`.

    Raises:
        DataError: if there is none, or several configurations to choose from.
    """
    name = os.fspath(name)
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    # The folder above a version is its configuration; of one configuration the newest version is taken.
    found: dict[pathlib.Path, list[pathlib.Path]] = {}
    for base in (root / name.replace(":", "/"), pathlib.Path(name).expanduser()):
        for pattern in ("", "*", "*/*", "*/*/*"):
            for info in sorted(base.glob(f"{pattern}/{_INFO_FILE}" if pattern else _INFO_FILE)):
                inner = info.relative_to(base).parts
                if not any(part.startswith((".", "incomplete")) for part in inner):
                    found.setdefault(info.parent.parent, []).append(info.parent)
            if found:
                break
        if found:
            break
    if not found:
        raise DataError(
            f"no prepared data set {name!r}: neither {root / name.replace(':', '/')} nor {os.path.abspath(name)} holds "
            f"a {_INFO_FILE}; prepare it with tensorflow-datasets (download_and_prepare(file_format='array_record')), "
            "or name the folder that holds it"
        )
    if len(found) > 1:
        raise DataError(f"{name!r} has several configurations: {', '.join(sorted(map(str, found)))}; name one of them")
    (versions,) = found.values()
    return str(max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")]))


def _import_tfds() -> Any:
    try:
        importlib.import_module("array_record.python.array_record_data_source")
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise DataError(
            f"TFDS data sets need a package that is missing ({error}); pip install 'focaljax[tfds]'"
        ) from error


def _open_builder(tfds: Any, folder: str) -> Any:
    try:
        builder = tfds.builder_from_directory(folder)
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
    except Exception as error:  # damaged metadata shows as anything from KeyError to protobuf's own errors
        raise DataError(f"the data set in {folder} cannot be opened: {error}; prepare it again") from error
    if "array_record" not in formats:
        raise DataError(
            f"the data set in {folder} has the file format {', '.join(sorted(formats)) or 'unknown'}; expected "
            "array_record, which can be read without TensorFlow. Prepare it with "
            "download_and_prepare(file_format='array_record'), or convert it where TensorFlow is installed: "
            f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        )
    return builder


def _class_names(tfds: Any, features: Any, folder: str) -> tuple[str, ...]:
    """Returns the names of the label feature, after a check that the features are those of a detection data set."""

    def member(container: Any, name: str) -> Any:
        return container[name] if isinstance(container, tfds.features.FeaturesDict) and name in container else None

    objects = getattr(member(features, "objects"), "feature", None)
    bbox, label = member(objects, "bbox"), member(objects, "label")
    if (
        not isinstance(member(features, "image"), tfds.features.Image)
        or not isinstance(bbox, tfds.features.BBoxFeature)
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise DataError(
            f"the data set in {folder} is not one for detection: expected the features 'image' and 'objects' "
            f"(a sequence with a BBoxFeature 'bbox' and a ClassLabel 'label'), got {features}"
        )
    box_format = getattr(bbox, "bbox_format", None)
    if box_format is not None and box_format.value != "REL_YXYX":
        raise DataError(f"the boxes in {folder} have the format {box_format.value}; only REL_YXYX is supported")
    return tuple(label.names)


def _open_split(tfds: Any, builder: Any, split: str, folder: str) -> Any:
    """Returns the random-access reader of a split's raw records."""
    try:
        source = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format="array_record"
        )
        return source.data_source
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if "0 length" in reason:
            reason = "it holds no images"
        elif "Unknown split" in reason:
            reason = "there is no such split"
        known = ", ".join(f"{name} ({info.num_examples} images)" for name, info in builder.info.splits.items())
        raise DataError(f"split {split!r} of {folder}: {reason}; its splits are {known}") from error
    except OSError as error:
        raise DataError(f"split {split!r} of {folder} cannot be opened: {error}; prepare the data set again") from error
