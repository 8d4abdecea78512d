"""An experiment as data: rows of settings to train with, seeds, and what the paper has for each."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: settings that are trained with each seed.

    Attributes:
        name: in the table, unlike all others.
        overrides: setting -> value, such as `{"loss.gamma": 2.0}`.
        paper: what the paper has, by the name of the metric, in 0..1: `{"AP": 0.34}`.
        data: names of the data sets that it is for; (): all.
    """

    name: str
    overrides: Mapping[str, Any]
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    data: Sequence[str] = ()

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return re.sub(r"[^a-zA-Z0-9.]+", "_", self.name).strip("_")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        index: among all runs of the sweep, from 0.
        row: what it belongs to.
        seed: of the run.
    """

    index: int
    row: Row
    seed: int

    @property
    def folder(self) -> str:
        """Relative to that of all runs."""
        return f"{self.row.folder}/seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A table of the paper, or one of our own, to be trained.

    Attributes:
        title: of table and plot.
        configs: data set -> config file, as seen from the folder of the sweep's file; the first is the default.
        rows: in the order of the table.
        seeds: every row is trained with each.
        split: on which the last weights are evaluated.
        metrics: columns of the table, of COCO's 12 numbers.
        source: of the paper's numbers.
        settings: data set -> settings of all its rows, which a row's own override.

    Raises:
        ValueError: two rows share a name or a folder, two seeds are the same, or there are none of them.
    """

    title: str
    configs: Mapping[str, str]
    rows: Sequence[Row]
    seeds: Sequence[int] = (0, 1, 2)
    split: str = "val"
    metrics: Sequence[str] = ("AP", "AP50", "AP75")
    source: str = ""
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        folders = [row.folder for row in self.rows]
        if not folders or not self.seeds or not self.configs:
            raise ValueError("a sweep needs at least one row, one seed and one config")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a sweep has the same seed twice: {', '.join(map(str, self.seeds))}")
        if unknown := {*self.settings, *(name for row in self.rows for name in row.data)} - self.configs.keys():
            raise ValueError(f"rows are for data sets without a config: {', '.join(sorted(unknown))}")
        if twice := {folder for folder in folders if folders.count(folder) > 1}:
            raise ValueError(f"two rows of a sweep have the same name: {', '.join(sorted(twice))}")

    def rows_of(self, data: str) -> list[Row]:
        """Returns the rows for a data set."""
        return [row for row in self.rows if not row.data or data in row.data]

    def runs(self, data: str) -> list[Run]:
        """Returns all runs on a data set, seed by seed, so that an interrupted sweep has whole tables of fewer seeds.

        Example:
            >>> rows = [Row("a", {}), Row("b", {}), Row("c", {}, data=("coco",))]
            >>> sweep = Sweep("t", {"shapes": "s.py", "coco": "c.py"}, rows, seeds=(0, 1))
            >>> [(run.row.name, run.seed) for run in sweep.runs("shapes")]
            [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
        """
        pairs = itertools.product(self.seeds, self.rows_of(data))
        return [Run(index, row, seed) for index, (seed, row) in enumerate(pairs)]
