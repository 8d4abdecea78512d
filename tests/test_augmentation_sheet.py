"""The sheet of augmentations: one row for each, all settings documented."""

import dataclasses
import pathlib
import subprocess
import sys

import cv2

from focaljax.data.augmentation import Augmentation
from tests.cli.conftest import TINY

ROOT = pathlib.Path(__file__).parents[1]


def sheet(*arguments):
    command = [sys.executable, str(ROOT / "experiments/augmentation_sheet.py"), "--config", TINY, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_sheet_of_a_config_has_a_row_for_each_augmentation(tmp_path):
    data = [f"--config.data.root={tmp_path}", "--config.data.shapes.num_train=4", "--images", "2"]
    result = sheet(*data, "--out", str(tmp_path / "sheet.png"))
    assert result.returncode == 0, result.stderr
    height, width, _ = cv2.imread(str(tmp_path / "sheet.png")).shape
    # Images of 64 px, gaps of 6, and 9 rows of them with a line of text.
    assert width == 2 * 64 + 3 * 6
    assert height > 9 * (64 + 6 + 12)


def test_mistake_is_one_line(tmp_path):
    result = sheet("--out", str(tmp_path / "sheet.png"), "--config.augment.mosiac=1")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "did you mean 'augment.mosaic'?" in result.stderr


def test_every_setting_is_on_the_page():
    page = (ROOT / "docs/augmentation.md").read_text()
    assert not [field.name for field in dataclasses.fields(Augmentation) if f"`{field.name}" not in page]
