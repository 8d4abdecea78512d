"""One small run, made once, that the tests of the command line look at."""

import contextlib
import os
import pathlib

import jax
import pytest

from focaljax.cli.main import main
from focaljax.models.variables import flatten_variables
from focaljax.models.variants import VARIANTS
from focaljax.models.weight_files import write_weights
from focaljax.training import mesh as meshes
from tests import small_detectors

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@contextlib.contextmanager
def devices_of_runs(count):
    """As many devices for the verbs in this process, which would take all eight."""
    with pytest.MonkeyPatch.context() as patch:
        of = meshes.make_mesh
        some = jax.devices()[:count]
        patch.setattr(meshes, "make_mesh", lambda devices=None, model=1: of(devices or some, model=model))
        yield


@pytest.fixture(scope="module")
def one_device():
    """Verbs run on one device: a detector compiles much faster for one than for eight."""
    with devices_of_runs(1):
        yield


@pytest.fixture(scope="module")
def tiny_variant():
    """A published form that is small: `--variant tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", small_detectors.tiny_variant("torchvision_v1"))
        yield


@pytest.fixture(scope="module")
def weights(tiny_variant, tmp_path_factory):
    """The path of its weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    write_weights(path, flatten_variables(small_detectors.tiny_variables()))
    return str(path)


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
    with devices_of_runs(1):
        assert main(["train", *tiny, "--workdir", str(workdir)]) == 0
    return workdir


SWEEP = """
from focaljax.sweeps import Row, Sweep

def get_sweep():
    rows = [
        Row("gamma 0", {{"loss.gamma": 0.0}}, paper={{"AP": 0.31}}),
        Row("gamma 2, alpha .5", {{"loss.gamma": 2.0, "loss.alpha": 0.5}}),
    ]
    return Sweep("a table", {{"small": "{config}", "other": "{config}"}}, rows, seeds=(0, 7))
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(SWEEP.format(config=os.path.relpath(TINY, tmp_path)))
    return str(path)
