"""The verbs on a real, small run: what they write, how they go on, and how they meet bad input."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from focaljax.cli import build
from focaljax.cli.config import load_config
from focaljax.cli.main import main
from focaljax.detector import Detector
from focaljax.training import mesh as meshes
from focaljax.training.metrics import read_metrics
from focaljax.training.state import TrainState
from tests.cli.conftest import devices_of_runs
from tests.training.test_loggers import events_in

pytestmark = pytest.mark.usefixtures("one_device")

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def run_cli(arguments, env, **options):
    command = [sys.executable, "-m", "focaljax", *map(str, arguments)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def test_training_leaves_config_curves_checkpoints_and_evaluation(finished_run):
    config = json.loads((finished_run / "config.json").read_text())
    assert config["optim"]["steps"] == 6
    records = read_metrics(finished_run)
    assert [r["step"] for r in records if r["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if r["split"] == "val"] == [6]
    assert sorted(path.name for path in (finished_run / "checkpoints").iterdir()) == ["4", "6"]
    pictures = {
        (event.step, value.tag)
        for event in events_in(finished_run / "tensorboard")
        for value in event.summary.value
        if value.HasField("image")
    }
    assert pictures == {(6, f"val/{number}") for number in range(1, config["log"]["pictures"] + 1)}
    evaluation = json.loads((finished_run / "evaluation_val.json").read_text())
    assert set(COCO_NUMBERS) < set(evaluation)
    assert set(evaluation["per_class"]) == {"disc", "rectangle", "triangle"}
    assert [entry["name"] for entry in json.loads((finished_run / "classes.json").read_text())] == [
        "disc", "rectangle", "triangle",
    ]  # fmt: skip


def test_a_run_on_eight_devices_compiles_each_step_once_and_says_so(tiny, finished_run, tmp_path, capsys, caplog):
    with jax.log_compiles(), devices_of_runs(8):
        assert main(["train", *tiny, "--workdir", str(tmp_path), "--config.mesh.model=4"]) == 0
    shown = capsys.readouterr().out
    for name in ("train step", "prediction step"):
        assert len(re.findall(rf"^{name} for images 8 x 64 x 64 (?:compiled|taken from)", shown, re.M)) == 1
    compiled = re.findall(r"Finished XLA compilation of jit\((\w+)\)", "\n".join(caplog.messages))
    assert [compiled.count(name) for name in ("train_step", "predict_step", "initialize")] == [1, 1, 1]
    assert read_metrics(tmp_path)[-1]["AP"] == pytest.approx(read_metrics(finished_run)[-1]["AP"], abs=1e-3)
    # What eight devices have saved in parts, one restores.
    assert main(["evaluate", "--workdir", str(tmp_path), "--sheets=0"]) == 0
    assert "evaluating step 6" in capsys.readouterr().out
    with devices_of_runs(8):
        assert main(["train", *tiny, "--workdir", str(tmp_path / "other"), "--config.mesh.model=3"]) == 2
    assert "mesh.model must divide the number of devices, 8, got 3" in capsys.readouterr().err


def test_train_step_gives_the_state_back_in_the_place_of_the_old_one(tiny):
    config = load_config([f"--config={tiny[1]}"])
    mesh = meshes.make_mesh(jax.devices()[:1])
    model = build.make_model(config, 3)
    optimizer, schedule = build.make_optimizer_and_schedule(config)
    state = build.initial_state(config, model, optimizer, mesh)()
    step = build.compiled_train_step(config, model, optimizer, schedule, mesh)
    memory = step.lower(state, build.example_batch(config)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_same_command_again_has_nothing_to_do(finished_run, tiny, capsys):
    before = (finished_run / "metrics.jsonl").read_bytes()
    assert main(["train", *tiny, "--workdir", str(finished_run)]) == 0
    assert "resumed" in capsys.readouterr().out
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_other_config_on_the_same_workdir_is_refused_with_the_difference(finished_run, tiny, capsys):
    assert main(["train", *tiny, "--workdir", str(finished_run), "--config.loss.gamma=1.5", "--config.seed=3"]) == 2
    error = capsys.readouterr().err
    assert "loss.gamma: 2.0 there, 1.5 now" in error
    assert "seed: 0 there, 3 now" in error


def test_what_is_watched_may_change(finished_run, tiny):
    assert main(["train", *tiny, "--workdir", str(finished_run), "--config.log.every=2"]) == 0


def test_the_lines_of_the_docs_restore_a_run(finished_run):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace: dict = {}
    exec(block.replace("/absolute/path/of/WORKDIR", str(finished_run)), namespace)
    assert namespace["gamma"] == 2.0
    assert {"backbone", "fpn"} <= set(namespace["params"])
    assert set(namespace["saved"]["state"]) == {field.name for field in dataclasses.fields(TrainState)}


def test_loss_that_is_not_finite_ends_the_run_with_its_images_and_the_state_before_it(tiny, tmp_path, capsys):
    diverging = ["--config.optim.learning_rate=1e38", "--config.optim.warmup_steps=0", "--config.optim.clip_norm=0.0"]
    assert main(["train", *tiny, "--workdir", str(tmp_path), *diverging]) == 1
    output = capsys.readouterr()
    (path,) = (tmp_path / "nonfinite").iterdir()
    found = json.loads(path.read_text())
    assert path.name == f"step_{found['step']}.json"
    assert str(path) in output.out
    assert f"at step {found['step']}: lower optim.learning_rate" in output.err
    assert len(found["image_ids"]) == 8
    assert not (np.isfinite(float(found["loss"])) and np.isfinite(float(found["gradient_norm"])))
    steps = [int(entry.name) for entry in (tmp_path / "checkpoints").iterdir()]
    assert max(steps) == found["step"] - 1
    assert [r["step"] for r in read_metrics(tmp_path)] == list(range(1, found["step"]))


def test_evaluate_writes_metrics_results_and_sheets(finished_run, capsys):
    assert main(["evaluate", "--workdir", str(finished_run), "--split", "test", "--sheets", "3"]) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("AP50", "ARl", "triangle"))
    evaluation = json.loads((finished_run / "evaluation_test.json").read_text())
    assert set(COCO_NUMBERS) < set(evaluation)
    assert evaluation["overrides"] == []
    detections = json.loads((finished_run / "detections_test.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(detections[0])
    assert {d["category_id"] for d in detections} <= {1, 2, 3}
    sheet = cv2.imread(str(finished_run / "sheets_test" / "sheet_01.jpg"))
    assert sheet.shape[1] > 128


def test_evaluate_takes_overrides_of_thresholds_and_no_others(finished_run, capsys):
    assert main(["evaluate", "--workdir", str(finished_run), "--sheets=0", "--config.eval.max_detections=1"]) == 0
    detections = json.loads((finished_run / "detections_val.json").read_text())
    per_image = {d["image_id"]: 0 for d in detections}
    for detection in detections:
        per_image[detection["image_id"]] += 1
    assert set(per_image.values()) == {1}
    evaluation = json.loads((finished_run / "evaluation_val.json").read_text())
    assert evaluation["overrides"] == ["--config.eval.max_detections=1"]
    assert main(["evaluate", "--workdir", str(finished_run), "--config.model.backbone=resnet50"]) == 2
    assert "only settings of the groups eval and data" in capsys.readouterr().err


@pytest.fixture(scope="module")
def samples(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples")
    assert main(["samples", *tiny, "--out", str(out), "--split", "test", "--count", "8"]) == 0
    return out


def test_a_checkpoint_is_chosen_by_its_step_or_as_the_best(finished_run, tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # As if the evaluation after step 4 had been the best.
    records.append({**records[-1], "step": 4, "split": "val", "AP": 1.0})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, step in (("best", 4), ("4", 4), ("6", 6), ("latest", 6)):
        assert main(["evaluate", "--workdir", str(workdir), "--sheets=0", f"--step={name}"]) == 0
        assert f"evaluating step {step} of" in capsys.readouterr().out
    weights = {step: Detector.from_workdir(workdir, step=step).variables() for step in ("best", 4, "latest")}
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    assert same(weights["best"], weights[4])
    assert not same(weights["best"], weights["latest"])
    assert main(["convert", str(workdir), str(tmp_path / "four.npz"), "--step=4"]) == 0
    assert "read step 4 of the run" in capsys.readouterr().out
    for name, words in (
        ("first", "expected latest, best or the number of a step"),
        ("5", "there are those of steps 4, 6"),
    ):
        assert main(["evaluate", "--workdir", str(workdir), f"--step={name}"]) != 0
        assert words in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(workdir), "--step=best", "--config.eval.split=test"]) != 0
    assert "has no AP on test" in capsys.readouterr().err


def test_predict_draws_each_image_and_writes_one_json(finished_run, samples, tmp_path, capsys):
    image = next(iter(sorted((samples / "images").iterdir())))
    arguments = ["predict", "--workdir", str(finished_run), "--out", str(tmp_path), "--min_score=0.005"]
    assert main([*arguments, str(image), str(samples / "images")]) == 0
    records = json.loads((tmp_path / "predictions.json").read_text())
    assert len(records) == 9
    # The first image is named twice, so its two pictures have numbers.
    pictures = {path.name for path in tmp_path.glob("*.jpg")}
    assert len(pictures) == 9
    assert {f"{image.stem}_1.jpg", f"{image.stem}_2.jpg"} <= pictures
    first = records[0]
    assert (first["file_name"], first["width"], first["height"]) == (str(image), 64, 64)
    assert first["detections"]
    for detection in first["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 <= x2 <= 64
        assert 0 <= y1 <= y2 <= 64
        assert detection["label"] in ("disc", "rectangle", "triangle")
    scores = [d["score"] for d in first["detections"]]
    assert scores == sorted(scores, reverse=True)


def test_predict_leaves_out_what_is_no_image_and_says_so(finished_run, samples, tmp_path, capsys):
    good = next(iter(sorted((samples / "images").iterdir())))
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    out = tmp_path / "out"
    assert main(["predict", "--workdir", str(finished_run), "--out", str(out), str(bad), str(good)]) == 1
    assert "left out: " in capsys.readouterr().out
    assert [record["file_name"] for record in json.loads((out / "predictions.json").read_text())] == [str(good)]


def test_predict_names_a_file_that_is_not_there(finished_run, tmp_path, capsys):
    assert main(["predict", "--workdir", str(finished_run), "--out", str(tmp_path), "nothing.jpg"]) == 2
    assert "nothing.jpg does not exist" in capsys.readouterr().err


# Every level and layer is compiled by itself.
FEW_LAYERS = [
    "--config.model.levels=(3, 4)", "--config.anchors.sizes=(16.0, 32.0)", "--config.model.head_depth=1",
]  # fmt: skip

OWN_DATA = [
    "--config.data.image_size=(64, 64)", "--config.optim.steps=3", "--config.optim.warmup_steps=1",
    "--config.model.fpn_channels=8", "--config.model.head_channels=8", "--config.eval.batch_size=8",
    "--config.checkpoint.every=3", *FEW_LAYERS,
]  # fmt: skip


def own_data(images, annotations):
    root = pathlib.Path(__file__).parents[2]
    flags = [f"--config={root}/configs/own_data.py", *OWN_DATA]
    for split in ("train", "val"):
        flags += [f"--config.data.{split}.images={images}", f"--config.data.{split}.annotations={annotations}"]
    return flags


def test_own_folder_of_images_with_a_coco_file_trains_with_its_damage_reported(samples, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    document = json.loads((samples / "annotations.json").read_text())
    for position, entry in enumerate(document["images"]):
        content = (samples / "images" / entry["file_name"]).read_bytes()
        (images / entry["file_name"]).write_bytes(content[:500] if position == 0 else content)
    document["images"].append({"id": 999, "file_name": "missing.png", "width": 64, "height": 64})
    kept = document["images"][1]["id"]
    for category_id, bbox in ((1, [5, 5, 0, 9]), (1, [float("nan"), 0, 5, 5]), (77, [1, 1, 9, 9])):
        document["annotations"].append(
            {"id": 1000 + len(document["annotations"]), "image_id": kept, "category_id": category_id, "bbox": bbox}
        )
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(document))
    assert main(["train", *own_data(images, annotations), "--workdir", str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    for word in ("truncated", "missing.png", "zero or negative area", "finite", "unknown category"):
        assert word in output.err, word
    assert "7 images, 3 classes" in output.out
    assert "missing.png (image 999)" in (tmp_path / "run" / "data_report_train.txt").read_text()


def test_data_of_which_nothing_is_left_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"images": [')
    assert main(["train", *own_data(tmp_path, tmp_path / "a.json"), "--workdir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("focaljax: ")
    assert "a.json" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_run_interrupted_by_both_signals_ends_bit_for_bit_like_an_undisturbed_one(
    undisturbed, long_run, tmp_path, users_env
):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        before = len(read_metrics(tmp_path))
        process = run_cli(["train", *long_run, "--workdir", tmp_path], users_env)
        deadline = time.monotonic() + 120
        while len(read_metrics(tmp_path)) < before + 5:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, number)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == code, output
        assert ("resumed" in output) == (before > 0)
        assert f"stopped by {number.name} after step" in output
    last = run_cli(["train", *long_run, "--workdir", tmp_path], users_env)
    output = last.communicate(timeout=120)[0]
    assert last.returncode == 0, output
    assert "resumed" in output
    assert final_weights(tmp_path) == final_weights(undisturbed)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    assert (tmp_path / "detections_val.json").read_bytes() == (undisturbed / "detections_val.json").read_bytes()


@pytest.fixture(scope="module")
def long_run(tiny):
    """Long enough that two signals come in its middle: 80 steps of some 20 ms."""
    return [*tiny, "--config.optim.steps=80", "--config.checkpoint.every=40", "--config.eval.every=50"]


@pytest.fixture(scope="module")
def undisturbed(long_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = run_cli(["train", *long_run, "--workdir", workdir], {**os.environ, "XLA_FLAGS": ""})
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    return workdir


def final_weights(workdir):
    """The bytes of every array in a run's last checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        state = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    import jax

    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state["state"])]


def test_real_coco_images_with_crowds_and_sparse_ids_train_and_evaluate(shared_data, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    arguments = [
        f"--config={root}/configs/coco_sample.py",
        f"--config.data.root={shared_data / 'coco_sample'}",
        "--config.data.image_size=(96, 96)",
        "--config.optim.steps=3",
        "--config.optim.warmup_steps=1",
        "--config.model.fpn_channels=8",
        "--config.model.head_channels=8",
        *FEW_LAYERS,
        "--config.eval.batch_size=8",
        "--config.eval.score_threshold=0.005",
    ]
    assert main(["train", *arguments, "--workdir", str(tmp_path)]) == 0
    detections = json.loads((tmp_path / "detections_val.json").read_text())
    assert max(d["category_id"] for d in detections) > 80  # COCO's ids go to 90, the labels to 79
    assert len(json.loads((tmp_path / "evaluation_val.json").read_text())["per_class"]) == 80


@pytest.mark.parametrize(
    "settings",
    [
        {"classification": "softmax_cross_entropy", "mining": "hard_negatives", "normalizer": "none"},
        {"classification": "cross_entropy", "mining": "ohem", "mining_size": 64},
    ],
)
def test_other_losses_train_and_start_at_the_prior(tiny, tmp_path, settings):
    flags = [f"--config.loss.{name}={value}" for name, value in settings.items()]
    flags += ["--config.optim.steps=1", "--config.optim.warmup_steps=0", "--config.optim.learning_rate=1e-5"]
    flags += ["--config.eval.score_threshold=0.001"]
    assert main(["train", *tiny, *flags, "--workdir", str(tmp_path)]) == 0
    (record, _) = read_metrics(tmp_path)
    assert 0.0 < record["classification_loss"] < np.inf
    if settings["classification"].startswith("softmax"):
        # Before the network has learnt: an object's score is the prior among three classes, background's the rest.
        scores = [found["score"] for found in json.loads((tmp_path / "detections_val.json").read_text())]
        assert np.mean(scores) == pytest.approx(0.01 / 3, rel=0.3)
