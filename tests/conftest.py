"""What every room's tests share: eight CPU devices, a compile cache, the way to the shared data.

The environment is set here, before any test imports jax, and holds for each worker process of pytest-xdist too.
"""

import gc
import importlib.metadata
import os
import pathlib
import shutil
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_DEVICES = 8
MOST_BYTES_OF_A_WORKER = 3 * 2**30
LONGEST_FILES = (
    "tests/cli/test_runs.py",
    "tests/losses/test_transformations.py",
    "tests/parity/test_detectors.py",
    "tests/training/test_step.py",
)
# Most of the time goes into compiling programs that run for milliseconds: with hardly any optimisation and, where XLA
# still has it, the older way of writing fused loops they are compiled in half of it or less. tests/users_programs.py
# compiles as users do.
HAS_OLDER_LOOPS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
_FLAGS = (
    f"--xla_force_host_platform_device_count={NUM_DEVICES}",
    "--xla_backend_optimization_level=0",
    *(("--xla_cpu_use_fusion_emitters=false",) if HAS_OLDER_LOOPS else ()),
)

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py, which has to set the number of devices")
os.environ["JAX_PLATFORMS"] = "cpu"
if _FLAGS[0] not in os.environ.get("XLA_FLAGS", ""):
    # Of two equal flags the last one counts: whoever runs the tests may set others.
    os.environ["XLA_FLAGS"] = " ".join((*_FLAGS, os.environ.get("XLA_FLAGS", ""))).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_configure(config):
    # A busy machine is no fault of a test, and a run that can be repeated is worth more than new examples in each.
    import hypothesis

    hypothesis.settings.register_profile("focaljax", deadline=None, derandomize=True, print_blob=True)
    hypothesis.settings.load_profile("focaljax")


def pytest_collection_finish():
    # What is there now stays, and tracing makes millions of objects beside it: searched for garbage as often as Python
    # would, they cost a tenth of the time.
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items):
    # `make test` gives its two workers file after file: they end together if the last ones are short.
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST_FILES))


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data sets beside the repository; a test that asks for it is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: this test reads real data sets that are not part of the repository")
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs():
    """Thousands of programs take gigabytes in a worker: where it has grown large they go, and the disk keeps them."""
    yield
    if "jax" in sys.modules and _resident_bytes() > MOST_BYTES_OF_A_WORKER:
        sys.modules["jax"].clear_caches()
        gc.collect()


def _resident_bytes() -> int:
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 2**62  # unknown here
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def mesh_of_eight():
    """A mesh of eight CPU devices."""
    from focaljax.training.mesh import make_mesh

    return make_mesh()


@pytest.fixture
def users_env() -> dict[str, str]:
    """The environment for a subprocess that is to see a user's devices and compile as there; the cache is kept."""
    flags = os.environ["XLA_FLAGS"].split()
    return {**os.environ, "XLA_FLAGS": " ".join(flag for flag in flags if flag not in _FLAGS)}


@pytest.fixture
def programs(tmp_path):
    """A PATH with a shell's common programs, and none that could launch anything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "cat", "dirname", "env", "git", "sed", "sleep"):
        (folder / name).symlink_to(shutil.which(name))
    (folder / "python3").symlink_to(sys.executable)
    return folder
