"""What the README and the docs show is true: Python runs, named files exist, commands name known settings."""

import dataclasses
import pathlib
import re

import numpy as np

from focaljax import losses
from focaljax.cli.config import load_config
from focaljax.evaluation.drawing import write_image
from focaljax.models.variants import VARIANTS
from focaljax.models.weight_files import write_weights
from tests import small_detectors

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    # The files that its examples read: a small torchvision v1, and two photographs.
    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(VARIANTS["torchvision_v1"], preprocessing=small_detectors.SMALL)
    monkeypatch.setitem(VARIANTS, "torchvision_v1", small)
    write_weights("retinanet.safetensors", small_detectors.state_dict())
    for name, image in zip("ab", small_detectors.images((48, 60), (70, 40)), strict=True):
        write_image(f"{name}.jpg", image)
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, namespace)
    assert capsys.readouterr().out.count("[[") == 2
    # 80 logits of 0 for 1000 anchors, of which one is assigned: 79999 outputs at (1 - alpha) ln 2 / 4, one at alpha.
    expected = np.log(2.0) / 4 * (0.75 * 79_999 + 0.25)
    np.testing.assert_allclose(namespace["image_loss"], expected, rtol=1e-5)


def test_python_of_the_loss_page_runs(capsys):
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/losses.md").read_text(), re.DOTALL):
        exec(block, namespace)
    # In each image one anchor is assigned, one ignored, 998 are background; sigmoid(-4.6) = 0.00995.
    p = 1 / (1 + np.exp(4.6))
    background = 0.75 * p**2 * -np.log1p(-p)
    expected = (80 * 998 + 79) * background + 0.25 * (1 - p) ** 2 * -np.log(p)
    np.testing.assert_allclose(namespace["loss"], expected, rtol=1e-4)
    # Three negatives are kept beside the positive.
    np.testing.assert_allclose(namespace["ssd"], expected - (998 - 3) * 80 * background, rtol=1e-4)
    assert capsys.readouterr().out.startswith("[1.0536")


def test_every_loss_is_on_the_loss_page():
    page = (ROOT / "docs/losses.md").read_text()
    names = [name for name in losses.__all__ if not name.isupper()]
    assert len(names) > 25
    missing = [name for name in names if name.removesuffix("_with_integer_labels") not in page]
    assert not missing


def test_named_files_exist():
    for name in re.findall(r"\b(?:configs|docs|tests)/[\w/.]+\.(?:py|jpg|png|md)", README):
        assert (ROOT / name).is_file(), name


def test_named_settings_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"focaljax train --config (\S+)(.*?)(?:\n\n|```)", README.replace("\\\n", " "), re.DOTALL)
    assert len(commands) >= 2
    for config, rest in commands:
        load_config([f"--config={config}", *re.findall(r"--config\.\S+=\S+", rest)])
