"""The compile cache that the program switches on: where it is, that a second process finds what the first compiled."""

import os
import subprocess
import sys

import pytest

JAX_VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)

SCRIPT = """
import jax
from focaljax.cli.runtime import keep_compiled_programs
from focaljax.training.programs import ProgramPerShape

keep_compiled_programs()
print(jax.config.values["jax_compilation_cache_dir"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
add = jax.jit(lambda state, batch: state + batch["image"].sum())
step = ProgramPerShape(add, "sum", lambda one: print(one.is_from_cache))
step(1.0, {"image": jax.numpy.ones((2, 3, 3, 3))})
"""


def run(home, **variables):
    env = {name: value for name, value in os.environ.items() if name not in JAX_VARIABLES}
    env |= {"XDG_CACHE_HOME": str(home), **variables}
    completed = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()


def test_second_process_takes_the_program_from_the_users_cache_folder(tmp_path):
    (folder, first), (again, second) = run(tmp_path), run(tmp_path)
    assert folder.startswith(str(tmp_path / "focaljax" / "programs-"))
    assert folder == again
    assert (first, second) == ("False", "True")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JAX_COMPILATION_CACHE_DIR": "{other}"}, "{other}"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
    ],
)
def test_settings_of_jax_come_first(tmp_path, variables, expected):
    other = str(tmp_path / "other")
    variables = {name: value.format(other=other) for name, value in variables.items()}
    folder, _ = run(tmp_path / "home", **variables)
    assert folder == expected.format(other=other)
    assert not (tmp_path / "home").exists()


def test_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file")[1] == "False"
