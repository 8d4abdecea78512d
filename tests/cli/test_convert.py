"""`focaljax convert`: files and runs, both ways, with what was mapped; mistakes are one line."""

import json
import shutil

import jax
import numpy as np
import pytest

from focaljax.cli.main import main
from focaljax.models.pretrained import flatten_variables, load_variables, read_weights, to_torchvision, write_weights
from focaljax.models.retinanet import RetinaNet
from tests.cli.test_finetune import checkpoint
from tests.models import state_dicts
from tests.models.state_dicts import same

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    path = tmp_path_factory.mktemp("v1") / "v1.npz"
    write_weights(path, state_dicts.torchvision("retinanet_resnet50_fpn"))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A detector of torchvision with a ResNet-18 and narrow heads."""
    model = RetinaNet(num_classes=3, backbone="resnet18", fpn_channels=16, head_channels=16, p6_from="p5")
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("small") / "small.npz"
    write_weights(path, to_torchvision(jax.tree.map(lambda x: random.random(x.shape, np.float32), shapes)))
    return path


def fails(capsys, arguments, *words):
    assert main(["convert", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("focaljax: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    return error


def test_detector_goes_there_and_back_with_a_summary(v1, tmp_path, capsys):
    ours, back = tmp_path / "ours.npz", tmp_path / "back.npz"
    assert main(["convert", str(v1), str(ours), "--to=focaljax"]) == 0
    output = capsys.readouterr().out
    for words in (
        "301 arrays under torchvision detector names",
        "resnet50, frozen_batch_norm, levels 3 to 7, P6 from P5, 91 classes, 9 anchors per position",
        "mapped 301 arrays: 34,014,999 parameters",
        f"wrote {ours}: 301 arrays under the names of focaljax, {ours.stat().st_size / 1e6:.1f} MB",
    ):
        assert words in output, words
    assert "params/backbone/conv1/kernel" in read_weights(ours)
    assert main(["convert", str(ours), str(back)]) == 0
    assert "note: torchvision sees the same boxes" in capsys.readouterr().out
    assert same(read_weights(back), read_weights(v1))


def test_classifier_keeps_what_the_model_has_no_place_for(tmp_path, capsys):
    source, ours, back = tmp_path / "resnet18.npz", tmp_path / "ours.npz", tmp_path / "back.npz"
    write_weights(source, state_dicts.torchvision("resnet18"))
    assert main(["convert", str(source), str(ours), "--norm=batch_norm", "--to=focaljax"]) == 0
    output = capsys.readouterr().out
    assert "resnet18, batch_norm, no pyramid and no heads" in output
    assert "kept beside the model: 22 arrays" in output
    assert main(["convert", str(ours), str(back), "--to=torchvision"]) == 0
    assert same(read_weights(back), read_weights(source))


def test_detectron2_comes_in_and_does_not_go_to_torchvision(small, tmp_path, capsys):
    source = tmp_path / "d2.npz"
    write_weights(source, state_dicts.detectron2(read_weights(small)) | {"pixel_mean": np.zeros((3, 1, 1))})
    assert main(["convert", str(source), str(tmp_path / "ours.npz")]) == 0
    output = capsys.readouterr().out
    assert "137 arrays under detectron2 names" in output
    assert "left out: 1 arrays that the model has no place for (pixel_mean)" in output
    assert read_weights(tmp_path / "ours.npz").keys() == flatten_variables(load_variables(small).variables).keys()
    fails(capsys, [source, tmp_path / "x.npz", "--to=torchvision"], "other anchors", "--to=focaljax")


def test_run_is_exported_with_its_averaged_weights(finished_run, tmp_path, capsys):
    path = tmp_path / "run.npz"
    assert main(["convert", str(finished_run), str(path)]) == 0
    assert f"read step 6 of the run {finished_run}" in capsys.readouterr().out
    state = checkpoint(finished_run, 6)
    expected = flatten_variables({"params": state["ema_params"], "batch_stats": state["batch_stats"]})
    assert same(read_weights(path), expected)
    assert not same(expected, flatten_variables({"params": state["params"], "batch_stats": state["batch_stats"]}))
    assert same(flatten_variables(load_variables(path).variables), expected)
    fails(capsys, [path, tmp_path / "x.npz", "--to=torchvision"], "resnet_tiny", "no counterpart in torchvision")
    fails(capsys, [finished_run, tmp_path / "x.npz", "--to=torchvision"], "layout 'centered'", "--to=focaljax")
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("group", "settings", "words"),
    [
        ("anchors", {"layout": "centered"}, ("layout 'centered'",)),
        ("model", {"stride_in_1x1": True}, ("strides in 1x1",)),
        ("data", {"channel_order": "bgr"}, ("pixels", "'channel_order': 'bgr'", "'channel_order': 'rgb'")),
        ("data", {"pixel_mean": (127.5, 127.5, 127.5)}, ("pixels", "127.5, 127.5, 127.5", "123.675, 116.28, 103.53")),
        ("data", {"pixel_std": (1.0, 1.0, 1.0)}, ("pixels", "1.0, 1.0, 1.0", "58.395, 57.12, 57.375")),
    ],
)
def test_run_with_settings_that_torchvision_has_not_is_not_exported(
    finished_run, tmp_path, capsys, group, settings, words
):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(finished_run / "classes.json", workdir)
    config = json.loads((finished_run / "config.json").read_text())
    config["anchors"]["layout"] = "torchvision"
    config[group] |= settings
    (workdir / "config.json").write_text(json.dumps(config))
    fails(capsys, [workdir, tmp_path / "x.npz", "--to=torchvision"], *words, "--to=focaljax")


@pytest.mark.parametrize("to", ["torchvision", "focaljax"])
def test_run_with_a_softmax_is_not_made_a_file_that_is_read_as_sigmoids(finished_run, tmp_path, capsys, to):
    shutil.copy(finished_run / "classes.json", tmp_path)
    config = json.loads((finished_run / "config.json").read_text())
    config["loss"]["classification"] = "softmax_focal"
    (tmp_path / "config.json").write_text(json.dumps(config))
    fails(capsys, [tmp_path, tmp_path / "x.npz", f"--to={to}"], "softmax_focal", "`focaljax export`")


def test_existing_file_is_kept_without_force(small, tmp_path, capsys):
    path = tmp_path / "x.npz"
    path.write_bytes(b"mine")
    fails(capsys, [small, path], "exists already", "--force")
    assert path.read_bytes() == b"mine"
    assert main(["convert", str(small), str(path), "--force"]) == 0
    # torchvision's names stay, for `predict --weights` to know them by.
    assert same(read_weights(path), read_weights(small))


def test_faulty_weights_are_one_line_with_every_fault(small, tmp_path, capsys):
    state_dict = read_weights(small)
    state_dict["backbone.body.bn1.weigth"] = state_dict.pop("backbone.body.bn1.weight")
    source = tmp_path / "faulty.npz"
    write_weights(source, state_dict)
    fails(capsys, [source, tmp_path / "x.npz"], "faulty.npz", "bn1.weigth has no place", "bn1.weight is missing")
    state_dict["backbone.body.bn1.weight"] = state_dict.pop("backbone.body.bn1.weigth")
    state_dict["backbone.body.layer2.1.conv2.weight"] = np.zeros((128, 64, 3, 3), np.float32)
    write_weights(source, state_dict, overwrite=True)
    fails(
        capsys, [source, tmp_path / "x.npz"], "layer2_1/conv2/kernel has shape (3, 3, 64, 128), expected (3, 3, 128, 12"
    )
    assert not (tmp_path / "x.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("needs SRC and DST, got 0",)),
        (["a.npz"], ("got 1",)),
        (["a.npz", "b.npz"], ("a.npz does not exist",)),
        (["a.h5", "b.npz"], ("a.h5", ".safetensors, .npz, .pth")),
        (["a.npz", "b.npz", "--to=caffe"], ("caffe", "focaljax")),
        (["a.npz", "b.npz", "--froce"], ("unknown flag --froce", "'force'")),
    ],
)
def test_mistake_is_one_line(capsys, arguments, words):
    fails(capsys, arguments, *words)


def test_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    fails(capsys, [tmp_path, "b.npz"], "config.json does not exist")
