"""The record of a run."""

import json
import resource
from concurrent.futures import Future

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from focaljax.training.metrics import MetricsWriter, read_metrics


def write(workdir, start_step, *records):
    with MetricsWriter(workdir, start_step=start_step) as writer:
        for step, split, values in records:
            writer.write(step, split, values)


def test_records_are_json_lines_in_order(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": 2.0}), (1, "val", {"AP": 0.5}))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "split": "train", "loss": 2.0},
        {"step": 1, "split": "val", "AP": 0.5},
    ]


def test_records_after_the_resumed_step_are_removed(tmp_path):
    write(tmp_path, 0, *((step, "train", {"loss": float(step)}) for step in (1, 2, 3)))
    write(tmp_path, 1, (2, "train", {"loss": 20.0}))
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 20.0)]


def test_line_cut_off_by_a_crash_is_left_out(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": 1.0}))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl')
    write(tmp_path, 2, (3, "train", {"loss": 3.0}))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 3]


def test_value_that_is_not_finite_is_null(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": float("nan"), "AP": None}))
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train", "loss": None, "AP": None}]


def test_has_knows_records_of_this_and_of_former_processes(tmp_path):
    write(tmp_path, 0, (4, "val", {"AP": 0.1}))
    with MetricsWriter(tmp_path, start_step=4) as writer:
        assert writer.has(4, "val")
        assert not writer.has(4, "train")
        writer.write(5, "train", {})
        assert writer.has(5, "train")


def test_tensorboard_is_told_the_values_and_where_a_run_went_on(tmp_path):
    write(tmp_path, 0, (1, "train", {"loss": 0.5, "learning_rate": None}), (2, "train", {"loss": 0.25}))
    write(tmp_path, 1, (2, "train", {"loss": 0.125}))
    found = []
    for path in sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:  # records: length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            values = {value.tag: value.simple_value for value in event.summary.value}
            found.append(values or (event.session_log.status, event.step))
            data = data[16 + size :]
    begins = (SessionLog.STATUS_UNSPECIFIED, 0)
    expected = [begins, (SessionLog.START, 1), {"train/loss": 0.5}, {"train/loss": 0.25}]
    assert found == [*expected, begins, (SessionLog.START, 2), {"train/loss": 0.125}]


def test_records_after_values_that_are_still_computed_wait(tmp_path):
    later = Future()
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1.0})
        writer.write(1, "val", later)
        writer.write(2, "train", {"loss": 2.0})
        assert writer.has(1, "val")
        assert writer.has(2, "train")
        assert [r["step"] for r in read_metrics(tmp_path)] == [1]
        later.set_result({"AP": 0.5})
        writer.wait()
        assert [(r["step"], r["split"]) for r in read_metrics(tmp_path)] == [(1, "train"), (1, "val"), (2, "train")]


def test_error_in_values_is_raised_and_what_was_before_them_is_written(tmp_path):
    first, failed = Future(), Future()

    def write_three():
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, "val", first)
            writer.write(2, "val", failed)
            writer.write(3, "train", {"loss": 1.0})
            failed.set_exception(OSError("disk"))
            first.set_result({"AP": 0.5})

    with pytest.raises(OSError, match="disk"):
        write_three()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1]


def test_error_of_the_caller_comes_before_one_in_values(tmp_path):
    failed = Future()

    def write_and_fail():
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, "val", failed)
            failed.set_exception(OSError("disk"))
            raise ValueError("the caller's")

    with pytest.raises(ValueError, match="the caller's"):
        write_and_fail()


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_disk_without_room_is_an_error_that_names_the_file(tmp_path, name):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = dict.fromkeys(map(str, range(100)), 1.0)  # an event is larger than its line

    def write_two(in_the_end):
        with MetricsWriter(tmp_path) as writer:
            writer.write(1, "train", values)
            path = tmp_path / name if name == "metrics.jsonl" else next(tmp_path.glob(f"{name}/*"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
            try:
                writer.write(2, "train", values)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, in_the_end)

    # The disk may stay full, or have room again when all is closed.
    for in_the_end in ((0, limits[1]), limits):
        try:
            with pytest.raises(OSError, match=rf"File too large: the records of step 2: '.*{name}'"):
                write_two(in_the_end)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert read_metrics(tmp_path)[0] == {"step": 1, "split": "train", **values}
        assert [record["step"] for record in read_metrics(tmp_path)].count(2) <= 1
