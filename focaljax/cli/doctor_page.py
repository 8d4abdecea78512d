"""Of `focaljax doctor`: the page with all numbers, plots and pictures."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from focaljax.cli.doctor_anchors import AnchorFit
from focaljax.cli.doctor_findings import ExaminedSplit, Remark
from focaljax.cli.doctor_tables import Table, not_looked_for, pasted, verdict
from focaljax.data.report import printable
from focaljax.evaluation.page import Page

_COLOURS = ("#1b5e8c", "#d1741f", "#3f8f4f")
_MOST_CLASSES = 40
_MOST_FINDINGS = 1000


def write_page(
    path: pathlib.Path,
    command: Sequence[str],
    splits: Sequence[ExaminedSplit],
    fit: AnchorFit,
    findings: Sequence[Remark],
    tables: Sequence[Table],
    samples: np.ndarray | None,
) -> None:
    """Writes the page.

    Args:
        path: of the HTML file.
        command: the arguments that name the config.
        splits: what was read.
        fit: the anchors.
        findings: faults first.
        tables: all of the terminal's.
        samples: uint8 `[H, W, 3]`, training images with their boxes; None for none.
    """
    page = Page("Data doctor")
    page.code(printable("focaljax doctor " + " ".join(command)))
    page.section("Findings")
    page.text(f"Findings: {len(findings) or 'none'}{not_looked_for(splits)}.")
    if findings:
        page.table(("mark", "finding"), [(finding.mark, printable(finding.text)) for finding in findings])
    plots = {"classes": _plot_classes(splits), "boxes": _plot_boxes(splits)}
    if fit.after is not None:
        plots["anchors"] = _plot_anchors(fit)
    for table in tables:
        page.section(table.title)
        page.table(table.header, [[printable(cell) for cell in row] for row in table.rows])
        if (figure := plots.get(table.title.split(" ")[0])) is not None:
            page.plot(figure)
    if fit.after is not None:
        page.section("Fitted anchors")
        page.text(verdict(fit))
        page.code(pasted(fit.overrides))
    if samples is not None:
        page.section("Samples")
        page.picture(samples, "training images as the network gets them, with their boxes")
    repaired = [(split.name, finding.kind, finding) for split in splits for finding in split.report.findings]
    if repaired:
        page.section("Repaired or left out")
        page.table(
            ("split", "what", "where"),
            [(name, printable(kind), finding) for name, kind, finding in repaired[:_MOST_FINDINGS]],
        )
        if len(repaired) > _MOST_FINDINGS:
            page.text(f"The first {_MOST_FINDINGS:,} of {len(repaired):,}.")
    page.write(path)


def _plot_classes(splits: Sequence[ExaminedSplit]) -> Figure:
    order = np.argsort(-splits[0].counts.objects_of_class, kind="stable")[:_MOST_CLASSES]
    figure = Figure(figsize=(9.0, 1.2 + 0.3 * len(order)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(splits)
    for place, split in enumerate(splits):
        rows = np.arange(len(order)) + (place + 0.5) * height - 0.4
        share = split.counts.objects_of_class[order] / max(1, split.counts.objects)
        axes.barh(rows, share, height, label=split.name, color=_COLOURS[place])
    names = [_plain(splits[0].boxes.class_names[label]) for label in order]
    axes.set_yticks(range(len(order)), names)
    axes.set(xlabel="share of the split's objects", ylim=(len(order) - 0.5, -0.5))
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(splits), frameon=False)
    return figure


def _plot_boxes(splits: Sequence[ExaminedSplit]) -> Figure:
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sides = [split.fitted.sides[~split.fitted.is_crowd] for split in splits]
    names = [split.name for split in splits]
    _histograms(left, [np.sqrt(of_split.prod(axis=1)) for of_split in sides], names)
    left.set(xlabel="size (root of area), pixels", ylabel="share of objects")
    _histograms(right, [of_split[:, 0] / of_split[:, 1] for of_split in sides], names)
    right.set(xlabel="height / width")
    return figure


def _histograms(axes, values: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Draws the shares of several splits over one logarithmic axis."""
    everything = np.concatenate(values)
    if not len(everything):
        return
    bins = np.geomspace(everything.min() / 1.05, everything.max() * 1.05, 40)
    for place, (of_split, name) in enumerate(zip(values, names, strict=True)):
        weights = np.full(len(of_split), 1.0 / max(1, len(of_split)))
        axes.hist(of_split, bins, weights=weights, histtype="step", label=name, color=_COLOURS[place], linewidth=1.5)
    axes.legend()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _plot_anchors(fit: AnchorFit) -> Figure:
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    coverages = {"the config's": fit.before, "fitted": fit.after}
    most = max(coverage.positives.max() for coverage in coverages.values() if coverage is not None)
    for place, (name, coverage) in enumerate(coverages.items()):
        if coverage is None:
            continue
        style = {"histtype": "step", "label": name, "color": _COLOURS[place], "linewidth": 1.5}
        left.hist(coverage.measured.best_iou[coverage.is_object], np.linspace(0.0, 1.0, 41), **style)
        right.hist(coverage.positives, np.linspace(0.0, most + 1.0, 41), **style)
    left.axvline(fit.positive_iou, color="#888888", linestyle=":", label="positive from here")
    left.set(xlabel="IoU of an object with its best anchor", ylabel="objects")
    left.legend()
    right.set(xlabel="assigned anchors an image", ylabel="images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def _plain(text: str) -> str:
    """Returns a name from data so that matplotlib writes it and does not take dollars as formulas."""
    return printable(text)[:40].replace("$", r"\$")
