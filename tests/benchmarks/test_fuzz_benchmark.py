"""Some hundred mutated files a reader, with a fixed seed: read, or refused by a documented error."""

import json

import pytest

from tests.benchmarks.scripts import imported
from tests.cli.conftest import devices_of_runs


@pytest.fixture(scope="module")
def fuzz():
    with imported("fuzz") as modules:
        yield modules["fuzz"]


@pytest.mark.parametrize(
    ("kind", "files"),
    [("coco", 300), ("voc", 200), ("results", 300), ("npz", 40), ("safetensors", 40), ("pkl", 60), ("pth", 20)],
)
def test_mutated_files_are_read_or_refused_by_documented_errors(fuzz, tmp_path, kind, files):
    with devices_of_runs(1):
        row = fuzz.run_kind(kind, files, 1, tmp_path)
    assert row["else"] == 0, "\n".join(row["faults"])
    assert row["accepted"] + row["refused"] == files
    assert row["accepted"] or kind == "pth"  # which needs torch
    assert row["refused"] or kind == "voc"  # where a damaged file is a finding


def test_what_is_no_documented_error_is_counted_with_its_traceback(fuzz, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz.Results, "read", lambda self, path: json.loads(path.read_bytes())["none"])
    monkeypatch.setattr(fuzz.Results, "base", b'{"none": 1}', raising=False)
    monkeypatch.setattr(fuzz.Results, "__init__", lambda self, folder: setattr(self, "documented", (LookupError,)))
    monkeypatch.setattr(fuzz.Results, "mutate", lambda self, rng: b"[1]")
    row = fuzz.run_kind("results", 2, 0, tmp_path)
    assert (row["else"], row["accepted"]) == (2, 0)
    assert "TypeError" in row["faults"][0]
