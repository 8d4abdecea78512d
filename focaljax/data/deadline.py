"""A bound on how long is waited for data."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from focaljax.data.example import DataError

T = TypeVar("T")

DATA_TIMEOUT = 600.0  # seconds


class StalledError(DataError):
    """The data did not come in time; the threads that read it may hang for ever."""


def with_deadline(items: Iterator[T], seconds: float, *, what: str = "batch") -> Generator[T, None, None]:
    """Yields the items, which another thread takes one ahead; an error of theirs comes out where the item would.

    Args:
        items: such as batches that threads read from files.
        seconds: the longest wait for the next one; above 0.
        what: an item is, for the message.

    Raises:
        StalledError: the next item did not come in time, or the thread that takes them is gone.

    Example:
        >>> list(with_deadline(iter("ab"), seconds=60.0))
        ['a', 'b']
    """
    found: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=1)
    is_closed = threading.Event()

    def give(kind: str, value: T | BaseException | None) -> None:
        while not is_closed.is_set():
            try:
                found.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return

    def take() -> None:
        try:
            for item in items:
                give("item", item)
                if is_closed.is_set():
                    break
            give("end", None)
        except BaseException as error:
            give("error", error)
        finally:
            if hasattr(items, "close"):
                items.close()

    # A daemon: one that hangs in a file must not keep the process from ending.
    threading.Thread(target=take, name="batches", daemon=True).start()
    try:
        while True:
            try:
                kind, value = found.get(timeout=seconds)
            except queue.Empty:
                raise StalledError(
                    f"no {what} came within {seconds:g} s (data.timeout): a disk or network folder hangs, or a thread "
                    "that reads died; check that the files can be read, then start the same command again"
                ) from None
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        is_closed.set()


def in_time(read: Callable[[], T], seconds: float, *, what: str) -> T:
    """Returns what `read` returns, or raises what it raises; another thread calls it.

    Args:
        read: such as the reading of a file that may hang.
        seconds: the longest wait; above 0.
        what: is read, for the message.

    Raises:
        StalledError: it did not return in time.

    Example:
        >>> in_time(lambda: "text", seconds=60.0, what="file")
        'text'
    """

    def one() -> Generator[T, None, None]:
        yield read()

    return next(with_deadline(one(), seconds, what=what))
