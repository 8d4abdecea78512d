"""Runs an exported detector as its users do, with jax and numpy alone.

A script for a process of its own, which must not import focaljax: MODEL.stablehlo INPUTS.npz OUTPUTS.npz. INPUTS has
`images_0`, `sizes_0`, `images_1` and so on, a pair for each batch; OUTPUTS gets `boxes_xyxy_0` and so on, and
`seconds`, of the last batch without compilation.
"""

import pathlib
import sys
import time
from typing import Any

import jax
import jax.export
import numpy as np


def main(model: str, inputs: str, outputs: str) -> None:
    """Runs the program on every batch."""
    detect = jax.jit(jax.export.deserialize(bytearray(pathlib.Path(model).read_bytes())).call)
    batches = np.load(inputs)
    results: dict[str, Any] = {}
    for index in range(len(batches.files) // 2):
        batch = batches[f"images_{index}"], batches[f"sizes_{index}"]
        results |= {f"{name}_{index}": np.asarray(array) for name, array in detect(*batch).items()}
    start = time.perf_counter()
    jax.block_until_ready(detect(*batch))
    results["seconds"] = np.float64(time.perf_counter() - start)
    strangers = sorted({"flax", "focaljax"} & set(sys.modules))
    if strangers:
        raise RuntimeError(f"{', '.join(strangers)} was imported: the program does not run with jax alone")
    np.savez(outputs, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
