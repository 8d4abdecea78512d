"""The script that kills runs, with one kill; what it promises is tested in small in tests/training/test_kills.py."""

import json

from tests.benchmarks.scripts import finished_script, imported


def test_a_killed_run_equals_one_that_was_left_alone(tmp_path):
    completed, written = finished_script("endurance", tmp_path, "kills", "--kills", "1", stand_ins={})
    result = json.loads(written)
    assert result["kept"]
    assert result["kills"] == 1
    assert result["equal_metrics.jsonl"]
    assert {"machine", "versions", "commit", "date"} <= set(result)
    assert "steps that stand twice in the records" in completed.stdout


def test_last_step_and_memory_of_a_process(tmp_path):
    import os

    with imported("endurance") as modules:
        endurance = modules["endurance"]
        assert endurance.last_step(tmp_path) == 0
        (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n{"step": 7}\n')
        assert endurance.last_step(tmp_path) == 7
        assert endurance.resident_mib(os.getpid()) > 10
        assert endurance.resident_mib(2**22 + 1) == 0
