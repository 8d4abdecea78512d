"""Files that are there whole or not at all."""

import os
import pathlib


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file in UTF-8 so that a reader, or a run that was killed, never sees half of it.

    Args:
        path: the file; an existing one is replaced. Missing parent folders are made.
        text: its content.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
