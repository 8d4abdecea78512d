"""The damaged data of the benchmark, read without training: each file and entry is in the report, no sound one is."""

import contextlib
import json
import random
import sys

import pytest

from focaljax.data.coco import CocoSource
from focaljax.data.example import UnreadableImageError
from tests.benchmarks.scripts import imported


@pytest.fixture(scope="module")
def damaged_data():
    with imported("damaged_data") as modules:
        yield modules["damaged_data"]


def findings(damaged_data, folder, document):
    (folder / "coco.json").write_text(json.dumps(document))
    source = CocoSource(folder / "images", folder / "coco.json")
    for index in range(len(source)):
        try:
            source[index]
        except UnreadableImageError as error:  # as the pipeline names it
            source.report.add(damaged_data.UNREADABLE, str(error))
    return [f"{finding.kind}: {finding}" for finding in source.report.findings]


@contextlib.contextmanager
def numbers_of_any_length():
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(4300)


@pytest.mark.parametrize("seed", [0, 1])
def test_every_damage_is_named_under_its_fault_and_nothing_else(damaged_data, tmp_path, capsys, seed):
    rng = random.Random(seed)
    document = damaged_data.draw(tmp_path, 120, rng)
    done = damaged_data.damage(tmp_path, document, 40, rng)
    with numbers_of_any_length():
        report = findings(damaged_data, tmp_path, document)
    assert damaged_data.compare(done, report) == []
    table = capsys.readouterr().out
    for one in (*damaged_data.OF_FILES, *damaged_data.OF_ANNOTATIONS):
        assert one.name in table


def test_a_report_that_lacks_a_file_or_names_a_sound_one_is_noticed(damaged_data, tmp_path, capsys):
    rng = random.Random(0)
    document = damaged_data.draw(tmp_path, 12, rng)
    done = damaged_data.damage(tmp_path, document, 1, rng)  # a truncated file and a box with NaN
    report = findings(damaged_data, tmp_path, document)
    assert damaged_data.compare(done, report) == []
    assert "in 0 lines" in damaged_data.compare(done, report[1:])[0]
    assert "nothing that was done" in damaged_data.compare(done, [*report, "image file empty: x.jpg"])[0]
