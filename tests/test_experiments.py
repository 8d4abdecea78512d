"""The documents of the experiments say what their results.csv files hold."""

import pathlib
import runpy

import numpy as np
import PIL.Image
import pytest

from focaljax.cli.sweep import load_sweep
from focaljax.cli.sweep_report import digest_of_drawn, read_results, write_report

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
results = runpy.run_path(str(EXPERIMENTS / "results.py"))
figure4 = runpy.run_path(str(EXPERIMENTS / "figure4" / "figure4.py"))


def test_every_experiment_is_in_the_document():
    folders = {path.parent.name for path in EXPERIMENTS.glob("*/*.py")}
    assert set(results["EXPERIMENTS"]) == folders
    assert results["DOCUMENT"].read_text() == results["document"](), "run `python experiments/results.py`"


@pytest.mark.parametrize("name", results["EXPERIMENTS"])
def test_readme_has_the_figures_of_its_results(name):
    _, mark, made = (EXPERIMENTS / name / "README.md").read_text().partition(results["MARK"])
    assert mark
    assert made == results["results_of"](EXPERIMENTS / name), "run `python experiments/results.py`"


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in EXPERIMENTS.glob("*/sweep.py")), ids=lambda path: path.name
)
def test_plots_are_of_the_figures_of_results(folder):
    sweep, results = load_sweep(folder / "sweep.py"), read_results(folder / "results.csv")
    for data in {result["data"] for result in results}:
        with PIL.Image.open(folder / f"{data}.png") as plot:
            of_data = [result for result in results if result["data"] == data]
            assert plot.info["Comment"] == digest_of_drawn(sweep, data, of_data), "run `python experiments/results.py`"


def test_what_was_run_and_what_is_planned_are_told_apart(tmp_path):
    (tmp_path / "sweep.py").write_text((EXPERIMENTS / "table3" / "sweep.py").read_text())
    sweep = load_sweep(tmp_path / "sweep.py")
    run = {
        "data": "shapes", "row": "focal loss", "seed": 1, "AP": 0.5, "AP50": 0.75, "AP75": None, "step": 40,
        "seconds": 61.0, "devices": "2 cpu devices", "processor": "a processor", "versions": "jax 1", "commit": "abc",
        "overrides": "--config.optim.steps=40",
    }  # fmt: skip
    write_report(tmp_path, sweep, "shapes", [run])
    text = results["results_of"](tmp_path)
    of_shapes, of_bccd, of_coco = text.split("\n## ")
    assert of_shapes.startswith("## shapes: run")
    for words in ("--config.optim.steps=40`: 1 of 9 runs, seeds 1", "1:01", "abc", "| focal loss | 0.500 | 0.750 |"):
        assert words in of_shapes
    assert of_bccd.startswith("bccd: planned")
    assert of_coco.startswith("coco: planned")
    results["draw_plots"](tmp_path)
    assert (tmp_path / "shapes.png").exists()
    assert not (tmp_path / "coco.png").exists()


def test_spread_of_seeds_is_pooled_over_what_ran_with_several():
    def result(data, gamma, seed, AP):
        return {"data": data, "seed": seed, "AP": AP, "flags": f"--config.seed={seed} --config.loss.gamma={gamma}"}

    spread = results["spread_of_seeds"](
        [result("shapes", 1.0, seed, AP) for seed, AP in ((0, 0.1), (1, 0.2), (2, 0.3))]
        + [result("shapes", 2.0, "0", 0.4), result("shapes", 2.0, "1", 0.4)]
        + [result("shapes", "2", "1", 0.4), result("shapes", "2", "0", 0.4)]
        + [result("shapes", 3.0, "0", 0.9), result("bccd", 1.0, "0", 0.9)]
    )
    # Deviations 0.1 (two degrees of freedom) and 0 (one).
    assert spread == ["On shapes it is 0.082 for AP (pooled over 2 settings)."]


def test_share_of_the_hardest_and_the_cumulative_sum_agree():
    loss = np.random.default_rng(0).exponential(size=1000).astype(np.float32)
    sums = figure4["cumulative"](loss)
    assert (np.diff(sums) >= 0).all()
    assert sums[-1] == 1
    for share in (0.01, 0.25, 0.5):
        np.testing.assert_allclose(figure4["share_of_hardest"](loss, share), 1 - sums[round(1000 * (1 - share)) - 1])
    assert figure4["share_of_hardest"](np.ones(10), 0.2) == pytest.approx(0.2)
