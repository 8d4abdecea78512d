"""The picture of a run's curves."""

import cv2

from focaljax.evaluation.curves import curves_figure, runs_figure, write_curves

RECORDS = [
    {"step": 1, "split": "train", "loss": 2.0, "classification_loss": 1.5, "box_loss": 0.5},
    {"step": 2, "split": "train", "loss": 1.0, "classification_loss": None, "box_loss": 0.5},
    {"step": 2, "split": "val", "AP": 0.5},
]


def ink(path):
    return int((cv2.imread(str(path)) < 128).any(axis=-1).sum())


def test_more_records_are_more_ink_and_no_half_file_is_left(tmp_path):
    write_curves(tmp_path / "all.png", RECORDS, split="val")
    write_curves(tmp_path / "losses.png", RECORDS[:2], split="val")
    write_curves(tmp_path / "none.png", [], split="val")
    assert ink(tmp_path / "all.png") != ink(tmp_path / "losses.png")
    assert ink(tmp_path / "losses.png") > ink(tmp_path / "none.png") > 0
    assert len(list(tmp_path.iterdir())) == 3


NUMBERS = {
    "loss": 9.0,
    "classification_loss": 4.0,
    "box_loss": 5.0,
    "learning_rate": 0.1,
    "gradient_norm": 7.0,
    "positives": 20.0,
    "positive_share": 0.4,
    "skipped": 2.0,
}
AP = {"AP": 0.3, "AP50": 0.5, "AP75": 0.2}


def drawn(figure):
    """Returns the lines of each plot by its title: label -> points."""
    return {
        axes.get_title(): {
            line.get_label(): list(zip(*line.get_data(), strict=True))
            for line in axes.get_lines()
            if len(line.get_data()[0])
        }
        for axes in figure.get_axes()
    }


def test_page_draws_every_number_under_its_name():
    records = [{"step": 4, "split": "train", **NUMBERS}, {"step": 5, "split": "val", **AP}]
    plots = drawn(curves_figure(records, [{"step": 4, "images_per_second": 80.0, "seconds": 3.0}], split="val"))
    assert plots == {
        "training loss": {"total": [(4, 9.0)], "classification": [(4, 4.0)], "box": [(4, 5.0)]},
        "precision on val": {"AP": [(5, 0.3)], "AP50": [(5, 0.5)], "AP75": [(5, 0.2)]},
        "learning rate": {"learning rate": [(4, 0.1)]},
        "gradient norm": {"gradient norm": [(4, 7.0)]},
        "assigned anchors an image": {"assigned anchors": [(4, 20.0)]},
        "share of the classification loss on assigned anchors": {"share": [(4, 0.4)]},
        "steps left out so far, not finite": {"steps": [(4, 2.0)]},
        "images/s, evaluations not counted": {"images/s": [(4, 80.0)]},
    }


def test_page_of_an_empty_run_has_empty_plots():
    assert set(map(len, drawn(curves_figure([], [], split="val")).values())) == {0}


def test_runs_of_a_name_share_a_colour():
    records = [{"step": 4, "split": "train", **NUMBERS}, {"step": 5, "split": "val", **AP}]
    figure = runs_figure([("a", records, "val"), ("b", records, "test"), ("a", records, "val")])
    losses, metrics = figure.get_axes()
    points = lambda axes: [tuple(line.get_xydata().ravel()) for line in axes.get_lines() if len(line.get_xydata())]  # noqa: E731
    assert points(losses) == [(4, 9.0)] * 3
    assert points(metrics) == [(5, 0.3)] * 2
    colours = [line.get_color() for line in losses.get_lines()[:3]]
    assert colours[0] == colours[2] != colours[1]
    assert [text.get_text() for text in losses.get_legend().get_texts()] == ["a", "b"]
