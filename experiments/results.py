"""Makes the tables and figures of all experiments anew, from their results.csv: README.md of each, docs/results.md.

python experiments/results.py

In a README what stands before the mark `<!-- results -->` is written by hand: what the paper claims, and what was seen.
What follows it is made here. docs/results.md is all of them, one after the other, behind the summary in README.md of
this folder, which is written by hand too.
"""

import csv
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from focaljax.cli.console import duration
from focaljax.cli.sweep import load_sweep
from focaljax.cli.sweep_report import draw, read_results, table
from focaljax.sweeps import Sweep

FOLDER = pathlib.Path(__file__).parent
DOCUMENT = FOLDER.parent / "docs" / "results.md"
# In the paper's order, then ours.
EXPERIMENTS = (
    "table1a", "table1b", "table1c", "table1d", "table1e", "table3", "figure4",
    "prior", "normalizer", "optimizer", "length", "balance", "losses", "ghm", "scores",
)  # fmt: skip
MARK = "<!-- results -->\n"
HEAD = """# Results

The experiments of the paper (Lin et al. 2017, [arXiv 1708.02002](https://arxiv.org/abs/1708.02002)) and some beside
them. Each is a folder of `experiments/` and one command; **what was run here has figures, what was not says planned**.
All figures were made on small data on a CPU: they show in which order settings stand and where a setting fails, not
what a large detector reaches. This page is made from the `results.csv` of each by `python experiments/results.py`.

`shapes` is configs/shapes_imbalanced.py (images that the program draws, 104 px, at most one object), `bccd`
configs/bccd_quarter.py (photographs of blood cells, 120 x 160 px): short trainings of small detectors, not those of the
README. AP is that of the last weights on val, 400 and 87 images. Names in brackets, such as (`balance`), are folders of
`experiments/`; a + behind a commit says that code or configs had changes.

± is the standard deviation over seeds. {spread}
Two rows of one seed each that are closer than about three times that may stand the other way round with another seed.
"""


def main() -> None:
    """Writes the READMEs and the document."""
    for name in EXPERIMENTS:
        readme = FOLDER / name / "README.md"
        by_hand, _, _ = readme.read_text().partition(MARK)
        readme.write_text(f"{by_hand}{MARK}{results_of(FOLDER / name)}")
        draw_plots(FOLDER / name)
    DOCUMENT.write_text(document())


def document() -> str:
    """Returns the page of all experiments, from their READMEs."""
    of_all = [
        result
        for name in EXPERIMENTS
        if (FOLDER / name / "sweep.py").exists()
        for result in read_results(FOLDER / name / "results.csv")
    ]
    head = HEAD.format(spread=" ".join(spread_of_seeds(of_all)))
    summary = (FOLDER / "README.md").read_text()
    return "\n".join(
        [head, summary, *(_as_section((FOLDER / name / "README.md").read_text(), name) for name in EXPERIMENTS)]
    )


def spread_of_seeds(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each data set: by how much runs differ that differ in their seed alone."""
    APs: dict[str, dict[str, dict[str, float]]] = {}
    for result in results:
        if result["AP"] is not None:
            but_seed = " ".join(
                sorted(flag for flag in result["flags"].split() if not flag.startswith("--config.seed="))
            )
            APs.setdefault(result["data"], {}).setdefault(but_seed, {})[str(result["seed"])] = result["AP"]
    sentences = []
    for data, of_settings in APs.items():
        # Runs that stand in several tables, in other words of the same settings, count once.
        several = {tuple(sorted(of_seed.values())) for of_seed in of_settings.values() if len(of_seed) > 1}
        if several:
            squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
            deviation = math.sqrt(squares / sum(len(values) - 1 for values in several))
            sentences.append(f"On {data} it is {deviation:.3f} for AP (pooled over {len(several)} settings).")
    return sentences


def draw_plots(folder: pathlib.Path) -> None:
    """Draws what an experiment has found, a plot for each data set; one that is no sweep has drawn its own."""
    if (folder / "sweep.py").exists():
        sweep, results = _read(folder)
        for data in sweep.configs:
            if any(result["data"] == data for result in results):
                draw(folder / f"{data}.png", sweep, data, [result for result in results if result["data"] == data])


def results_of(folder: pathlib.Path) -> str:
    """Returns what an experiment has found, as Markdown."""
    if not (folder / "sweep.py").exists():
        return _figure(folder / "results.csv")
    sweep, results = _read(folder)
    return "\n".join(_of_data(folder, sweep, data, results) for data in sweep.configs)


def _read(folder: pathlib.Path) -> tuple[Sweep, list[dict[str, Any]]]:
    path = folder / "results.csv"
    return load_sweep(folder / "sweep.py"), read_results(path)


def _of_data(folder: pathlib.Path, sweep: Sweep, data: str, results: Sequence[Mapping[str, Any]]) -> str:
    command = f"focaljax sweep experiments/{folder.name}/sweep.py --workdir runs/{folder.name}"
    command += "" if data == next(iter(sweep.configs)) else f" --config.data={data}"
    of_data = [result for result in results if result["data"] == data]
    if not of_data:
        return f"## {data}: planned\n\n`{command}`: {len(sweep.runs(data))} runs, none of them run yet.\n"
    overrides = "".join(f" {override}" for override in _all(of_data, "overrides") if override)
    known = [
        f"{len(of_data)} of {len(sweep.runs(data))} runs",
        f"seeds {', '.join(_all(of_data, 'seed'))}",
        f"{', '.join(_all(of_data, 'step'))} steps",
        f"{duration(sum(float(result['seconds']) for result in of_data))} in all",
        f"{', '.join(_all(of_data, 'devices'))} ({', '.join(_all(of_data, 'processor'))})",
        "; ".join(_all(of_data, "versions")),
        f"commit {', '.join(filter(None, _all(of_data, 'commit'))) or 'unknown'}",
    ]
    lines = [
        f"## {data}: run",
        "",
        f"`{command}{overrides}`: {', '.join(known)}.",
        "",
        table(sweep, data, of_data),
        "",
        f"![{sweep.title}, {data}]({data}.png)",
    ]
    return "\n".join(lines) + "\n"


def _figure(path: pathlib.Path) -> str:
    if not path.exists():
        return "Planned.\n"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    # From there on it says how it was made.
    count = header.index("run")
    lines = [f"| {' | '.join(cells[:count])} |" for cells in (header, ["---"] * len(header), *rows)]
    made = "; ".join(
        _named(name, list(dict.fromkeys(values)))
        for name, values in zip(header[count:], zip(*(row[count:] for row in rows), strict=True), strict=True)
        if any(values)
    )
    return "\n".join([f"Of {made}.", "", *lines, "", f"![{path.parent.name}]({path.parent.name}.png)"]) + "\n"


def _named(name: str, values: Sequence[str]) -> str:
    return f"{name} {values[0]}" if len(values) == 1 else f"{len(values)} {name}s, which results.csv names"


def _all(results: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    """Returns each value once, in their order."""
    return list(dict.fromkeys(str(result[name]) for result in results))


def _as_section(text: str, folder: str) -> str:
    """Returns a README as a section of the document, a level deeper, its links as seen from there."""
    deeper = re.sub(r"^(#+ )", r"#\1", text.replace(MARK, ""), flags=re.MULTILINE)
    return re.sub(r"\]\((?!http|#)", f"](../experiments/{folder}/", deeper)


if __name__ == "__main__":
    main()
