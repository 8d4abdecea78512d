"""What the README shows is true: its Python runs, the files it names exist, its commands name known settings."""

import pathlib
import re

import numpy as np

from focaljax.cli.config import load_config

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_of_the_readme_runs():
    namespace: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, namespace)
    # 80 logits of 0 for 1000 anchors, of which one is assigned: 79999 outputs at (1 - alpha) ln 2 / 4, one at alpha.
    expected = np.log(2.0) / 4 * (0.75 * 79_999 + 0.25)
    np.testing.assert_allclose(namespace["image_loss"], expected, rtol=1e-5)


def test_named_files_exist():
    for name in re.findall(r"\b(?:configs|docs|tests)/[\w/.]+\.(?:py|jpg|png)", README):
        assert (ROOT / name).is_file(), name


def test_named_settings_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"focaljax train --config (\S+)(.*?)(?:\n\n|```)", README.replace("\\\n", " "), re.DOTALL)
    assert len(commands) >= 2
    for config, rest in commands:
        load_config([f"--config={config}", *re.findall(r"--config\.\S+=\S+", rest)])
