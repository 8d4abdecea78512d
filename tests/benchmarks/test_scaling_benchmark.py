"""The tables of docs/scaling.md: made of the plans' JSON files, and of commands that the verb takes."""

import json
import pathlib
import re

import cv2
import pytest

from focaljax.cli.config import load_config, split_config_flags
from focaljax.training.topologies import parse_topology
from tests.benchmarks.scripts import BENCHMARKS, imported

GIB = 2**30


@pytest.fixture(scope="module")
def scaling():
    with imported("scaling") as modules:
        yield modules["scaling"]


def result(topology, devices, images=8, **changes):
    collective = {"kind": "all-reduce", "dtypes": ["bf16"], "count": 1, "bytes": 2**20, "sent_bytes": 2.0**20}
    return {
        "topology": topology,
        "devices": devices,
        "batch_size": images * devices,
        "traced_flops": int(2e12) * devices,
        "hbm_for_programs": int(15.75 * GIB),
        "program": {
            "memory": {"arguments": GIB, "temporaries": 2 * GIB, "output": 0, "code": GIB // 2},
            "flops": 1.5e12,
            "traffic": 2e10,
            "bytes_accessed": 6e10,
            "collectives": [collective],
        },
        "roofline": {"compute": 0.01, "memory": 0.02, "communication": 0.001, "images_per_second": 400.0 * devices},
        "largest": None,
        "versions": {"jax": "0.10", "libtpu": None},
        "commit": "abc",
        **changes,
    }


@pytest.fixture
def results():
    uncounted = result("gpu:8", 8)
    uncounted["program"]["flops"] = None
    largest = {"images_per_device": 40, "method": "estimate", "by": "the line"}
    return {
        "v5e_2x2": result("v5e:2x2", 4),
        "v5e_8x8": result("v5e:8x8", 64),
        "v5e_4x4_256": result("v5e:4x4", 16, images=16, largest=largest),
        "v5e_2x2_float32": result("v5e:2x2", 4, program=None, roofline=None),
        "v5e_2x2_accumulate": result("v5e:2x2", 4, roofline=None),
        "gpu_8": uncounted,
    }


def test_every_command_is_one_that_the_verb_takes(scaling, monkeypatch):
    monkeypatch.chdir(BENCHMARKS.parent)
    for name, (verb, *arguments) in scaling.PLANS.items():
        assert verb == "plan"
        flags, others = split_config_flags(arguments)
        load_config(flags)
        topology = parse_topology(others[others.index("--topology") + 1])
        assert int(others[others.index("--batch") + 1]) % topology.devices == 0
        assert name.startswith(topology.kind)


def test_tables_hold_what_the_plans_found(scaling, results):
    tables = scaling.tables(results)
    rows = {line.split("|")[1].strip(): line for line in tables["chips"].splitlines()[2:]}
    numbers = "| 32 | 2.00 | 3.50 | 15.75 | 8.0 (6.0) | 1 | 10.0, 20.0, 1.0 | 1,600 | 400 |"
    assert rows["v5e:2x2"] == f"| v5e:2x2 {numbers}"
    assert "not compiled yet" in rows["v5p:4x4x4"]
    assert "| 16.0 (?) | 1 | 10.0, 20.0, 1.0 | 3,200 | 400 |" in rows["gpu:8"]
    settings = {line.split("|")[1].strip(): line for line in tables["settings"].splitlines()[2:]}
    assert settings["bfloat16"] == f"| bfloat16 {numbers}"
    assert "does not fit" in settings["float32"]
    assert "1,600" not in settings["bfloat16, `optim.accumulate=2`"]
    assert {line.count("|") for line in (*rows.values(), *settings.values())} == {11}
    assert "| v5e:2x2 | 20.0 | 60.0 |" in tables["traffic"]
    assert "40 images a chip, 640 a step (an estimate by the line)" in tables["largest"]
    assert "| v5e | 16 GiB | 15.75 GiB | 197 TFLOP/s | 819 GB/s | 200 GB/s |" in tables["facts"]
    assert tables["versions"] == "- jax 0.10, commit abc"


def test_document_has_a_place_for_each_table(scaling, results):
    text = scaling.DOCUMENT.read_text()
    tables = scaling.tables(results)
    new = scaling.replaced(text, tables)
    assert all(table in new for table in tables.values())
    assert scaling.replaced(new, tables) == new
    with pytest.raises(ValueError, match="lacks the marks"):
        scaling.replaced("", tables)


def test_commands_in_the_document_are_those_of_the_script(scaling):
    shown = re.findall(r"^focaljax plan .*$", scaling.DOCUMENT.read_text(), re.MULTILINE)
    assert shown == list(dict.fromkeys(scaling.shown(plan) for plan in scaling.PLANS.values()))


def test_picture_is_drawn(scaling, results, tmp_path):
    scaling.draw(results, tmp_path / "scaling.png")
    assert cv2.imread(str(tmp_path / "scaling.png")).std() > 5


def test_finished_plan_is_not_run_again(scaling, tmp_path, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        pathlib.Path(command[-1]).write_text(json.dumps({"command": "with --json", "batch_size": 32}))

    monkeypatch.setattr(scaling.subprocess, "run", run)
    monkeypatch.setattr(scaling.report, "commit", lambda: "abc")
    (tmp_path / "v5e_2x2.json").write_text("{}")
    scaling.main(["--only", "v5e_2x2,v6e_2x2", "--out", str(tmp_path)])
    assert [command[3:6] for command in commands] == [["plan", "--config", "configs/coco_r50_1x.py"]]
    written = json.loads((tmp_path / "v6e_2x2.json").read_text())
    assert written["batch_size"] == 32
    assert written["command"].endswith("--config.model.dtype=bfloat16 --nofit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v5e_2x2.json", "v6e_2x2.json"]
