"""Mistakes on the command line: one clear line with the nearest known name, exit code 2, no traceback."""

import subprocess
import sys

import pytest

from focaljax.cli.main import VERBS, main
from tests.cli.conftest import TINY


def fails(capsys, arguments, *words, code=2):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("focaljax: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error
    return error


TRAIN = ["train", "--config", TINY, "--workdir", "unused"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ()),
        (["trian"], ("unknown verb 'trian'", "did you mean 'train'")),
        (["train", "--workdir", "w"], ("one --config=FILE is needed",)),
        (["train", "--config", TINY], ("--workdir=DIR is needed",)),
        (
            ["train", "--config", "configs/shape.py", "--workdir", "w"],
            ("configs/shape.py does not exist", "configs/shapes.py"),
        ),
        ([*TRAIN, "--config.optim.learning_rat=1"], ("optim.learning_rat", "did you mean 'optim.learning_rate'")),
        ([*TRAIN, "--config.gamma=1.5"], ("unknown setting --config.gamma", "did you mean 'loss.gamma'")),
        ([*TRAIN, "config.loss.gamma=1.5"], ("lacks its dashes", "--config.loss.gamma=1.5")),
        ([*TRAIN, "--config.loss.gamma=two"], ("--config.loss.gamma=two: expected a number",)),
        ([*TRAIN, "--config.optim.steps=1.5"], ("expected a whole number",)),
        ([*TRAIN, "--config.matching.low_quality=maybe"], ("expected true or false",)),
        ([*TRAIN, "--config.data.image_size=64"], ("expected a tuple",)),
        ([*TRAIN, "--config.loss=focal"], ("is a group of settings",)),
        ([*TRAIN, "--config.loss.gamma"], ("lacks its value",)),
        ([*TRAIN, "--worktree=x"], ("unknown flag --worktree", "did you mean 'workdir'")),
        ([*TRAIN, "stray"], ("unexpected argument 'stray'",)),
        ([*TRAIN, "--config.model.backbone=resnet51"], ("resnet_tiny, resnet18", "'resnet51'")),
        ([*TRAIN, "--config.model.norm=bn"], ("batch_norm", "'bn'")),
        ([*TRAIN, "--config.loss.classification=hinge"], ("focal, balanced_cross_entropy",)),
        ([*TRAIN, "--config.loss.gamma=-1"], ("gamma must be at least 0",)),
        ([*TRAIN, "--config.model.prior=0"], ("prior must be between 0 and 1",)),
        ([*TRAIN, "--config.optim.batch_size=12"], ("batch size 12", "number of devices, 8")),
        ([*TRAIN, "--config.optim.accumulate=3"], ("batch size 8", "devices, 8 times that of the batch's parts, 3")),
        ([*TRAIN, "--config.optim.accumulate=0"], ("optim.accumulate must be at least 1, got 0",)),
        ([*TRAIN, "--config.anchors.sizes=(16.0,)"], ("one size a level",)),
        ([*TRAIN, "--config.augment.horizontal_flip=2"], ("horizontal_flip",)),
        ([*TRAIN, "--config.data.source=imagenet"], ("'coco', 'voc', 'tfds' or 'shapes'",)),
        ([*TRAIN, "--config.data.source=coco"], ("needs --config.data.train.images",)),
        ([*TRAIN, "--config.eval.suppression=soft"], ("hard, linear, gaussian", "'soft'")),
        ([*TRAIN, "--config.eval.split=dev"], ("train, val, test", "'dev'")),
        (["evaluate", "--workdir", "no_such_run"], ("no_such_run", "focaljax train")),
        (["predict", "--workdir", "no_such_run", "--out", "o", "i.jpg"], ("no_such_run",)),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(__file__.rsplit("/tests/", 1)[0])
    if not arguments:
        assert main(arguments) == 2
        assert "Usage: focaljax VERB" in capsys.readouterr().out
        return
    fails(capsys, arguments, *words)


def test_mistakes_in_a_config_file_name_file_and_line(tmp_path, capsys):
    config = tmp_path / "broken.py"
    config.write_text("def get_config():\n    return undefined_name\n")
    fails(capsys, ["train", "--config", str(config), "--workdir", "w"], "broken.py, line 2", "undefined_name")
    config.write_text(
        "from focaljax.cli.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.loss.gama = 1.0\n    return config\n"
    )
    fails(capsys, ["train", "--config", str(config), "--workdir", "w"], "unknown setting loss.gama", "loss.gamma")


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_and_needs_no_jax(verb):
    command = (
        "import sys; from focaljax.cli.main import main; code = main(sys.argv[1:]); "
        "assert 'jax' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", command, verb, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"focaljax {verb}" in result.stdout
    assert "Example:\n  focaljax " in result.stdout


def test_module_and_version():
    result = subprocess.run([sys.executable, "-m", "focaljax", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("focaljax 0.")
