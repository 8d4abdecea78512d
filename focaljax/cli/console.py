"""What a person sees of a long run: one line that moves in a terminal, lines now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

import rich.console
import rich.markup
import rich.progress

from focaljax.data.report import printable
from focaljax.training.loop import Progress
from focaljax.training.programs import Compilation

T = TypeVar("T")

# Between two lines where the output is a file.
_SECONDS_BETWEEN_LINES = 5.0


def say(message: str) -> None:
    """Prints one line of what the program is doing, at once and whole: other threads print too.

    Names from data may be in it: see `printable`. A terminal or file that lacks a character gets its escape.
    """
    write_encodable(printable(message) + "\n")


def write_encodable(text: str) -> None:
    """Writes a text to stdout, with escapes for the characters that it lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def say_compiled(compilation: Compilation) -> None:
    """Says what was compiled, for which batch, in what time, and how much memory it needs."""
    images = " x ".join(map(str, compilation.shape[:3]))
    how = "taken from the compile cache" if compilation.is_from_cache else "compiled"
    again = f", program {compilation.count} of it" if compilation.count > 1 else ""
    memory = f", needs {_bytes(compilation.device_bytes)} on each device" if compilation.device_bytes else ""
    say(f"{compilation.name} for images {images} {how} in {compilation.seconds:.1f} s{again}{memory}")


class ProgressLine:
    """Shows a training run's progress: step, loss parts, images/s and time left.

    Args:
        steps: of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._console = rich.console.Console(highlight=False)
        self._bar: rich.progress.Progress | None = None
        self._last_line = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                console=self._console,
                redirect_stdout=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Shows one record."""
        values = progress.metrics
        line = (
            f"step {progress.step}/{progress.steps}  loss {values['loss']:.4f} "
            f"(class {values['classification_loss']:.4f}, box {values['box_loss']:.4f})  "
            f"{progress.images_per_second:.1f} images/s  {duration(progress.seconds_left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=progress.step, description=line)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES or progress.step == progress.steps:
            self._last_line = time.monotonic()
            say(line)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yields the items, with a progress bar in a terminal and nothing elsewhere."""
    console = rich.console.Console()
    shown = rich.markup.escape(printable(description))  # folders' names are in it
    return iter(
        rich.progress.track(items, shown, total=total, console=console, transient=True, disable=not console.is_terminal)
    )


def duration(seconds: float) -> str:
    """Returns a time in the form 1:02:03 or 2:03.

    Example:
        >>> duration(3723), duration(123.4)
        ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
