"""Where a run's numbers go: `metrics.jsonl`, one line a record, and TensorBoard."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self

from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends records to `WORKDIR/metrics.jsonl` and to TensorBoard files in `WORKDIR/tensorboard`.

    A record is `{"step": 20, "split": "train", "loss": ...}`. Records of steps after `start_step`, which a run that
    was killed left behind, are removed first, so that no step stands twice.

    Args:
        workdir: of the run.
        start_step: number of finished steps.
    """

    def __init__(self, workdir: str | pathlib.Path, *, start_step: int = 0) -> None:
        workdir = pathlib.Path(workdir)
        self._path = workdir / "metrics.jsonl"
        self._records = [record for record in read_metrics(workdir) if record["step"] <= start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in self._records))
        os.replace(temporary, self._path)
        self._file = self._path.open("a")
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tensorboard.close()

    def has(self, step: int, split: str) -> bool:
        """Returns whether there is a record of this step and split."""
        return any(record["step"] == step and record["split"] == split for record in self._records)

    def write(self, step: int, split: str, values: Mapping[str, float | None]) -> None:
        """Adds one record; None and values that are not finite become null, and are left out of TensorBoard."""
        finite = {
            name: float(value) if value is not None and math.isfinite(value) else None for name, value in values.items()
        }
        record: dict[str, Any] = {"step": step, "split": split, **finite}
        self._records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if value is not None:
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run in the order of their writing; a last line that was cut off is left out."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
