"""Focal losses of other libraries: `python -m tests.golden.make_loss_peers`.

Writes `loss_peers.npz` beside this file; `README.md` says what is in it. A library of another environment is run by
that environment's Python, as by benchmarks/exactness.py, whose contestants these are.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

FILE = pathlib.Path(__file__).with_name("loss_peers.npz")
ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ("optax", "torchvision", "fvcore", "kornia", "keras", "scenic")
LOGITS = (-5.0, -3.0, -2.0, -1.0, -0.3, 0.0, 0.1, 0.7, 1.0, 2.0, 3.0, 5.0)
LABELS = (0.0, 1.0, 0.3)
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
ALPHAS = (None, 0.25, 0.9)


def main() -> None:
    """Measures each peer and writes the file; a peer that is not installed is an error."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import exactness

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("--python-with-torch", "--python-with-keras", "--scenic"):
        parser.add_argument(flag, help="see benchmarks/exactness.py")
    options = parser.parse_args()

    def rounded(values):
        return [None if value is None else float(np.float32(value)) for value in values]

    task = {"logits": rounded(LOGITS), "labels": rounded(LABELS), "gammas": rounded(GAMMAS), "alphas": rounded(ALPHAS)}
    stored, versions = {}, {}
    for peer in PEERS:
        answer = exactness.measure_anywhere(peer, task | {"half_logits": [0.0]}, options)
        if answer is None:
            sys.exit(f"{peer} is not installed: name the Python that has it (--help)")
        stored[peer] = np.float32(answer["results"])[:2]
        versions |= {peer: answer["versions"]}
    numbers = {name: np.float32([np.nan if v is None else v for v in values]) for name, values in task.items()}
    np.savez_compressed(FILE, versions=json.dumps(versions), **numbers, **stored)
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
