"""Writes every setting of every config in configs/ to tests/golden/configs/NAME.txt, so that a changed default shows.

python -m tests.golden.make_configs        # from the root of the repository
"""

import contextlib
import pathlib
import tempfile

from focaljax.cli.config import flatten, load_config

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
GOLDEN = pathlib.Path(__file__).parent / "configs"


def resolved(config: pathlib.Path) -> str:
    """Returns the settings of a config file, a sorted line `key = value` each, as where no data folder is there."""
    with tempfile.TemporaryDirectory() as empty:
        project = pathlib.Path(empty) / "project"  # what lies beside it, such as shared/, is not there either
        project.mkdir()
        with contextlib.chdir(project):
            settings = list(flatten(load_config([f"--config={config}"])))
    return "".join(sorted(f"{key} = {value!r}\n" for key, value in settings))


def main() -> None:
    """Writes the files, and removes those of configs that are gone."""
    GOLDEN.mkdir(exist_ok=True)
    for old in set(GOLDEN.glob("*.txt")) - {GOLDEN / f"{config.stem}.txt" for config in CONFIGS}:
        old.unlink()
    for config in CONFIGS:
        (GOLDEN / f"{config.stem}.txt").write_text(resolved(config))


if __name__ == "__main__":
    main()
