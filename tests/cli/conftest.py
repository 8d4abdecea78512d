"""One small run, made once, that the tests of the command line look at."""

import pathlib

import pytest

from focaljax.cli.main import main

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def tiny(data_root):
    """The arguments that name the small config and its data."""
    return ["--config", TINY, f"--config.data.root={data_root}"]


@pytest.fixture(scope="session")
def finished_run(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert main(["train", *tiny, "--workdir", str(workdir)]) == 0
    return workdir
