"""The benchmark of the train step: focaljax's part with a small network, the judging of what the workers say."""

import copy
import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

from focaljax.cli import build
from focaljax.models.resnet import RESNETS, ResNetShape
from focaljax.models.variants import VARIANTS
from focaljax.training import mesh as meshes
from tests.benchmarks.scripts import imported
from tests.golden import fill

VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE", "XLA_PYTHON_CLIENT_PREALLOCATE")
SECONDS = {"focaljax/64": 0.5, "eager/64": 0.25, "product by jax/2048": 0.2, "product by torch/2048": 0.1}
LOSSES = [[1.0, 2.0], [0.9, 1.5], [0.8, 1.25]]


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do; its network a small one."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, "")  # what a worker sets is taken back
        patch.setitem(RESNETS, "resnet18", ResNetShape((1, 1, 1, 1)))
        variant = VARIANTS["torchvision_v1"]
        small = {**variant.model, "backbone": "resnet18", "fpn_channels": 16, "head_channels": 16, "levels": (3, 4, 5)}
        anchors = {**variant.anchors, "sizes": (16.0, 32.0, 64.0)}
        patch.setitem(VARIANTS, "torchvision_v1", dataclasses.replace(variant, model=small, anchors=anchors))
        with imported("train", "train_batch", "train_with_jax", "report") as result:
            yield result


class InThisProcess:
    """In the place of a worker: focaljax runs here, torchvision's eager form repeats it, the other is not installed."""

    focaljax = {}

    def __init__(self, python, settings):
        self._contestants, module = settings["contestants"], settings["module"]
        self._library = None
        if module == "train_with_jax":
            work = {key: value for key, value in settings.items() if key not in ("module", "contestants")}
            self._library = importlib.import_module(module).Library(**work)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def answer(self):
        reports = {name: self._report(name) for name in self._contestants}
        return {"contestants": reports, "versions": {"python": "3"}, "device": "cpu"}

    def time(self, contestant, part, calls):
        assert calls == 1
        return SECONDS[contestant], 0.0

    def _report(self, name):
        part = "product" if name.startswith("product") else "value"
        if self._library is None:
            if name == "channels_last/64":
                return {"status": "not installed (torch)"}
            answer = {**self.focaljax["answer"], "flops": 7e9, "bytes_held": 3 * 2**20, "compile_seconds": None}
            return {"status": "ok", "calls": {part: 1}, "temporaries": {part: 2**20}, "answer": answer}
        parts = self._library.build(name)
        one = {"status": "ok", "calls": {part: 1}, "temporaries": {part: self._library.temporaries(parts[part])}}
        if part == "value":
            self.focaljax |= {"answer": self._library.answer(parts), "run": parts["value"]}
            one["answer"] = self.focaljax["answer"]
        return one


@pytest.fixture(scope="module")
def small_run(modules, tmp_path_factory):
    """Table and JSON of a run with a small network, focaljax's own answer and step, and its optimiser."""
    out = tmp_path_factory.mktemp("benchmark") / "train.json"
    lines, made, make = [], [], build.make_optimizer_and_schedule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules["train"], "Worker", InThisProcess)
        patch.setattr("builtins.print", lines.append)
        patch.setattr(build, "make_optimizer_and_schedule", lambda config: made.append(make(config)) or made[-1])
        modules["train"].main(["--sizes", "64", "--batch", "2", "--boxes", "3", "--rounds", "3", "--out", str(out)])
    return lines[0], json.loads(out.read_text()), InThisProcess.focaljax, made[0][0]


def test_rows_follow_from_the_times_and_what_the_workers_say(small_run):
    _, result, focaljax, _ = small_run
    (entry,) = result["sizes"]
    ours, eager, absent = entry["contestants"]
    gflop = focaljax["answer"]["flops"] / 1e9
    assert entry["gflop"] == pytest.approx(gflop, abs=0.01)
    assert entry["gflop_by_torch"] == 7.0
    assert entry["losses"] == focaljax["answer"]["losses"]
    # The faster of two products of 2 x 2048^3 = 17.18 GFLOP takes 0.1 s.
    assert result["peak"]["gflop_per_second"] == 171.8
    assert "PyTorch" in result["peak"]["source"]
    assert [row["median_ms"] for row in (ours, eager)] == [500.0, 250.0]
    assert [row["times_focaljax"] for row in (ours, eager)] == [1.0, 0.5]
    assert [row["images_per_second"] for row in (ours, eager)] == [4.0, 8.0]
    assert eager["gflop_per_second"] == pytest.approx(4 * gflop, abs=0.01)
    assert eager["share_of_peak"] == pytest.approx(4 * gflop / 171.8, abs=1e-4)
    assert eager["peak_mib"] == 4.0
    assert eager["compile_seconds"] is None
    assert ours["compile_seconds"] > 0
    assert absent == {"name": "torchvision, channels_last", "status": "not installed (torch)"}


def test_table_shows_every_contestant(small_run):
    table = small_run[0]
    assert "64 x 64" in table
    assert "(PyTorch counts 7)" in table
    eager = next(line for line in table.splitlines() if line.startswith("torchvision, eager"))
    assert {"250.0", "0.50", "8.00", "4", "-", "3"} <= set(eager.split())
    assert "torchvision, channels_last" in table
    assert "not installed (torch)" in table


def test_memory_that_a_step_holds_is_weights_momentum_statistics_and_batch(small_run, modules):
    state, _ = small_run[2]["run"]()
    batch = modules["train_batch"].synthetic_batch(64, batch_size=2, num_boxes=3, num_classes=91, seed=0)
    # The learning rate's schedule counts steps too: scalars beside the arrays.
    arrays = sum(leaf.nbytes for leaf in (*jax.tree.leaves(state), *batch.values()))
    assert small_run[2]["answer"]["bytes_held"] == pytest.approx(arrays, abs=64)


def test_each_call_moves_the_batch_trains_and_reuses_the_weights_memory(small_run, monkeypatch):
    losses = np.array(small_run[2]["answer"]["losses"])
    assert losses.shape == (3, 2)
    assert (np.diff(losses[:, 0]) < 0).all()
    moved = []
    put_batch = meshes.put_batch
    monkeypatch.setattr(meshes, "put_batch", lambda batch, mesh: moved.append(batch) or put_batch(batch, mesh))
    before, _ = small_run[2]["run"]()
    step, kernel = int(before.step), before.params["class_head"]["output"]["kernel"]
    values = np.array(kernel)
    after, metrics = small_run[2]["run"]()
    assert kernel.is_deleted()
    assert int(after.step) == step + 1
    assert (np.asarray(after.params["class_head"]["output"]["kernel"]) != values).any()
    assert np.isfinite(float(metrics["loss"]))
    assert len(moved) == 2
    assert all(isinstance(array, np.ndarray) for array in moved[1].values())


def test_optimiser_is_torchs_sgd_with_decay_of_every_trained_weight(small_run, modules):
    optimizer, whole = small_run[3], small_run[2]["run"]()[0].params
    parts = {"box_head": ("conv0",), "backbone": ("conv1", "layer1_0", "layer2_0")}
    params = {net: {layer: whole[net][layer] for layer in layers} for net, layers in parts.items()}
    rate, momentum, decay = (getattr(modules["train_batch"], n) for n in ("LEARNING_RATE", "MOMENTUM", "WEIGHT_DECAY"))
    # Without a gradient the momentum is decay * weight, then (momentum + 1) * decay * weight.
    state, factor, zeros = optimizer.init(params), 0.0, jax.tree.map(jax.numpy.zeros_like, params)
    for _ in range(2):
        updates, state = optimizer.update(zeros, state, params)
        factor = momentum * factor + decay
        for path in (("box_head", "conv0", "kernel"), ("box_head", "conv0", "bias"), ("backbone", "layer2_0", "conv1")):
            update, weight = updates, params
            for key in path:
                update, weight = update[key], weight[key]
            for got, of in zip(jax.tree.leaves(update), jax.tree.leaves(weight), strict=True):
                np.testing.assert_allclose(got, -rate * factor * of, rtol=1e-5)
        for part in ("conv1", "layer1_0"):
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates["backbone"][part]))


def reports(**losses):
    ok = {f"{name}/64": {"status": "ok", "answer": {"losses": one}} for name, one in losses.items()}
    return ok | {"channels_last/64": {"status": "not installed (torch)"}}


def changed(step, which, factor):
    losses = copy.deepcopy(LOSSES)
    losses[step][which] *= factor
    return losses


def test_peers_with_equal_losses_agree(modules):
    check = modules["train"].check_agreement
    check(64, reports(focaljax=LOSSES, eager=LOSSES, compile=changed(2, 1, 1.0009)), "float32")
    check(64, reports(focaljax=LOSSES, eager=changed(1, 0, 0.96)), "bfloat16")


@pytest.mark.parametrize(
    ("step", "which", "factor", "dtype", "message"),
    [
        (0, 0, 1.002, "float32", "eager: classification loss of step 0 is 1.002, that of focaljax 1.0"),
        (2, 1, 0.998, "float32", "eager: box loss of step 2"),
        (1, 1, 1.06, "bfloat16", "eager: box loss of step 1"),
        (1, 0, float("nan"), "bfloat16", "classification loss of step 1 is nan"),
    ],
)
def test_peer_with_another_loss_ends_the_benchmark(modules, step, which, factor, dtype, message):
    answers = reports(focaljax=LOSSES, eager=changed(step, which, factor))
    with pytest.raises(modules["report"].DisagreementError, match=message):
        modules["train"].check_agreement(64, answers, dtype)


def test_device_whose_peak_is_not_published_has_no_share_of_it(small_run, modules):
    peak = modules["train"].published_peak
    assert peak("NVIDIA H100 80GB HBM3", "bfloat16")["gflop_per_second"] == 989_400
    # A part of that GPU.
    assert peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16") is None
    result = copy.deepcopy(small_run[1]) | {"peak": None}
    result["sizes"][0]["contestants"][1]["share_of_peak"] = None
    table = modules["train"].table(result)
    assert "peak: not known of this device" in table
    assert "%" not in next(line for line in table.splitlines() if line.startswith("torchvision, eager"))


def test_batch_is_that_of_the_seed_and_has_the_form_of_training(modules):
    make = modules["train_batch"].synthetic_batch
    settings = {"batch_size": 3, "num_boxes": 50, "num_classes": 4}
    batch = make(96, **settings, seed=1)
    assert batch["image"].shape == (3, 96, 96, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["boxes"].dtype == np.float32
    assert batch["boxes"].min() >= 0
    assert batch["boxes"].max() <= 96
    assert (batch["boxes"][..., 2:] > batch["boxes"][..., :2]).all()
    assert set(batch["labels"].ravel()) == {1, 2, 3}  # 0 is torchvision's background
    assert batch["is_box"].all()
    assert not batch["is_crowd"].any()
    again, other = make(96, **settings, seed=1), make(96, **settings, seed=2)
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["image"] != other["image"]).any()


def test_weights_are_the_tests_own_but_for_low_scores(modules):
    scores = "head.classification_head.cls_logits."
    shapes = {"backbone.body.conv1.weight": (64, 3, 7, 7), scores + "weight": (27, 8, 3, 3), scores + "bias": (27,)}
    ours, theirs = modules["train_batch"].filled_weights(shapes), fill.fill_state_dict(shapes)
    assert (ours["backbone.body.conv1.weight"] == theirs["backbone.body.conv1.weight"]).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-ours[scores + "bias"].mean())), 0.01, rtol=0.1)
    assert ours[scores + "weight"].std() < 0.2 * theirs[scores + "weight"].std()
    assert all(array.dtype == np.float32 for array in ours.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "256,300"], "300 is no multiple of 32"),
        (["--sizes", "0"], "'0' is no whole number of at least 1"),
        (["--peers", "eager,keras"], "no 'keras': choose from eager, channels_last, compile"),
        (["--work", "r101"], "invalid choice: 'r101'"),
        (["--batch", "two"], "'two' is no whole number of at least 1"),
    ],
)
def test_wrong_flag_is_named(modules, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        modules["train"].main(flags)
    assert message in capsys.readouterr().err
