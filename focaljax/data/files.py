"""Files whose names come from data: read only where they are files."""

import errno
import os
import pathlib
import stat
from typing import BinaryIO

# The largest image that is decoded has 0.75 GiB without compression. A sparse file, which takes no room on the disk,
# can be a thousand times as long.
MAX_BYTES = 2**30


def open_regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Returns a file open for reading, without a buffer.

    What is no regular file is refused: a named pipe that nobody writes to would hang for ever, a device has no end. So
    is a file of more than `MAX_BYTES`, which would fill the memory.

    Args:
        path: the file; links are followed.

    Raises:
        OSError: it cannot be opened, is no regular file, is too large (`errno.EFBIG`), or nothing can have this name
            (a NUL character or a lone surrogate in it).

    Example:
        >>> open_regular_file("/dev/zero")
        Traceback (most recent call last):
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    try:
        # O_NONBLOCK: to open a named pipe waits for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size <= MAX_BYTES:
        return os.fdopen(descriptor, "rb", buffering=0)
    os.close(descriptor)
    if stat.S_ISREG(state.st_mode):
        raise OSError(errno.EFBIG, f"{state.st_size} bytes, the most is {MAX_BYTES}", os.fspath(path))
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_regular_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a file; see `open_regular_file`, errors included."""
    with open_regular_file(pathlib.Path(path)) as file:
        return file.read()
