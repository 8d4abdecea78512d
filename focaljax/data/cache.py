"""Decoded images of a small data set, kept in a file: each is decoded once, not in every epoch of every run."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import cv2
import numpy as np
import simplejpeg

from focaljax.data.deadline import with_deadline
from focaljax.data.example import DataError, Example, Source, UnreadableImageError
from focaljax.data.transforms import resize_and_pad

T = TypeVar("T")

# Counted up whenever the same files would give other pixels, or the file has another form.
_FORMAT = 1
_COLUMNS = 5  # of the table: offset, height and width of the pixels, height and width of the image that they are of
_KEY_BYTES = hashlib.sha256().digest_size

_logger = logging.getLogger("focaljax.data")


def _untracked(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    return items


class CachedSource:
    """A source whose images the input pipeline reads, decoded, from a file; see `focaljax.data.example.Source`.

    Batches are the same as those of the source itself, to the bit. The file is made when it is first needed, which
    takes about as long as an epoch's reading, and holds three bytes a pixel; where it lies should be in memory or on a
    fast disk. It is made anew where it is incomplete or the source or a library that decodes is another one. Several
    processes may use it, and make it, at once; for each split and size there is one, so every data set needs a folder
    of its own.

    Args:
        source: any source. `source[index]` stays as it is, and decodes.
        folder: for the files; made if need be. It may be deleted when no run uses it.
        name: of the split, in the files' names.
        track: passes on the items, of which there are so many, and shows a person how far they are:
            `track(items, description, total)`.
        timeout: seconds, the longest wait for an image while the file is made.
    """

    def __init__(
        self,
        source: Source,
        folder: str | os.PathLike[str],
        name: str,
        *,
        track: Callable[[Iterable[Any], str, int], Iterable[Any]] = _untracked,
        timeout: float = 600.0,
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._folder = pathlib.Path(folder)
        self._name = name
        self._track = track
        self._readers: dict[tuple[int, int] | None, _KeptImages] = {}
        self.class_names = source.class_names
        self.category_ids = source.category_ids
        self.max_boxes = source.max_boxes
        self.report = source.report

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._source[index]

    def with_image(self, index: int, image: np.ndarray) -> Example:
        """Returns example `index` with this image, which is not read."""
        return self._source.with_image(index, image)

    def fingerprint(self) -> str:
        """Returns that of the source."""
        return self._source.fingerprint()

    def ground_truth(self) -> dict[str, Any]:
        """Returns that of the source."""
        return self._source.ground_truth()

    def reader(self, shape: tuple[int, int] | None) -> Callable[[int], Example]:
        """Returns what gives example `index` from the file, which is made if there is none that fits.

        Args:
            shape: height and width in pixels; images come as `resize_and_pad` makes them for it, without the padding,
                and with `fitted_from` where that is another size. None: as they are.

        Returns:
            A function that may be called by many threads and raises what `source[index]` raises. Its images cannot be
            written to.

        Raises:
            DataError: the file cannot be written, the disk is full.
            StalledError: an image did not come in time.
        """
        if shape not in self._readers:
            size = "decoded" if shape is None else f"{shape[0]}x{shape[1]}"
            path = self._folder / f"{self._name}_{size}.images"
            versions = cv2.__version__, simplejpeg.__version__
            state = repr((_FORMAT, versions, shape, len(self._source), self._source.fingerprint()))
            key = hashlib.sha256(state.encode()).digest()
            try:
                kept = _KeptImages(self._source, path, key)
            except (OSError, ValueError) as error:
                _logger.info("%s is made: %s", path, error)
                self._make(path, key, shape)
                kept = self._opened(path, key)
            self._readers[shape] = kept
        return self._readers[shape]

    def _opened(self, path: pathlib.Path, key: bytes) -> "_KeptImages":
        try:
            return _KeptImages(self._source, path, key)
        except (OSError, ValueError) as error:
            raise DataError(
                f"image cache {path}: {error}, although it was just written; another run writes it for other images: "
                "give every data set a cache folder of its own"
            ) from error

    def _make(self, path: pathlib.Path, key: bytes, shape: tuple[int, int] | None) -> None:
        """Writes the file under another name, and gives it its own when it is whole and on the disk."""
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written, not mapped: on a full disk a mapped file ends the process.
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            offset, table = 0, np.zeros((len(self._source), _COLUMNS), "<i8")
            in_time = with_deadline(self._images(shape), self._timeout, what="image")
            images = self._track(in_time, f"decoding {self._name} for {path.parent}", len(self._source))
            for row, (image, size) in zip(table, images):
                row[:] = offset, image.shape[0], image.shape[1], *size
                offset += image.size
                with _explained(path):
                    _write(descriptor, image.tobytes())
            with _explained(path):
                _write(descriptor, table.tobytes() + key)
                os.fsync(descriptor)
                os.replace(temporary, path)
        finally:
            os.close(descriptor)
            pathlib.Path(temporary).unlink(missing_ok=True)

    def _images(self, shape: tuple[int, int] | None) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Yields the images in their order as they are kept, and their sizes before; empty ones for the unreadable."""

        def read(index: int) -> tuple[np.ndarray, tuple[int, int]]:
            try:
                image = self._source[index].image
            except UnreadableImageError:
                return np.zeros((0, 0, 3), np.uint8), (0, 0)
            size = image.shape[0], image.shape[1]
            if shape is not None:
                padded, (height, width) = resize_and_pad(image, height=shape[0], width=shape[1])
                image = padded[:height, :width]
            return image, size

        threads = os.cpu_count() or 1
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for index in range(len(self._source)):
                waiting.append(pool.submit(read, index))
                if len(waiting) > 2 * threads:  # as many as are held in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class _KeptImages:
    """The images in a file, mapped into memory; a call with an index gives its example.

    The file has the pixels of all images, the table, and the key: where the key is, the file was written to its end.

    Args:
        source: gives the rest of the examples.
        path: the file.
        key: it must have.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is another one than wanted, or incomplete.
    """

    def __init__(self, source: Source, path: pathlib.Path, key: bytes) -> None:
        self._source, self._path, self._key = source, path, key
        content = np.asarray(np.memmap(path, np.uint8, mode="r"))
        pixels_end = len(content) - _KEY_BYTES - 8 * _COLUMNS * len(source)
        if pixels_end < 0 or content[-_KEY_BYTES:].tobytes() != key:
            raise ValueError("it holds other images, or is incomplete")
        self._content = content
        self._table = content[pixels_end:-_KEY_BYTES].copy().view("<i8").reshape(-1, _COLUMNS)

    def __reduce__(self):
        return (_KeptImages, (self._source, self._path, self._key))  # pickled as it is, it would be its pixels

    def __call__(self, index: int) -> Example:
        if not 0 <= index < len(self._table):
            raise IndexError(f"image index {index} is not in 0..{len(self._table) - 1}")
        offset, height, width, old_height, old_width = self._table[index].tolist()
        if not height:
            return self._source[index]  # raises what it raised then
        image = self._content[offset : offset + 3 * height * width].reshape(height, width, 3)
        example = self._source.with_image(index, image)
        if (height, width) == (old_height, old_width):
            return example
        return dataclasses.replace(example, fitted_from=(old_height, old_width))


def _write(descriptor: int, content: bytes) -> None:
    """Writes all bytes; a plain call may write a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turns an error of the operating system into one that says what to do."""
    try:
        yield
    except OSError as error:
        folder = path.parent
        free = f", {shutil.disk_usage(folder).free / 1e9:.1f} GB are free" if folder.is_dir() else ""
        raise DataError(
            f"image cache {path} cannot be written ({error.strerror}{free}; it takes three bytes a pixel): make room, "
            "name another folder, or do without (data.cache='')"
        ) from error
