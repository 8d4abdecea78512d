"""The plots of a report: every name as it is, and as much as can be told apart."""

import io
import warnings

import numpy as np
import pytest

from focaljax.evaluation.analysis import ClassCurve
from focaljax.evaluation.analysis_plots import (
    MOST_CELLS,
    MOST_CURVES,
    confusion_figure,
    precision_recall_figure,
    score_figure,
)

NAMES = ["$x_{1$", "_hidden", "漢字"]


def svg_of(figure):
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="svg")
    return file.getvalue()


def curve_of(level, num_objects=1):
    return ClassCurve(np.full(101, level), best_f1=0.5, best_score=0.5, num_objects=num_objects)


def test_names_are_written_as_they_are():
    curves = {number: curve_of(0.25 * number) for number in (1, 2, 3)}
    confusions = svg_of(confusion_figure(np.eye(4, dtype=int), NAMES))
    precision = svg_of(precision_recall_figure({0.5: curves, 0.75: curves}, NAMES))
    for name in NAMES:
        # matplotlib writes each text into a comment, before its letters as paths.
        assert name in confusions.replace(r"\$", "$")
        assert name in precision.replace(r"\$", "$")
    assert "mean of 3: 0.500" in precision


def test_lines_are_those_of_the_classes_with_the_most_objects():
    curves = {number: curve_of(0.5, num_objects=number) for number in range(1, MOST_CURVES + 6)}
    names = [f"class{number}" for number in range(1, MOST_CURVES + 6)]
    svg = svg_of(precision_recall_figure({0.5: curves}, names))
    assert "class5 " not in svg
    assert "class6 " in svg
    assert f"mean of {len(curves)}: 0.500" in svg


@pytest.mark.parametrize(("size", "is_written"), [(MOST_CELLS, True), (MOST_CELLS + 1, False)])
def test_counts_are_written_where_there_is_room(size, is_written):
    counts = np.zeros((size, size), int)
    counts[0, 1] = 7654
    assert ("7654" in svg_of(confusion_figure(counts, [str(i) for i in range(size - 1)]))) == is_written


@pytest.mark.parametrize(("size", "count"), [(100, 100), (101, 0)])
def test_names_are_written_where_they_would_not_cover_each_other(size, count):
    figure = confusion_figure(np.eye(size, dtype=int), [f"class{index}" for index in range(size - 1)])
    names = [label.get_text() for label in figure.get_axes()[0].get_xticklabels()]
    assert len([name for name in names if name.startswith("class") or name == "(missed)"]) == count


def test_scores_of_right_and_wrong_stand_under_their_names():
    scores = np.array([0.91, 0.92, 0.11])
    figure = score_figure(scores, scores > 0.5, scores < 0.5, min_score=0.3)
    heights = {patch.get_label(): patch.get_data().values for patch in figure.get_axes()[0].patches}
    assert heights.keys() == {"right: 2", "wrong: 1"}
    assert np.flatnonzero(heights["right: 2"]).tolist() == [36]
    assert np.flatnonzero(heights["wrong: 1"]).tolist() == [4]


def test_nothing_can_be_drawn():
    nothing = np.zeros(0)
    assert "wrong: 0" in svg_of(score_figure(nothing, nothing > 0, nothing > 0, min_score=0.3))
    assert "recall" in svg_of(precision_recall_figure({0.5: {}}, []))
    assert "(missed)" in svg_of(confusion_figure(np.zeros((1, 1), int), []))
