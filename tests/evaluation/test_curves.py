"""The picture of a run's curves."""

import cv2

from focaljax.evaluation.curves import write_curves

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
