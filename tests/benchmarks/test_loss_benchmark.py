"""The benchmark of the loss, run once on a small batch, and the parts that judge what it measures."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest

from tests.benchmarks.scripts import imported, not_installed, run_script

SIZE = (2, 500, 5)
ANSWER = {
    "value": 2.0,
    "value beside the gradient": 2.0,
    "gradient norm": 0.5,
    "gradient times logits": -3.0,
    "gradient dtype": "float32",
}


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do."""
    with imported("loss", "interleaved", "batch", "report") as result:
        yield result


def run_benchmark(folder, packages, *flags):
    """Runs the script with stand-ins for packages, given as {name: source}."""
    common = ["--size", "x".join(map(str, SIZE)), "--rounds", "1", "--seed", "3"]
    return run_script("loss", folder, *common, *flags, stand_ins=packages)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run with optax as it is, torch not installed, and a Keras that breaks."""
    folder = tmp_path_factory.mktemp("benchmark")
    packages = {"torch": not_installed("torch"), "keras": "losses = None"}
    completed = run_benchmark(folder, packages)
    assert (folder / "loss.json").exists(), completed.stderr
    return completed, (folder / "loss.json").read_text()


def rows_of(small_run):
    return {row["name"]: row for row in json.loads(small_run[1])["contestants"]}


def test_every_contestant_that_runs_has_times_and_temporaries(small_run):
    rows = rows_of(small_run)
    for name in ("focaljax, class ids", "focaljax, one-hot given", "optax, one-hot given", "optax, one-hot inside"):
        assert rows[name]["status"] == "ok"
        for part in ("value", "gradient"):
            figures = rows[name][part]
            assert figures["median_ms"] >= figures["min_ms"] > 0
            assert figures["temporaries_mib"] >= 0
            assert len(figures["ms"]) == 1
    assert rows["focaljax, class ids"]["gradient"]["times_focaljax"] == 1.0
    floor = rows["floor: read logits, write as many"]
    assert "value" not in floor
    assert floor["gradient"]["times_floor"] == 1.0


def test_peer_that_is_not_installed_is_named_without_numbers(small_run):
    rows = rows_of(small_run)
    names = [name for name in rows if name.startswith("torch")]
    assert len(names) == 6
    for name in names:
        assert rows[name] == {"name": name, "status": "not installed (torch)"}
        assert f"{name:36}  not installed (torch)\n" in small_run[0].stdout


def test_peer_that_breaks_is_a_line_of_the_table_and_an_exit_status(small_run):
    completed, _ = small_run
    row = rows_of(small_run)["keras on JAX, one-hot given"]
    assert row["status"].startswith("failed: AttributeError")
    assert "value" not in row
    assert completed.returncode == 1
    assert "a contestant failed" in completed.stderr


def test_value_and_gradient_are_those_of_the_definition(small_run, modules):
    logits, labels = modules["batch"].synthetic_batch(SIZE, seed=3)
    x = logits.astype(np.float64)
    y = labels[..., None] == np.arange(SIZE[-1])

    def loss(x):
        p_t = np.where(y, 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x)))
        return np.where(y, 0.25, 0.75) * (1 - p_t) ** 2 * -np.log(p_t) / y.sum()

    gradient = (loss(x + 1e-4) - loss(x - 1e-4)) / 2e-4
    work = json.loads(small_run[1])["work"]
    assert work["value"] == pytest.approx(loss(x).sum(), rel=1e-5)
    assert work["gradient_norm"] == pytest.approx(np.sqrt((gradient**2).sum()), rel=1e-5)


def test_result_says_where_and_on_what_it_was_measured(small_run):
    result = json.loads(small_run[1])
    assert result["work"]["size"] == {"B": 2, "A": 500, "K": 5}
    assert (result["work"]["seed"], result["work"]["rounds"], result["work"]["dtype"]) == (3, 1, "float32")
    assert result["machine"]["cpu"]
    assert {"python", "jax", "jaxlib", "optax"} <= set(result["versions"])
    assert "torch" not in result["versions"]
    assert {"commit", "date"} <= set(result)
    # A result is published; the paths of who measured are nobody's business.
    assert str(pathlib.Path(sys.executable).parent) not in small_run[1]


def test_peer_that_computes_something_else_ends_the_benchmark(tmp_path):
    wrong = "def sigmoid_focal_loss(logits, labels, *, alpha, gamma):\n    return logits**2"
    completed = run_benchmark(tmp_path, {"optax": wrong}, "--peers", "optax")
    assert completed.returncode == 1
    assert "optax/one-hot given: gradient norm is" in completed.stderr
    assert not (tmp_path / "loss.json").exists()


def test_worker_that_dies_shows_what_it_wrote(tmp_path, modules):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho out of paper >&2\nexit 3\n")
    interpreter.chmod(0o755)
    settings = {"module": "with_jax", "threads": 2}
    with modules["interleaved"].Worker(str(interpreter), settings) as worker:
        with pytest.raises(modules["interleaved"].WorkerError, match=r"status 3:\nout of paper"):
            worker.answer()
    with pytest.raises(modules["interleaved"].WorkerError, match="no Python interpreter"):
        modules["interleaved"].Worker(str(tmp_path / "none"), settings)


def test_contestants_that_agree_to_rounding_pass(modules):
    near = {key: value * (1 + 5e-5) if isinstance(value, float) else value for key, value in ANSWER.items()}
    modules["loss"].check_agreement({"focaljax/ids": ANSWER, "optax": near}, "float32")


@pytest.mark.parametrize(
    ("quantity", "wrong"),
    [
        ("value", 2.001),
        ("value beside the gradient", 1.999),
        ("gradient norm", math.nan),
        ("gradient times logits", 3.0),
        ("gradient dtype", "float64"),
    ],
)
@pytest.mark.parametrize("key", ["focaljax/ids", "optax"])
def test_contestants_that_differ_are_named(modules, quantity, wrong, key):
    answers = {"focaljax/ids": ANSWER, "optax": ANSWER}
    answers[key] = ANSWER | {quantity: wrong}
    # Ours is the measure of the others, so that most faults of it appear as theirs.
    with pytest.raises(modules["report"].DisagreementError, match=quantity):
        modules["loss"].check_agreement(answers, "float32")


def test_undisturbed_rounds_count_where_there_are_three(modules):
    timing = modules["interleaved"].Timing((1.0, 9.0, 2.0, 3.0, 8.0), (0.0, 1.5, 0.1, 0.19, 0.3))
    assert (timing.undisturbed, timing.median, timing.fastest) == (3, 2.0, 1.0)
    timing = modules["interleaved"].Timing((1.0, 9.0, 2.0, 3.0, 8.0), (0.0, 1.5, 0.1, 0.2, 0.3))
    assert (timing.undisturbed, timing.median) == (2, 3.0)
    timing = modules["interleaved"].Timing((4.0, 1.0, 2.0), (None, None, None))
    assert (timing.undisturbed, timing.median) == (3, 2.0)


def test_each_round_has_every_turn_once_in_an_order_of_its_own(modules):
    calls = []

    class Recorder:
        def time(self, contestant, part, count):
            calls.append(contestant)
            return float(len(calls)), None

    names = [f"contestant {index}" for index in range(8)]
    turns = [modules["interleaved"].Turn(Recorder(), name, "value", 1) for name in names]
    timings = modules["interleaved"].time_in_rounds(turns, rounds=3, seed=0)
    rounds = [calls[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(one) == names for one in rounds)
    assert len({tuple(one) for one in rounds}) == 3
    assert timings["contestant 5", "value"].seconds == tuple(
        8.0 * number + one.index("contestant 5") + 1 for number, one in enumerate(rounds)
    )


def test_batch_is_mostly_easy_background_and_given_by_its_seed(modules):
    logits, labels = modules["batch"].synthetic_batch((2, 10_000, 7), seed=1)
    assert (logits.dtype, labels.dtype, labels.shape) == (np.float32, np.int32, (2, 10_000))
    assert (labels >= 0).sum() == 20
    assert labels.min() == -1
    assert labels.max() < 7
    assert logits.mean() == pytest.approx(-4, abs=0.05)  # standard error 0.005
    assert logits.std() == pytest.approx(2, abs=0.05)
    again = modules["batch"].synthetic_batch((2, 10_000, 7), seed=1)
    assert (logits == again[0]).all()
    assert (labels == again[1]).all()
    assert (modules["batch"].synthetic_batch((1, 3, 2), seed=0)[1] >= 0).sum() == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--peers", "optax,jaxopt"], "no 'jaxopt': choose from optax"),
        (["--size", "2x100"], "'2x100' is not BxAxK"),
        (["--size", "2x0x80"], "'2x0x80' is not BxAxK"),
        (["--rounds", "0"], "'0' is no whole number of at least 1"),
    ],
)
def test_wrong_flag_names_its_remedy(modules, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        modules["loss"].main(flags)
    assert message in capsys.readouterr().err
