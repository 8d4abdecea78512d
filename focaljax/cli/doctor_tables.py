"""Of `focaljax doctor`: its numbers as tables, and what the terminal shows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table
from rich.console import RenderableType

from focaljax.cli.console import say, write_encodable
from focaljax.cli.doctor_anchors import AnchorFit, Coverage
from focaljax.cli.doctor_findings import FAULT, SUSPECT, ExaminedSplit, Remark
from focaljax.data.report import printable
from focaljax.data.statistics import mean_and_quantiles

_COLOURS = {FAULT: "red", SUSPECT: "yellow"}
# Of long tables the terminal shows the first rows; the page has all.
_MOST_ROWS = 12


class Table(NamedTuple):
    """A table of texts; the first column names the rows."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def all_tables(splits: Sequence[ExaminedSplit], fit: AnchorFit) -> list[Table]:
    """Returns the tables in the order in which they are shown."""
    tables = [_images(splits), _classes(splits), _boxes(splits)]
    if fit.before.is_object.any():
        tables += [_anchors(fit), _levels(fit), _coverage_of_classes(fit)]
    return tables


class _Console:
    """Shows what rich renders; a terminal or file that lacks a character gets its escape, as from `say`."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)

    def show(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        """Prints it."""
        with self._console.capture() as capture:
            self._console.print(what, soft_wrap=soft_wrap)
        write_encodable(capture.get())


def print_findings(findings: Sequence[Remark], splits: Sequence[ExaminedSplit]) -> None:
    """Prints the findings, or that there are none."""
    console = _Console()
    names = ", ".join(f"{split.name} {len(split.boxes):,}" for split in splits)
    console.show(f"images: {names}; findings: {len(findings) or 'none'}{not_looked_for(splits)}", soft_wrap=True)
    for finding in findings:
        colour = _COLOURS.get(finding.mark, "blue")
        text = rich.markup.escape(printable(finding.text))
        console.show(f"  [{colour}]{finding.mark:8}[/]{text}", soft_wrap=True)


def not_looked_for(splits: Sequence[ExaminedSplit]) -> str:
    """Returns what to add where no pixels were read, else nothing."""
    return "" if splits[0].hashes is not None else "; no pixels were read: duplicate images were not looked for"


def print_table(table: Table) -> None:
    """Prints a table; of a long one the first rows."""
    shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, name in enumerate(table.header):
        shown.add_column(name, justify="right" if index else "left")
    for row in table.rows[:_MOST_ROWS]:
        shown.add_row(*(rich.markup.escape(printable(cell)) for cell in row))
    if len(table.rows) > _MOST_ROWS:
        shown.add_row(f"... {len(table.rows) - _MOST_ROWS} more")
    console = _Console()
    console.show(f"\n[bold]{rich.markup.escape(table.title)}[/]", soft_wrap=True)
    console.show(shown)


def print_proposal(fit: AnchorFit) -> None:
    """Prints the overrides that set the fitted anchors, and whether they are worth it."""
    if fit.after is not None:
        say("")
        say(verdict(fit))
        say("  " + pasted(fit.overrides))


def verdict(fit: AnchorFit) -> str:
    """Returns in a line what the fitted anchors, which there are, are good for."""
    assert fit.after is not None
    before, after = f"{fit.before.matched_share:.1%}", f"{fit.after.matched_share:.1%}"
    if fit.is_worth_a_change:
        return f"proposed: these anchors, as many as the config's, reach {after} of the objects, not {before}:"
    return f"no other anchors are proposed: the config's reach {before} of the objects, these would reach {after}:"


def pasted(overrides: Sequence[str]) -> str:
    """Returns overrides as a shell takes them.

    Example:
        >>> print(pasted(["--config.anchors.ratios=(0.5, 1.0)"]))
        --config.anchors.ratios='(0.5, 1.0)'
    """
    return " ".join("{}='{}'".format(*override.split("=", 1)) for override in overrides)


def _images(splits: Sequence[ExaminedSplit]) -> Table:
    def row(name: str, value: Callable[[ExaminedSplit], object]) -> tuple[str, ...]:
        return (name, *(f"{value(split):,}" for split in splits))

    rows = [
        row("images", lambda split: len(split.boxes)),
        row("without objects", lambda split: int((split.counts.objects_of_image == 0).sum())),
        row("objects", lambda split: split.counts.objects),
        row("crowd regions", lambda split: split.counts.crowds),
        row("objects an image, mean", lambda split: round(split.counts.objects / len(split.boxes), 1)),
        row("boxes an image, most", lambda split: int(split.counts.boxes_of_image.max())),
        row("objects annotated twice", lambda split: len(split.duplicates)),
        row("repaired or left out", lambda split: len(split.report.findings)),
    ]
    return Table("splits", ("", *(split.name for split in splits)), rows)


def _classes(splits: Sequence[ExaminedSplit]) -> Table:
    header = ["class"]
    for split in splits:
        header += [f"{split.name} objects", "images"]
    rows = []
    for label in np.argsort(-splits[0].counts.objects_of_class, kind="stable").tolist():
        row = [splits[0].boxes.class_names[label]]
        for split in splits:
            of_class = int(split.counts.objects_of_class[label])
            row += [f"{of_class:,} ({of_class / max(1, split.counts.objects):.1%})"]
            row += [f"{split.counts.images_of_class[label]:,}"]
        rows.append(tuple(row))
    return Table("classes", tuple(header), rows)


def _boxes(splits: Sequence[ExaminedSplit]) -> Table:
    rows = []
    for split in splits:
        sides = split.fitted.sides[~split.fitted.is_crowd]
        for name, values in (
            (f"{split.name} size, px", np.sqrt(sides.prod(axis=1))),
            (f"{split.name} shorter side, px", sides.min(axis=1, initial=np.inf)),
            (f"{split.name} height / width", sides[:, 0] / sides[:, 1]),
        ):
            rows.append((name, *("" if np.isnan(value) else f"{value:.3g}" for value in mean_and_quantiles(values))))
    header = ("", "mean", "smallest", "25%", "median", "75%", "largest")
    return Table("boxes as the network sees them (size: root of the area)", header, rows)


def _anchors(fit: AnchorFit) -> Table:
    def column(coverage: Coverage) -> tuple[str, ...]:
        objects = int(coverage.is_object.sum())
        missed, unassigned = int(coverage.is_missed.sum()), int(coverage.is_unassigned.sum())
        low_quality = int((coverage.is_missed & ~coverage.is_unassigned).sum())
        best, imbalance = coverage.measured.best_iou[coverage.is_object], coverage.imbalance
        return (
            f"{objects:,}",
            f"{coverage.matched_share:.1%}",
            f"{missed:,}",
            f"{low_quality:,}",
            f"{unassigned:,}",
            f"{coverage.mean_iou:.3f}",
            f"{np.quantile(best, 0.05):.3f}",
            f"{coverage.positives.mean():.0f}, {np.median(coverage.positives):.0f}",
            f"{imbalance.mean():,.0f}, {np.median(imbalance):,.0f}",
        )

    names = (
        "objects",
        f"with an anchor at IoU {fit.positive_iou:g}",
        "without one",
        "  assigned by the low-quality rule alone",
        "assigned no anchor",
        "best IoU of an object, mean",
        "best IoU, of the worst 5% at most",
        "assigned anchors an image: mean, median",
        "background to one assigned: mean, median",
    )
    columns = [column(coverage) for coverage in (fit.before, fit.after) if coverage is not None]
    header = ("", "the config's", "fitted")[: 1 + len(columns)]
    return Table(_title(fit, "anchors"), header, list(zip(names, *columns, strict=True)))


def _levels(fit: AnchorFit) -> Table:
    coverage = fit.before
    rows = []
    for place, level in enumerate(fit.levels):
        rows.append(_coverage_row(f"P{level}", coverage, coverage.is_object & (coverage.measured.best_level == place)))
    return Table(
        _title(fit, "the config's anchors by level: objects whose best anchor is there"), _COVERAGE_HEADER, rows
    )


def _coverage_of_classes(fit: AnchorFit) -> Table:
    coverage, labels, names = fit.before, fit.boxes.labels, fit.boxes.class_names
    of_class = [coverage.is_object & (labels == label) for label in range(len(names))]
    shares = [coverage.is_missed[rows].mean() if rows.any() else -1.0 for rows in of_class]
    order = np.argsort(-np.array(shares), kind="stable").tolist()
    rows = [_coverage_row(names[label], coverage, of_class[label]) for label in order if shares[label] >= 0]
    return Table(
        _title(fit, "the config's anchors by class, the most missed first"), ("class", *_COVERAGE_HEADER[1:]), rows
    )


_COVERAGE_HEADER = ("level", "objects", "missed", "share", "no anchor", "median IoU", "anchors each")


def _coverage_row(name: str, coverage: Coverage, rows: np.ndarray) -> tuple[str, ...]:
    count, missed = int(rows.sum()), int(coverage.is_missed[rows].sum())
    if not count:
        return name, "0", "0", "", "0", "", ""
    best, assigned = coverage.measured.best_iou[rows], coverage.measured.assigned[rows]
    unassigned = int(coverage.is_unassigned[rows].sum())
    return (
        name,
        f"{count:,}",
        f"{missed:,}",
        f"{missed / count:.1%}",
        f"{unassigned:,}",
        f"{np.median(best):.3f}",
        f"{assigned.mean():.1f}",
    )


def _title(fit: AnchorFit, what: str) -> str:
    part = f", {len(fit.boxes):,} of {fit.num_images:,} images" if len(fit.boxes) < fit.num_images else ""
    return f"{what} ({fit.split}{part})"
