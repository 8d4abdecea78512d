"""TensorBoard's pictures, and Weights & Biases: by a stand-in for its module, and by itself where it is installed."""

import importlib.util
import sys
import types

import cv2
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from focaljax.training.loggers import LoggerError, TensorBoard, WeightsAndBiases
from focaljax.training.metrics import MetricsWriter, read_metrics, read_timings

# Left half red, right half blue: JPEG keeps that.
PICTURE = np.zeros((32, 48, 3), np.uint8)
PICTURE[:, :24, 0] = PICTURE[:, 24:, 2] = 255


def events_in(folder):
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:  # records: length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def test_tensorboard_gets_pictures_in_their_colours(tmp_path):
    logger = TensorBoard(tmp_path / "events", start_step=0)
    logger.write(7, {"val/AP": 0.5}, {"val/1": PICTURE})
    logger.close()
    values = {
        value.tag: (event.step, value) for event in events_in(tmp_path / "events") for value in event.summary.value
    }
    assert values["val/AP"][1].simple_value == 0.5
    step, value = values["val/1"]
    assert (step, value.image.height, value.image.width) == (7, 32, 48)
    decoded = cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded[:, [4, 44]].astype(int) - PICTURE[:, [4, 44]]).max() < 40


class NotedLogger:
    def __init__(self):
        self.calls, self.is_closed = [], False

    def write(self, step, values, pictures):
        self.calls.append((step, dict(values), list(pictures)))

    def close(self):
        self.is_closed = True


def test_loggers_get_numbers_with_their_split_and_pictures_after_them(tmp_path):
    logger = NotedLogger()
    with MetricsWriter(tmp_path, loggers=[logger]) as writer:
        writer.write(2, "train", {"loss": 1.0, "box_loss": float("nan")}, timings={"images_per_second": 8.0})
        writer.show(2, {"val/1": PICTURE})
        assert len(logger.calls) == 1
        writer.write(2, "val", {"AP": 0.25})
    assert logger.calls == [
        (2, {"train/loss": 1.0, "train/images_per_second": 8.0}, []),
        (2, {"val/AP": 0.25}, []),
        (2, {}, ["val/1"]),
    ]
    assert logger.is_closed


def test_loggers_are_closed_after_an_error(tmp_path):
    logger = NotedLogger()
    with pytest.raises(ValueError, match="the caller's"), MetricsWriter(tmp_path, loggers=[logger]):
        raise ValueError("the caller's")
    assert logger.is_closed


def test_timings_are_kept_apart_from_the_records_and_over_a_kill(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": 1.0}, timings={"seconds": 2.0})
    with (tmp_path / "timings.jsonl").open("a") as file:
        file.write('{"step": 2, "sec')  # killed while it wrote
    with MetricsWriter(tmp_path, start_step=1) as writer:
        writer.write(2, "train", {"loss": 0.5}, timings={"seconds": 3.0})
    assert read_timings(tmp_path) == [{"step": 1, "seconds": 2.0}, {"step": 2, "seconds": 3.0}]
    assert [set(record) for record in read_metrics(tmp_path)] == [{"step", "split", "loss"}] * 2


class FakeWandb(types.ModuleType):
    """Notes what is asked of the module `wandb`."""

    def __init__(self, error=None):
        super().__init__("wandb")
        self.error, self.started, self.calls = error, [], []

    def init(self, **arguments):
        if self.error is not None:
            raise self.error
        self.started.append(arguments)
        return self

    def Settings(self, **settings):  # noqa: N802 - its name
        return settings

    def Image(self, picture):  # noqa: N802 - its name
        return ("image", picture.shape)

    def define_metric(self, name, **settings):
        self.calls.append(("define_metric", name, settings))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def fake_wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def start(workdir, mode="offline"):
    return WeightsAndBiases(workdir, mode=mode, project="cells", settings={"seed": 3})


def test_wandb_is_told_settings_numbers_and_pictures_by_their_step(tmp_path, fake_wandb):
    logger = start(tmp_path)
    logger.write(5, {"train/loss": 1.5}, {"val/1": PICTURE})
    logger.close()
    (arguments,) = fake_wandb.started
    wanted = {"dir": str(tmp_path), "mode": "offline", "project": "cells", "name": tmp_path.name, "resume": "allow"}
    assert wanted.items() <= arguments.items()
    assert arguments["config"] == {"seed": 3}
    assert fake_wandb.calls == [
        ("define_metric", "step", {}),
        ("define_metric", "*", {"step_metric": "step"}),
        ("log", {"step": 5, "train/loss": 1.5, "val/1": ("image", (32, 48, 3))}),
        ("finish",),
    ]


def test_wandb_that_dies_costs_its_own_numbers_alone(tmp_path, fake_wandb, monkeypatch, caplog):
    logger = start(tmp_path)
    monkeypatch.setattr(fake_wandb, "log", lambda _: (_ for _ in ()).throw(ConnectionResetError("Connection\nlost")))
    for step in (1, 2):
        logger.write(step, {"train/loss": 1.5}, {})
    logger.close()
    (warning,) = caplog.messages
    assert warning == "W&B takes no more of this run (Connection lost): it goes on, its numbers are in metrics.jsonl"
    assert ("finish",) not in fake_wandb.calls


def test_run_that_goes_on_is_the_same_run_of_wandb_and_another_is_not(tmp_path, fake_wandb):
    for folder in ("one", "one", "other"):
        (tmp_path / folder).mkdir(exist_ok=True)
        start(tmp_path / folder).close()
    ids = [arguments["id"] for arguments in fake_wandb.started]
    assert ids[0] == ids[1] != ids[2]


def test_wandb_that_is_missing_or_cannot_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LoggerError, match=r"needs the package wandb: pip install 'focaljax\[wandb\]'"):
        start(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(ConnectionError("no route\nto host")))
    with pytest.raises(LoggerError, match=r"\(no route to host\): log in with `wandb login`"):
        start(tmp_path, "online")


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the package wandb is not installed")
def test_wandb_itself_keeps_a_run_offline(tmp_path):
    for step in (1, 2):  # a run, and its going on
        logger = start(tmp_path)
        logger.write(step, {"train/loss": 1.0 / step}, {"val/1": PICTURE})
        logger.close()
    identity = (tmp_path / "wandb" / "id").read_text().strip()
    kept = [path for path in (tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb") if path.stat().st_size]
    assert len(kept) in (1, 2)  # one folder if both began in the same second
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/**/*.png"))
