"""The Grain input pipeline: any source becomes batches of fixed shape, each a pure function of seed and step.

A plan of the run (which image at which place, with which random numbers) is shuffled, repeated and batched as Grain
`MapDataset`s of small integers; only then are the images of one batch read, straight into the batch's arrays, so that
nothing is stacked afterwards. Because each batch depends on its position alone, `plan[step:]` resumes a run exactly,
and neither the number of threads nor the number of hosts changes any number.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Generator

import cv2
import grain
import numpy as np

from focaljax.data.augmentation import Augmentation
from focaljax.data.cache import CachedSource
from focaljax.data.example import DataError, Example, Source, UnreadableImageError
from focaljax.data.mixing import training_view
from focaljax.data.report import DataReport
from focaljax.data.transforms import resize_and_pad

Batch = dict[str, np.ndarray]

# So many unreadable images one after the other are not single damaged files but a missing disk or a wrong folder.
MAX_UNREADABLE_IN_A_ROW = 100

PADDING_LABEL = -1  # 'labels' of the rows that hold no box
NO_IMAGE_ID = -1  # 'image_id' of an image that could not be read

_logger = logging.getLogger("focaljax.data")


def training_batches(
    source: Source,
    *,
    batch_size: int,
    height: int,
    width: int,
    max_boxes: int,
    seed: int,
    augmentation: Augmentation,
    start_step: int = 0,
    num_threads: int | None = None,
    prefetch: int = 4,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Returns an endless iterator of augmented training batches, from step `start_step` on.

    Every epoch holds every image once, in an order and with an augmentation of its own; a batch may span two epochs.
    The batch of a step is the same whichever step the iterator started from. An image that cannot be read is replaced
    by the next readable one of the source; an image with more than N = `max_boxes` boxes in view keeps the N largest,
    crowd regions last. Both are logged once per image to the logger `focaljax.data` and added to `source.report`; of
    images made of several, too many boxes once for all.

    Args:
        source: the images and their boxes.
        batch_size: number of images B of the global batch, over all hosts.
        height, width: shape of the images that come out, in pixels.
        max_boxes: N, rows for boxes; `source.max_boxes * augmentation.images_in_view` keeps all.
        seed: at least 0; decides order and augmentation.
        augmentation: what may be changed at random; see `focaljax.data.mixing.training_view`.
        start_step: the step, counted from 0, whose batch comes first.
        num_threads: threads that each read whole batches; None for one a CPU core, 0 to read in the caller's thread.
        prefetch: batches that are read ahead; never fewer than there are threads. They are held in memory.
        shard: this host's index i and the number n of hosts; host i gets rows i * B / n up to (i + 1) * B / n of every
            global batch.

    Returns:
        An iterator of dicts, in which B is the host's share of the batch; its `close()` ends the threads:

        - `image`: uint8 `[B, height, width, 3]`, content top-left, zeros elsewhere.
        - `size`: int32 `[B, 2]`, height and width of the content.
        - `boxes`: float32 `[B, N, 4]`, xyxy in pixels of `image`; zeros in rows without a box.
        - `labels`: int32 `[B, N]`, class in 0..K-1; -1 in rows without a box.
        - `is_crowd`: bool `[B, N]`.
        - `is_box`: bool `[B, N]`, the row holds a box (crowd regions included).
        - `image_id`: int64 `[B]`; of an image made of several, the first one's.
        - `original_size`: int32 `[B, 2]`, height and width of the source image.
        - `is_valid`: bool `[B]`, always True here.

    Raises:
        ValueError: an argument is out of range, or the batch does not divide among the hosts.
        DataError: the source is empty, or (from the iterator) too many images in a row cannot be read. Any other
            exception of the source comes out of the iterator as it is.
    """
    _check_at_least(0, seed=seed, start_step=start_step)
    _check_at_least(1, max_boxes=max_boxes)
    rows = _host_rows(source, batch_size, height, width, shard)
    plan = grain.MapDataset.range(len(source)).seed(seed).shuffle().random_map(_draw_key).repeat()
    batches = plan.batch(batch_size, drop_remainder=True).map(
        _ReadTrainingBatch(source, rows, height, width, max_boxes, augmentation)
    )
    return _iterate(batches[start_step:], _read_options(num_threads, prefetch))


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    height: int,
    width: int,
    largest_sides: tuple[int, int] | None = None,
    num_threads: int | None = None,
    prefetch: int = 4,
    shard: tuple[int, int] = (0, 1),
) -> Generator[Batch, None, None]:
    """Returns an iterator over every image once, in the source's order, resized to fit and padded.

    The last batch is filled up with images that came before, marked `is_valid` False. An image that cannot be read is
    black, has `image_id` -1 and `is_valid` False; it is logged and added to `source.report` as in `training_batches`.

    Args:
        source: the images; their boxes are not used.
        batch_size: number of images B of the global batch, over all hosts.
        height, width: shape of the images that come out, in pixels.
        largest_sides: of the shorter and the longer side of an image in it, see `resize_and_pad`.
        num_threads, prefetch, shard: as in `training_batches`. Every host gets the same number of batches.

    Returns:
        An iterator of dicts with `image`, `size`, `image_id`, `original_size` and `is_valid` as in `training_batches`;
        `focaljax.data.resize.restore_boxes` takes boxes from `size` back to `original_size`.

    Raises:
        ValueError: an argument is out of range, or the batch does not divide among the hosts.
        DataError: the source is empty, or (from the iterator) too many images in a row, or all of this host's,
            cannot be read.
    """
    rows = _host_rows(source, batch_size, height, width, shard)
    num_batches = -(-len(source) // batch_size)
    batches = (
        grain.MapDataset.range(num_batches * batch_size)
        .batch(batch_size)
        .map(_ReadEvaluationBatch(source, rows, height, width, largest_sides))
    )
    iterator = _iterate(batches, _read_options(num_threads, prefetch))
    # A host meets its own rows alone: of the few that a small data set leaves it, all.
    own_rows = num_batches * (rows.stop - rows.start)
    return _stop_at_unreadable_run(iterator, min(MAX_UNREADABLE_IN_A_ROW, len(source), own_rows))


def _draw_key(index: int, rng: np.random.Generator) -> np.ndarray:
    """Adds to an image's index a key that differs from epoch to epoch, from which all its random numbers follow."""
    return np.array([index, rng.integers(np.iinfo(np.int64).max)], np.int64)


class _Findings:
    """Logs a finding and adds it to a report the first time that it is met, whichever thread meets it."""

    def __init__(self, report: DataReport) -> None:
        self._report = report
        self._known = {(finding.kind, finding.file_name, finding.image_id) for finding in report.findings}
        self._lock = threading.Lock()

    def __reduce__(self):
        return (_Findings, (self._report,))  # a lock cannot be pickled

    def add(self, kind: str, file_name: str, image_id: int | None = None) -> None:
        with self._lock:
            if (kind, file_name, image_id) in self._known:
                return
            self._known.add((kind, file_name, image_id))
            self._report.add(kind, file_name, image_id=image_id)
        _logger.warning("%s: %s", kind, self._report.findings[-1])


class _ReadTrainingBatch:
    """Turns a batch of the plan, int64 `[B, 2]` of image index and key, into this host's rows of a training batch."""

    def __init__(
        self, source: Source, rows: slice, height: int, width: int, max_boxes: int, augmentation: Augmentation
    ) -> None:
        self._source = source
        self._rows = rows
        self._height = height
        self._width = width
        self._max_boxes = max_boxes
        self._augmentation = augmentation
        self._read = _reader(source, (height, width) if augmentation.flips_only else None)
        self._findings = _Findings(source.report)

    def __call__(self, plan: np.ndarray) -> Batch:
        plan = plan[self._rows]
        B, N = len(plan), self._max_boxes
        batch = _blank_batch(B, self._height, self._width)
        batch |= {
            "boxes": np.zeros((B, N, 4), np.float32),
            "labels": np.full((B, N), PADDING_LABEL, np.int32),
            "is_crowd": np.zeros((B, N), bool),
            "is_box": np.zeros((B, N), bool),
        }
        for row, (index, key) in enumerate(plan.tolist()):
            example = self._read_next_readable(index)
            view = training_view(
                np.random.Generator(np.random.Philox(key=key)),
                example,
                self._draw_example,
                augmentation=self._augmentation,
                height=self._height,
                width=self._width,
                out=batch["image"][row],
            )
            boxes, labels, is_crowd = view.boxes_xyxy, view.labels, view.is_crowd
            if len(boxes) > N:
                self._report_too_many(example, view.images)
                kept = _largest(boxes, is_crowd, N)
                boxes, labels, is_crowd = boxes[kept], labels[kept], is_crowd[kept]
            _describe(batch, row, example, view.size)
            count = len(boxes)
            batch["boxes"][row, :count] = boxes
            batch["labels"][row, :count] = labels
            batch["is_crowd"][row, :count] = is_crowd
            batch["is_box"][row, :count] = True
        return batch

    def _draw_example(self, rng: np.random.Generator) -> Example:
        return self._read_next_readable(int(rng.integers(len(self._source))))

    def _report_too_many(self, example: Example, images: int) -> None:
        where = "" if images == 1 else " in a mosaic or mixup"
        kind = f"more than {self._max_boxes} boxes{where}: the {self._max_boxes} largest kept, crowd regions last"
        if images == 1:
            self._findings.add(kind, example.file_name, example.image_id)
        else:  # which images meet is chance: nearly all would be named sooner or later
            self._findings.add(kind, "various images")

    def _read_next_readable(self, index: int) -> Example:
        tries = min(MAX_UNREADABLE_IN_A_ROW, len(self._source))
        for offset in range(tries):
            try:
                return self._read((index + offset) % len(self._source))
            except UnreadableImageError as error:
                self._findings.add("unreadable image: another one trained on in its place", str(error))
                last_error = error
        raise _too_many_unreadable(tries) from last_error


class _ReadEvaluationBatch:
    """Turns positions, int64 `[B]`, into this host's rows of a batch; those past the last image are padding."""

    def __init__(
        self, source: Source, rows: slice, height: int, width: int, largest_sides: tuple[int, int] | None = None
    ) -> None:
        self._source = source
        self._rows = rows
        self._height = height
        self._width = width
        self._largest_sides = largest_sides
        # A cache has images that just fit, or as they are.
        self._read = _reader(source, None if largest_sides else (height, width))
        self._findings = _Findings(source.report)

    def __call__(self, positions: np.ndarray) -> Batch:
        positions = positions[self._rows]
        batch = _blank_batch(len(positions), self._height, self._width)
        for row, position in enumerate(positions.tolist()):
            try:
                example = self._read(position % len(self._source))
            except UnreadableImageError as error:
                self._findings.add("unreadable image: evaluated as if nothing was found in it", str(error))
                continue
            _, size = resize_and_pad(
                example.image,
                height=self._height,
                width=self._width,
                largest_sides=self._largest_sides,
                out=batch["image"][row],
            )
            _describe(batch, row, example, size)
            batch["is_valid"][row] = position < len(self._source)
        return batch


def _reader(source: Source, shape: tuple[int, int] | None) -> Callable[[int], Example]:
    """Returns what reads an image, from the file of a source that keeps one; see `CachedSource.reader`."""
    return source.reader(shape) if isinstance(source, CachedSource) else source.__getitem__


def _blank_batch(B: int, height: int, width: int) -> Batch:
    """Returns a batch of black images that are not valid; zeros cost nothing until they are written to."""
    return {
        "image": np.zeros((B, height, width, 3), np.uint8),
        "size": np.full((B, 2), (height, width), np.int32),
        "image_id": np.full(B, NO_IMAGE_ID, np.int64),
        "original_size": np.full((B, 2), (height, width), np.int32),
        "is_valid": np.zeros(B, bool),
    }


def _describe(batch: Batch, row: int, example: Example, size: np.ndarray | tuple[int, int]) -> None:
    batch["size"][row] = size
    batch["image_id"][row] = example.image_id
    batch["original_size"][row] = example.size
    batch["is_valid"][row] = True


def _largest(boxes_xyxy: np.ndarray, is_crowd: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices, in their order, of the `count` largest boxes; any object goes before any crowd region."""
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return np.sort(np.lexsort((-areas, is_crowd))[:count])


def _iterate(batches: grain.MapDataset, read_options: grain.ReadOptions) -> Generator[Batch, None, None]:
    """Yields the batches in order, and ends the threads when the caller is done, has closed or dropped the iterator."""
    iterator = iter(batches.to_iter_dataset(read_options))
    try:
        yield from iterator
    finally:
        # Without it the threads idle on until the cyclic garbage collector runs, as they do in Grain 0.2.13.
        if hasattr(iterator, "close"):
            iterator.close()


def _stop_at_unreadable_run(batches: Generator[Batch, None, None], limit: int) -> Generator[Batch, None, None]:
    """Passes batches on; raises `DataError` once `limit` images in a row could not be read."""
    # Counted where the batches come out in order, so that it does not depend on the threads.
    run = 0
    with contextlib.closing(batches):
        for batch in batches:
            for image_id, is_valid in zip(batch["image_id"].tolist(), batch["is_valid"].tolist()):
                run = run + 1 if not is_valid and image_id == NO_IMAGE_ID else 0
                if run == limit:
                    raise _too_many_unreadable(limit)
            yield batch


def _too_many_unreadable(count: int) -> DataError:
    return DataError(
        f"{count} images in a row could not be read; expected single damaged files at most. Check that the images "
        "folder is complete and still mounted; the warnings before this line name the files."
    )


def _host_rows(source: Source, batch_size: int, height: int, width: int, shard: tuple[int, int]) -> slice:
    """Checks what both kinds of batches need and returns the rows of the global batch that this host reads."""
    _check_at_least(1, batch_size=batch_size, height=height, width=width)
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"shard must be (index, count) with 0 <= index < count, got {shard}.")
    if batch_size % count:
        raise ValueError(
            f"batch_size is the global batch and must divide among the {count} hosts, got {batch_size}; "
            f"{batch_size // count * count or count} and {(batch_size // count + 1) * count} do."
        )
    if len(source) == 0:
        raise DataError("the source has no images; expected at least one. Check the split and the data's report.")
    per_host = batch_size // count
    return slice(index * per_host, (index + 1) * per_host)


def _read_options(num_threads: int | None, prefetch: int) -> grain.ReadOptions:
    if num_threads is None:
        num_threads = os.cpu_count() or 1
    _check_at_least(0, num_threads=num_threads, prefetch=prefetch)
    # Grain's threads keep the cores busy; threads of OpenCV's own on top would only wait for each other.
    cv2.setNumThreads(1)
    return grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))


def _check_at_least(smallest: int, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < smallest:
            raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}.")
