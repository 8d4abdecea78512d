"""What was found in the data, said at the start and written to the workdir."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import jax

from focaljax.cli.console import say
from focaljax.data.example import Source
from focaljax.data.report import printable
from focaljax.training import mesh as meshes


def report_data(source: Source, split: str, workdir: pathlib.Path | None = None) -> None:
    """Prints what a split holds and what was repaired or left out in it, the first few places of each kind.

    With a workdir, all places go into `WORKDIR/data_report_SPLIT.txt`, one a line.
    """
    say(f"{split}: {len(source)} images, {len(source.class_names)} classes ({_shortened(source.class_names)})")
    if meshes.is_primary():
        for line in source.report.lines():
            print(f"  {split}: {line}", file=sys.stderr, flush=True)
    if workdir is not None and meshes.is_primary():
        write_data_report(source, split, workdir)


def write_data_report(source: Source, split: str, workdir: pathlib.Path) -> None:
    """Writes what was found in a split to `WORKDIR/data_report_SPLIT.txt`, one finding a line, if there is any.

    What an earlier start of the run has found stays there. Other processes than the first have a file of their own,
    `data_report_SPLIT_processI.txt`.
    """
    if not source.report.findings:
        return
    process = "" if meshes.is_primary() else f"_process{jax.process_index()}"
    path = workdir / f"data_report_{split}{process}.txt"
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [f"{printable(finding.kind)}: {finding}" for finding in list(source.report.findings)]
    lines = dict.fromkeys(earlier + found)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    say(f"  all {len(lines)} findings: {path}")


@contextlib.contextmanager
def reporting_damage(*sources: tuple[Source, str], workdir: pathlib.Path) -> Iterator[None]:
    """Writes what was found in the sources while the block lasted: damage inside a file shows when it is read."""
    at_start = [len(source.report.findings) for source, _ in sources]
    try:
        yield
    finally:
        for (source, split), count in zip(sources, at_start, strict=True):
            if len(source.report.findings) > count:
                with contextlib.suppress(OSError):  # such as a full disk, which has been said
                    write_data_report(source, split, workdir)


def _shortened(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
