"""focaljax bench: measure speed and memory, beside other libraries where they are installed.

Usage: focaljax bench NAME [FLAGS]     `focaljax bench NAME --help` explains the flags of one

  loss       focal loss and its gradient, against optax, torchvision and Keras
  train      the whole training step, against torchvision
  step       the training step of a config: --config FILE [--config.KEY=VALUE ...]
  input      decoding, resizing and augmenting images, against Pillow and torchvision
  nms        non-maximum suppression, against torchvision
  eval       COCO's metrics, against pycocotools and its fast rivals
  predict    batched prediction and the latency of one image, against torchvision
  scale      cost by batch, image size, boxes, classes and size of the data set
  all        loss, train, input, nms, eval and predict, one after the other (takes --python-with-torch only)

Each prints a table and writes JSON with the machine, versions, seed and commit to benchmarks/results/. They are the
scripts in the folder benchmarks/ of the repository; the installed package alone does not have them. Libraries to
compare with may live in another environment: --python-with-torch=PATH.

Example:
  focaljax bench nms --candidates 1000 --rounds 5
"""

import pathlib
import subprocess
import sys
from collections.abc import Sequence

import focaljax
from focaljax.cli.main import UsageError, nearest

# Name -> file in benchmarks/.
_SCRIPTS = {
    "loss": "loss.py",
    "train": "train.py",
    "step": "train_step.py",
    "input": "input.py",
    "nms": "nms.py",
    "eval": "evaluate.py",
    "predict": "predict.py",
    "scale": "scale.py",
}
_ALL = ("loss", "train", "input", "nms", "eval", "predict")
_TORCH = "--python-with-torch="


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code, that of the first benchmark that failed."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("name a benchmark: " + ", ".join([*_SCRIPTS, "all"]))
    name, *flags = arguments
    if name not in (*_SCRIPTS, "all"):
        names = [*_SCRIPTS, "all"]
        raise UsageError(f"no benchmark {name!r}{nearest(name, names)}; there are {', '.join(names)}")
    folder = pathlib.Path(focaljax.__file__).parent.parent / "benchmarks"
    if not (folder / "interleaved.py").is_file():
        raise UsageError(f"{folder} does not exist: the benchmarks are in the repository; clone and install it")
    if name != "all":
        return _run(folder / _SCRIPTS[name], flags)
    if others := [flag for flag in flags if not flag.startswith(_TORCH)]:
        raise UsageError(f"{others[0]}: `focaljax bench all` takes {_TORCH}PATH only; run the benchmarks by name")
    codes = []
    for one in _ALL:
        print(f"\n{one}", flush=True)
        codes.append(_run(folder / _SCRIPTS[one], [] if one == "eval" else flags))
    return next((code for code in codes if code), 0)


def _run(script: pathlib.Path, flags: Sequence[str]) -> int:
    return subprocess.run([sys.executable, str(script), *flags]).returncode
