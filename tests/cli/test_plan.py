"""The verb that plans a step for devices that need not be there: what it prints and writes, and mistakes."""

import json
import pathlib

import jax
import pytest

from focaljax.cli import plan, plan_targets
from focaljax.cli.main import main
from focaljax.training import topologies
from focaljax.training.collectives import Collective
from focaljax.training.plan import DoesNotFitError, Memory, Program
from tests.cli.conftest import TINY
from tests.cli.test_usage import fails

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
GIB = 2**30
TOO_LARGE = "RESOURCE_EXHAUSTED: HLO temporaries (20.00G) exceeds available HBM (16.00G)"


def test_dry_run_shows_shapes_parameters_memory_and_needs_no_data(one_device, tmp_path, capsys):
    out = tmp_path / "plan.json"
    missing = f"--config.data.root={tmp_path / 'missing'}"
    assert main(["plan", "--config", TINY, missing, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "batch 8 on the devices that are here: 1 devices, 8 images each" in shown
    for words in (
        ("image", "8 x 64 x 64 x 3", "uint8"),
        ("boxes", "8 x 12 x 4", "float32"),
        ("P4", "16", "48", "48 x 3"),
        ("class_head/output", "2", "657"),
        ("arguments",),
        ("temporaries",),
    ):
        assert any(all(word in line for word in words) for line in shown.splitlines()), words
    assert "no collectives" in shown
    assert "fit" not in shown
    result = json.loads(out.read_text())
    assert result["command"].startswith("focaljax plan --config ")
    assert result["config"]["model"]["backbone"] == "resnet_tiny"
    assert result["versions"]["jax"] == jax.__version__
    assert (result["classes"], result["parameters"], result["fits"]) == (3, 465_453, None)
    memory = result["program"]["memory"]
    # State and batch, and nothing else.
    batch = 8 * (64 * 64 * 3 + 2 * 4 + 12 * (16 + 4 + 1 + 1))
    assert memory["arguments"] == pytest.approx(result["state_bytes"] + batch, abs=64)
    assert not (tmp_path / "missing").exists()


@pytest.fixture
def compiled(monkeypatch):
    """A compiler that takes 1 GiB for an image and 2 for the state, and what it was asked for."""
    asked = []

    def compile_program(traced, devices, options=None):
        images = traced.in_avals[0][1]["image"].shape[0] // devices
        asked.append((images, devices, options))
        if images > 12:
            raise DoesNotFitError(TOO_LARGE)
        collectives = (Collective("all-reduce", ("bf16",), 1, 2**20, devices),)
        return Program(Memory(2 * GIB, images * GIB, 0, 0), 1e12, 3e9, 1e9, collectives, 60.0)

    monkeypatch.setattr(plan, "compile_program", compile_program)
    return asked


@pytest.fixture
def tpu(monkeypatch):
    """In the place of a TPU's devices, those of the CPU."""
    monkeypatch.setattr(plan_targets, "tpu_devices", lambda topology: jax.devices()[: topology.devices])
    monkeypatch.setattr(plan_targets, "hbm_for_programs", lambda mesh: 16 * GIB)
    monkeypatch.setattr(plan, "_check", lambda config, mesh: None)  # other tests have it
    update = jax.config.update
    monkeypatch.setattr(jax.config, "update", lambda name, value: None if "cache" in name else update(name, value))


def planned(tmp_path, *arguments):
    out = tmp_path / "plan.json"
    assert main(["plan", "--config", TINY, "--json", str(out), *arguments]) == 0
    return json.loads(out.read_text())


def test_tpu_that_is_not_there(compiled, tpu, tmp_path, capsys):
    result = planned(tmp_path, "--topology", "v5e:2x2", "--batch", "32")
    assert compiled == [(8, 4, None), (4, 4, None)]
    shown = capsys.readouterr().out
    assert "batch 32 on v5e:2x2: 4 devices, 8 images each" in shown
    assert "fits, 62%" in shown
    assert "all-reduce" in shown
    assert result["fits"] is True
    assert result["largest"]["images_per_device"] == 14
    assert (
        "batch that would fit: 56, 14 on each device (an ESTIMATE by the line through the programs for 4 and 8" in shown
    )
    # 1e12 FLOP at 197e12 a second and 1e9 bytes at 819e9; 2 * 3/4 MiB at 200e9.
    best = result["roofline"]
    assert best["bound"] == "compute"
    assert best["images_per_second"] == pytest.approx(32 / (1e12 / 197e12))
    assert best["communication"] == pytest.approx(1.5 * 2**20 / 200e9)
    assert "roofline, an ESTIMATE" in shown


def test_batch_that_does_not_fit_is_refused_and_a_smaller_one_found(compiled, tpu, tmp_path, capsys):
    result = planned(tmp_path, "--topology", "v5e:2x2", "--batch", "64")
    assert [images for images, *_ in compiled] == [16, 8, 4]
    assert (result["fits"], result["program"], result["roofline"]) == (False, None, None)
    assert result["largest"]["images_per_device"] == 14
    shown = capsys.readouterr().out
    assert "does not fit: RESOURCE_EXHAUSTED" in shown
    assert "exceeds available HBM (16.00G)" in shown


def test_search_compiles_until_the_largest_batch_is_known(compiled, tpu, tmp_path, capsys):
    result = planned(tmp_path, "--topology", "v5e:2x2", "--batch", "32", "--search")
    assert result["largest"] == {"images_per_device": 12, "method": "compiled", "by": "13 do not fit"}
    assert "batch that would fit: 48, 12 on each device (compiled; 13 do not fit)" in capsys.readouterr().out


def test_accumulated_parts_have_a_roofline_of_the_arithmetic_as_traced(compiled, tpu, tmp_path):
    parts = ["--config.optim.accumulate=2", "--nofit"]
    result = planned(tmp_path, "--topology", "v5e:2x2", "--batch", "32", *parts)
    assert result["roofline"]["compute"] == pytest.approx(result["traced_flops"] / 4 / 197e12)


def test_nofit_compiles_once(compiled, tpu, tmp_path):
    assert planned(tmp_path, "--topology", "v5e:2x2", "--batch", "32", "--nofit")["largest"] is None
    assert len(compiled) == 1


def test_published_config_needs_neither_data_nor_weights(compiled, tpu, capsys):
    shapes = ["--config.data.image_size=(64, 64)", "--config.model.backbone=resnet18"]
    config = ["--config", str(CONFIGS / "coco_r50_1x.py"), *shapes]
    assert main(["plan", *config, "--topology", "v5e:2x2", "--batch", "4"]) == 0
    shown = capsys.readouterr().out
    assert "80 classes, 100 boxes; batch 4 on v5e:2x2: 4 devices, 1 images each" in shown
    assert [images for images, *_ in compiled] == [1, 2]
    assert (
        "batch that would fit: 56, 14 on each device (an ESTIMATE by the line through the programs for 1 and 2" in shown
    )


def test_devices_of_the_cpu_and_gpus_without_their_compiler(compiled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plan_targets, "gpu_devices", lambda topology: None)
    assert planned(tmp_path, "--topology", "cpu:4", "--batch", "8")["is_split_only"] is False
    result = planned(tmp_path, "--topology", "gpu:8")
    assert compiled == [(2, 4, None), (1, 8, {"xla_backend_optimization_level": 0})]
    assert "the GPU compiler comes with focaljax[cuda], which is not installed" in capsys.readouterr().out
    # The CPU's plan for the temporaries says nothing of a GPU's, and where nothing is known nothing is estimated.
    memory = result["program"]["memory"]
    assert (memory["arguments"], memory["temporaries"]) == (2 * GIB, None)
    assert (result["hbm_for_programs"], result["largest"], result["fits"]) == (None, None, None)
    assert (result["roofline"], result["program"]["flops"], result["program"]["traffic"]) == (None, None, None)
    assert [one["group"] for one in result["program"]["collectives"]] == [8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology", "v5ee:4x4"], ("no topology 'v5ee:4x4'", "v5e:4x4, v5p:2x2x4", "did you mean 'v5e'?")),
        (["--topology", "v5e:4"], ("v5e:AxB, such as v5e:4x4",)),
        (["--topology", "cpu:4", "--batch", "6"], ("batch size 6", "multiple of 4")),
        # Said before a compiler is looked for.
        (["--topology", "v5e:4x4", "--batch", "100"], ("batch size 100", "multiple of 16", "set --batch")),
        (["--json", "/"], ("--json=/ cannot be written",)),
        (["--topology", "cpu:64", "--batch", "64"], ("JAX has 8 CPU devices here",)),
        (["--topolgy", "cpu:4"], ("unknown flag --topolgy", "did you mean 'topology'?")),
        (["--batch", "0"], ("batch",)),
        (["stray"], ("unexpected argument 'stray'",)),
        (["--config.model.norm=bn"], ("batch_norm", "'bn'")),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(capsys, arguments, words):
    fails(capsys, ["plan", "--config", TINY, *arguments], *words)


def test_missing_compiler_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    fails(capsys, ["plan", "--config", TINY, "--topology", "v5e:2x2"], "pip install 'focaljax[tpu]'")
