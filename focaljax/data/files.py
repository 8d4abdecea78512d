"""Files whose names come from data: read only where they are files."""

import os
import pathlib
import stat
from typing import BinaryIO


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Returns a file open for reading, without a buffer.

    What is no regular file is refused: a named pipe that nobody writes to would hang for ever, a device has no end.

    Args:
        path: the file; links are followed.

    Raises:
        OSError: it cannot be opened, is no regular file, or nothing can have this name (a NUL character or a lone
            surrogate in it).

    Example:
        >>> open_regular_file("/dev/zero")
        Traceback (most recent call last):
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    try:
        # O_NONBLOCK: to open a named pipe waits for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:
        raise OSError(22, "no file can have this name", str(path)) from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    raise OSError(22, "not a regular file", os.fspath(path))


def read_regular_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file; see `open_regular_file`, errors included."""
    with open_regular_file(pathlib.Path(path)) as file:
        return file.read()
