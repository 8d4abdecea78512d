"""`focaljax export`: files that run without focaljax and find what the detector finds, or no files at all."""

import functools
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from focaljax import Detector
from focaljax.cli import export
from focaljax.cli.export import keeps_aspect_ratio, largest_sides
from focaljax.cli.main import main
from focaljax.data.images import decode_upright_image
from focaljax.data.views import fixed_size_view, shortest_edge_view
from focaljax.evaluation.drawing import write_image
from focaljax.evaluation.export import ExportError
from focaljax.models.weight_files import write_weights
from tests import small_detectors
from tests.cli.test_usage import fails

pytestmark = pytest.mark.usefixtures("one_device", "tiny_variant")

PAGE = (pathlib.Path(__file__).parents[2] / "docs/export.md").read_text()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    write_image(path, small_detectors.images((150, 100))[0])
    return path


@pytest.fixture(scope="module")
def exported(finished_run, photo, tmp_path_factory):
    """The folder of a run's program; what the command said."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(export, "say", said.append)
        command = ["export", "--workdir", str(finished_run), "--out", str(folder / "model.stablehlo"), str(photo)]
        assert main(command) == 0
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    return folder, "\n".join(said)


def example(heading):
    """The Python below a heading of the page."""
    return re.search(r"```python\n(.*?)```", PAGE.partition(heading)[2], re.DOTALL)[1]


def run_alone(code, folder):
    """Runs Python in a process of its own in that folder; returns what it prints."""
    code += "\nimport sys; assert not {'flax', 'focaljax'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_command_says_what_it_made_and_compared(exported):
    _, said = exported
    assert re.search(r"made the program for cpu, cuda, tpu: \d+\.\d MB in \d+\.\d s", said)
    assert "ran in a process with jax alone" in said
    for count in (1, 3):
        line = re.search(rf"batch of {count}: (\d+) objects, boxes within (\S+) px and scores within (\S+) of", said)
        assert int(line[1]) >= count
        assert float(line[2]) <= 1e-3
        assert float(line[3]) <= 1e-5


@pytest.mark.parametrize(("dtype", "code"), [("bfloat16", 0), ("float32", 1)])
def test_rounding_of_bfloat16_is_no_error_of_the_file(finished_run, tmp_path, monkeypatch, photo, dtype, code):
    run = shutil.copytree(finished_run, tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["dtype"] = dtype
    (run / "config.json").write_text(json.dumps(settings))
    run_program = export._run_alone

    def rounded(*arguments):
        # What a GPU's machine was seen to differ by, where the two programs round in other places.
        found, seconds = run_program(*arguments)
        return {name: array + 0.086 if name.startswith("boxes") else array for name, array in found.items()}, seconds

    monkeypatch.setattr(export, "_run_alone", rounded)
    assert main(["export", "--workdir", str(run), "--out", str(tmp_path / "model.stablehlo"), str(photo)]) == code
    assert (tmp_path / "model.stablehlo").is_file() == (code == 0)


def test_folder_holds_the_program_and_what_its_user_has_to_know(exported, finished_run):
    folder, _ = exported
    assert {path.name for path in folder.iterdir()} == {"model.stablehlo", "model.stablehlo.json", "photo.jpg"}
    about = json.loads((folder / "model.stablehlo.json").read_text())
    assert about["image_size"] == [64, 64]
    assert about["keeps_aspect_ratio"]
    assert about["categories"] == json.loads((finished_run / "classes.json").read_text())
    assert about["thresholds"]["max_detections"] == 20
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["detector"].startswith("step 6 of ")
    assert about["versions"].keys() == {"focaljax", "jax"}


def test_example_of_the_page_finds_what_the_detector_finds(exported, finished_run):
    folder, _ = exported
    code = example("## With jax alone") + "\nnp.savez('found.npz', boxes=boxes_xyxy, **found)"
    printed = run_alone(code, folder).splitlines()
    (expected,) = Detector.from_workdir(finished_run)(folder / "photo.jpg")
    found = np.load(folder / "found.npz")
    count = len(expected)
    assert len(printed) == found["is_detection"].sum() == count > 0
    np.testing.assert_allclose(found["scores"][:count], expected.scores, atol=1e-5)
    np.testing.assert_allclose(found["boxes"][:count], expected.boxes_xyxy, atol=1e-3)
    np.testing.assert_array_equal(found["labels"][:count], expected.labels)
    assert {line.split()[0] for line in printed} <= {"disc", "rectangle", "triangle"}
    (folder / "found.npz").unlink()


def test_images_of_mlperf_are_stretched():
    view = functools.partial(shortest_edge_view, min_size=64, max_size=64, pad_multiple=32)
    assert keeps_aspect_ratio(view)
    assert not keeps_aspect_ratio(functools.partial(view, keeps_aspect_ratio=False))


def test_largest_sides_of_a_view_are_those_that_it_was_made_with():
    view = functools.partial(shortest_edge_view, min_size=80, max_size=133, pad_multiple=32)
    assert largest_sides(view) == [80, 133]
    view = functools.partial(fixed_size_view, height=107, width=200)
    assert largest_sides(view) == [107, 200]
    assert largest_sides(functools.partial(view, largest_sides=(80, 133))) == [80, 133]


def test_weights_have_the_size_that_is_asked_for(weights, tmp_path):
    out = tmp_path / "model.stablehlo"
    command = ["export", "--weights", weights, "--variant=tiny", "--image_size=64,80", "--out", str(out)]
    assert main([*command, "--platforms=cpu,rocm"]) == 0
    about = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert (about["image_size"], about["platforms"]) == ([64, 80], ["cpu", "rocm"])
    assert about["categories"][6] == {"id": 7, "name": "class 6"}


def test_program_that_finds_something_else_leaves_no_file(weights, tmp_path, monkeypatch, capsys):
    made = export.make_predict_step
    monkeypatch.setattr(
        export, "make_predict_step", lambda model, **settings: made(model, **{**settings, "pixels": {"std": (9, 9, 9)}})
    )
    out = tmp_path / "model.stablehlo"
    out.write_bytes(b"mine")
    command = ["export", "--weights", weights, "--variant=tiny", "--image_size=64,80", "--out", str(out), "--force"]
    fails(capsys, command, "is wrong and was removed", code=1)
    # What was there before stays.
    assert [path.name for path in tmp_path.iterdir()] == ["model.stablehlo"]
    assert out.read_bytes() == b"mine"


def test_file_that_is_no_program_does_not_pass(tmp_path):
    path = tmp_path / "model.stablehlo"
    path.write_bytes(b"no program")
    with pytest.raises(ExportError, match="does not run in a process of its own"):
        export._run_alone(path, [(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 2), 8, np.int32))])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("--out=FILE is needed",)),
        (["--out=model.pb"], ("model.pb", ".stablehlo or .onnx")),
        (["--out=x.stablehlo"], ("one of --weights=FILE and --workdir=DIR",)),
        (["--out=x.stablehlo", "--workdir=w", "--image_size=64,64"], ("goes with --weights", "data.image_size")),
        (["--out=x.stablehlo", "--weights=w.npz", "--image_size=64"], ("--image_size=64", "such as 800,1088")),
        (["--out=x.stablehlo", "--weights=w.npz", "--platforms=gpu"], ("'gpu' is none of cpu, cuda",)),
        (["--out=x.stablehlo", "--weights=w.npz", "--platforms="], ("--platforms is empty",)),
        (["--out=x.stablehlo", "--weights=no_such_file.npz"], ("no_such_file.npz",)),
        (["--out=x.stablehlo", "--weights=w.npz", "no_such_image.jpg"], ("no_such_image.jpg does not exist",)),
        (["--out=."], ("must end in .stablehlo",)),
        (["--out=x.stablehlo", "--wieghts=w.npz"], ("unknown flag --wieghts", "'weights'")),
    ],
)
def test_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, ["export", *arguments], *words)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path, capsys):
    (tmp_path / "x.stablehlo").mkdir()
    command = ["export", "--weights=w.npz", "--force", "--out", str(tmp_path / "x.stablehlo")]
    fails(capsys, command, "x.stablehlo is a folder")
    (tmp_path / "file").write_bytes(b"")
    command[-1] = str(tmp_path / "file" / "more" / "x.stablehlo")
    fails(capsys, command, "file is a file, not a folder")


def test_several_scales_are_refused(weights, tmp_path, capsys):
    command = ["export", "--weights", weights, "--variant=tiny", "--scales=1,2", "--out", str(tmp_path / "x.stablehlo")]
    fails(capsys, command, "scales 1.0, 2.0", "one view of an image")


def test_existing_files_are_kept_without_force(tmp_path, capsys):
    (tmp_path / "x.stablehlo.json").write_text("mine")
    fails(capsys, ["export", "--weights=w.npz", "--out", str(tmp_path / "x.stablehlo")], "x.stablehlo.json", "--force")


@pytest.mark.parametrize(
    ("suffix", "package", "extra"), [(".stablehlo", "flatbuffers", "train"), (".onnx", "jax2onnx", "onnx")]
)
def test_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, capsys, suffix, package, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["export", "--weights=w.npz", "--out", str(tmp_path / f"x{suffix}")]
    fails(capsys, command, f"needs the package {package}", f"pip install 'focaljax[{extra}]'")


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory, photo):
    """An ONNX file of a detector with a pooling, which jax2onnx needs help with, and an image of its size."""
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"the extra `onnx` is not installed: no {package}", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("onnx")
    write_weights(folder / "resnet18.npz", small_detectors.state_dict())
    command = ["export", "--weights", str(folder / "resnet18.npz"), "--image_size=96,64", str(photo)]
    assert main([*command, "--out", str(folder / "model.onnx")]) == 0
    write_image(folder / "fitting.jpg", small_detectors.images((96, 64))[0])
    return folder


def test_onnx_file_gives_every_anchor_and_the_example_of_the_page_runs(onnx_folder):
    save = "\nnp.savez('found.npz', boxes=boxes[kept], scores=scores[kept], labels=labels[kept])"
    printed = run_alone(example("## With ONNX") + save, onnx_folder).splitlines()
    detector = Detector.from_weights(onnx_folder / "resnet18.npz")
    path = onnx_folder / "fitting.jpg"
    image = decode_upright_image(path.read_bytes(), file_name=str(path), image_id=0)
    expected = detector.predict_views(image[None], np.array([[96, 64]], np.int32))
    found = np.load(onnx_folder / "found.npz")
    best = np.flatnonzero(expected.is_detection[0])[:10]
    assert len(best) == 10
    assert len(printed) > 10
    for row in best:
        apart = np.abs(found["boxes"] - expected.boxes_xyxy[0, row]).max(axis=1)
        apart += 100 * np.abs(found["scores"] - expected.scores[0, row]) + (found["labels"] != expected.labels[0, row])
        assert apart.min() < 0.05


def test_onnx_file_holds_the_weights_once(onnx_folder):
    weights, file = ((onnx_folder / name).stat().st_size for name in ("resnet18.npz", "model.onnx"))
    assert 0.9 * weights < file < 1.02 * weights


@pytest.mark.parametrize("wrong", [{"pixels": {"std": (9, 9, 9)}}, {"softmax": True}])
def test_onnx_file_of_something_else_is_removed(onnx_folder, monkeypatch, capsys, wrong):
    made = export.make_anchor_step
    monkeypatch.setattr(export, "make_anchor_step", lambda model, **settings: made(model, **{**settings, **wrong}))
    out = onnx_folder / "wrong.onnx"
    command = ["export", "--weights", str(onnx_folder / "resnet18.npz"), "--image_size=96,64", "--out", str(out)]
    fails(capsys, command, "is wrong and was removed", code=1)
    assert not list(onnx_folder.glob("wrong.onnx*"))


def test_onnx_file_is_for_no_platform_in_particular(onnx_folder, capsys):
    command = ["export", "--weights", str(onnx_folder / "resnet18.npz"), "--platforms=tpu"]
    fails(capsys, [*command, "--out", str(onnx_folder / "tpu.onnx")], "--platforms goes with a .stablehlo")


def test_onnx_file_has_one_view(onnx_folder, capsys):
    command = ["export", "--weights", str(onnx_folder / "resnet18.npz"), "--image_size=96,64", "--flip"]
    fails(capsys, [*command, "--out", str(onnx_folder / "flipped.onnx")], "--flip")
    assert not (onnx_folder / "flipped.onnx").exists()
