"""The same numbers on one device, on eight, on two processes of four, and with the state split among devices."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from focaljax.training import mesh as meshes
from focaljax.training.collectives import collectives_of
from focaljax.training.hlo import parse
from focaljax.training.metrics import read_metrics
from focaljax.training.programs import jit_for_one_run
from focaljax.training.state import state_shardings
from tests.training.conftest import SmallDetector, make_batch

STEPS = 20
# Each normaliser and each kind of normalisation that looks at the batch or not.
KINDS = [("group_norm", "image"), ("batch_norm", "batch"), ("batch_norm", "ema")]


def detector_of(norm, normalizer):
    # Not Adam: it takes a gradient that is nothing but rounding as far as any other.
    return SmallDetector(norm=norm, normalizer=normalizer, optimizer="sgd", learning_rate=1e-2)


def compiled_step(detector, mesh, large=2**60):
    places = state_shardings(jax.device_get(detector.initial_state()), mesh, large=large)
    shardings = {"in_shardings": (places, meshes.split_batch(mesh)), "out_shardings": (places, meshes.replicated(mesh))}
    return jit_for_one_run(detector.train_step, **shardings), places


def train(norm, normalizer, mesh, large=2**60):
    """Losses of twenty steps, with what else is summed over the batch, and the variables after them."""
    detector = detector_of(norm, normalizer)
    step, places = compiled_step(detector, mesh, large=large)
    state = jax.jit(lambda state: state, out_shardings=places)(jax.device_get(detector.initial_state()))
    rows = slice(None)
    if jax.process_count() > 1:
        share = 8 // jax.process_count()
        rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    losses = []
    for seed in range(STEPS):
        batch = {name: values[rows] for name, values in make_batch(seed).items()}
        state, metrics = step(state, meshes.put_batch(batch, mesh))
        losses.append([float(metrics[name]) for name in ("loss", "positives", "positive_share")])
    variables = meshes.copy_to_all((state.params, state.batch_stats, state.ema_params), mesh)
    return losses, jax.device_get(variables), state


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for (path, a), b in zip(jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True):
        # Relative to the array: single weights near 0 are sums of others that cancel.
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert error <= 1e-5, (jax.tree_util.keystr(path), error)


@pytest.fixture(scope="module")
def on_one_device():
    mesh = meshes.make_mesh(jax.devices()[:1])
    return {kind: train(*kind, mesh)[:2] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_give_what_one_does(kind, on_one_device):
    assert len(jax.devices()) == 8
    assert_same(train(*kind, meshes.make_mesh()), on_one_device[kind])


def test_state_split_among_devices_gives_the_same_and_takes_less_room(on_one_device):
    mesh = meshes.make_mesh(model=4)
    losses, variables, state = train(*KINDS[0], mesh, large=2**14)
    assert_same((losses, variables), on_one_device[KINDS[0]])
    bytes_of = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    for tree in (state.opt_state, state.ema_params):
        assert bytes_of(tree) < 0.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    # Of the weights, large arrays alone.
    for leaf in jax.tree.leaves(state.params):
        assert (leaf.addressable_shards[0].data.size < leaf.size) == (leaf.size >= 2**14)


def test_axis_that_does_not_divide_the_devices_is_refused():
    with pytest.raises(ValueError, match=r"mesh\.model must divide the number of devices, 8, got 3"):
        meshes.make_mesh(model=3)


def test_devices_tell_each_other_gradients_and_counts_and_nothing_else():
    mesh = meshes.make_mesh()
    detector = detector_of("batch_norm", "batch")
    step, _ = compiled_step(detector, mesh)
    state = jax.device_get(detector.initial_state())
    found = collectives_of(parse(step.lower(state, make_batch()).compile().as_text()), mesh.size)
    assert {one.kind for one in found} == {"all-reduce"}
    numbers = sum(one.count * one.bytes // 4 for one in found)
    # No level of this pyramid is made of the last stage: its gradient is 0 and known to be.
    trained = [
        leaf for path, leaf in jax.tree.leaves_with_path(state.params) if "layer4" not in jax.tree_util.keystr(path)
    ]
    weights = sum(leaf.size for leaf in trained)
    statistics = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats))
    # Every gradient once, and besides them some numbers a channel for the batch's mean, variance and their gradients.
    assert weights <= numbers <= weights + 4 * statistics + 100


WORKER = """
import pickle, sys
import jax
import numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from focaljax.training import mesh as meshes
from focaljax.training.collectives import collectives_of
from focaljax.training.hlo import parse
from tests.training.test_devices import KINDS, train
assert (jax.process_count(), len(jax.local_devices()), len(jax.devices())) == (2, 4, 8)
mesh = meshes.make_mesh()
results = {kind: train(*kind, mesh)[:2] for kind in KINDS}
assert meshes.agree("of the first" if meshes.is_primary() else "of the second") == "of the first"
mine = 2**40 + jax.process_index()  # more than 32 bits, as ids of images may have
gathered = meshes.gather_rows({"ids": np.array([mine, -1]), "boxes": np.full((2, 3, 4), 0.5, np.float32)})
assert gathered["ids"].tolist() == [2**40, -1, 2**40 + 1, -1] and gathered["boxes"].shape == (4, 3, 4)
assert (gathered["boxes"] == 0.5).all()
if meshes.is_primary():
    with open(sys.argv[3], "wb") as file:
        pickle.dump(results, file)
"""


@pytest.fixture
def start_two(users_env):
    """Starts two processes of one run, with four devices each; those that are left at the end are killed."""
    started = []

    def start(script, *arguments):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
        paths = os.pathsep.join(path for path in sys.path if path)
        env = {**users_env, "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": paths}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        commands = [[sys.executable, "-c", script, address, str(index), *map(str, arguments)] for index in range(2)]
        started.extend(subprocess.Popen(command, env=env, **pipes) for command in commands)
        return started[-2:]

    yield start
    for process in started:
        process.kill()


def ended_well(workers):
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors


def test_two_processes_of_four_devices_give_what_one_device_does(on_one_device, start_two, tmp_path):
    ended_well(start_two(WORKER, tmp_path / "results"))
    with (tmp_path / "results").open("rb") as file:
        results = pickle.load(file)
    for kind in KINDS:
        assert_same(results[kind], on_one_device[kind])


LOOP = """
import pathlib, sys, time
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from focaljax.training import mesh as meshes
from focaljax.training.collectives import collectives_of
from focaljax.training.hlo import parse
from focaljax.training.loop import Intervals
from tests.training import test_loop
def train_step(state, batch):
    if int(sys.argv[4]):
        time.sleep(0.02)
        print("a step", flush=True)
    return step(state, batch)
mesh = meshes.make_mesh()
step = jax.jit(test_loop.train_step, in_shardings=(meshes.replicated(mesh), meshes.split_batch(mesh)),
               out_shardings=meshes.replicated(mesh))
state, stopped_by = test_loop.run(pathlib.Path(sys.argv[3]), steps=500, mesh=mesh, train_step=train_step,
                                  intervals=Intervals(record=50, evaluate=100, save=100))
print(f"stopped by {stopped_by} after {int(state.step)}", flush=True)
"""


@pytest.mark.parametrize("told", [0, 1])
def test_preemption_of_one_process_saves_the_same_step_in_both_and_the_run_goes_on(start_two, tmp_path, told):
    workers = start_two(LOOP, tmp_path / "run", 1)
    for worker in workers:
        assert any(line == "a step\n" for line in worker.stdout)  # after what Gloo says of its connections
    started = time.monotonic()
    workers[told].send_signal(signal.SIGTERM)
    ends = [worker.communicate(timeout=60) for worker in workers]
    assert time.monotonic() - started < 30
    assert [worker.returncode for worker in workers] == [0, 0], ends
    last = {out.splitlines()[-1] for out, _ in ends}
    (step,) = {int(line.removeprefix("stopped by 15 after ")) for line in last}
    assert 0 < step < 500
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    if told == 0:  # once is enough
        ended_well(start_two(LOOP, tmp_path / "run", 0))
        ended_well(start_two(LOOP, tmp_path / "undisturbed", 0))
        assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "undisturbed")
