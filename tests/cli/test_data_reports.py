"""What was found in the data, kept in the workdir."""

import types

import pytest

from focaljax.cli.data_reports import reporting_damage, write_data_report
from focaljax.data.report import DataReport, Finding


def test_report_keeps_what_earlier_starts_have_found(tmp_path):
    def start(*findings):
        source = types.SimpleNamespace(report=DataReport(findings))
        write_data_report(source, "train", tmp_path)

    start()
    assert not list(tmp_path.iterdir())
    start(Finding("empty: skipped", "a.jpg"), Finding("cut off: skipped", "b.jpg"))
    start(Finding("empty: skipped", "a.jpg"), Finding("empty: skipped", "c.jpg", image_id=7))
    found = (tmp_path / "data_report_train.txt").read_text().splitlines()
    assert found == ["empty: skipped: a.jpg", "cut off: skipped: b.jpg", "empty: skipped: c.jpg (image 7)"]


def test_what_is_found_while_training_is_written_though_training_fails(tmp_path):
    source = types.SimpleNamespace(report=DataReport([Finding("empty: skipped", "a.jpg")]))

    def train():
        source.report.add("cut off: skipped", "b.jpg")
        raise KeyError("a fault")

    with pytest.raises(KeyError), reporting_damage((source, "train"), workdir=tmp_path):
        train()
    assert "cut off: skipped: b.jpg" in (tmp_path / "data_report_train.txt").read_text()
