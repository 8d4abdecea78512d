"""Writes docs/exactness.md: where focaljax and its peers compute the sigmoid focal loss wrongly in float32.

python benchmarks/exactness.py [--python-with-torch PATH] [--python-with-keras PATH] [--scenic PATH] [--peers NAME,...]

Each library gives the loss of every point of a grid (see exactness_reference.py) and its first two derivatives in the
logit; the page counts what is NaN, infinite or 0, and shows the largest errors. A library that cannot be imported is
listed as not installed. A peer that lives in another environment is run by that environment's Python, which needs
numpy and the peer only. `make test` installs what the rest needs. One or two minutes, less when run again.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOT_IMPORTABLE = 3  # exit status of a worker


class Contestant(NamedTuple):
    """A loss of some library. `load` returns the function of (logits, labels, alpha, gamma); see `measure`."""

    load: Any
    call: str
    covers_soft: bool
    needs: str = "jax"
    is_traced: bool = False
    distribution: str = "focaljax"


# Contestants. What they import is imported within: this file also runs where only one of the libraries is installed.


def _focaljax(options):
    from focaljax import losses

    return lambda x, y, alpha, gamma: losses.sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma)


def _focaljax_integer_labels(options):
    from jax import numpy as jnp

    from focaljax import losses

    def loss(x, y, alpha, gamma):
        ids = jnp.where(y == 1, 0, losses.BACKGROUND)
        return losses.sigmoid_focal_loss_with_integer_labels(x[:, None], ids, alpha=alpha, gamma=gamma)

    return loss


def _focaljax_softmax(options):
    from jax import numpy as jnp

    from focaljax import losses

    def loss(x, y, alpha, gamma):
        # The softmax of (0, x) is (sigmoid(-x), sigmoid(x)).
        weights = None if alpha is None else np.float32([1 - alpha, alpha])
        two = jnp.stack([jnp.zeros_like(x), x], axis=-1)
        ids = y.astype(jnp.int32)
        return losses.softmax_focal_loss_with_integer_labels(two, ids, alpha=weights, gamma=gamma)

    return loss


def _optax(options):
    import optax

    return lambda x, y, alpha, gamma: optax.sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma)


def _scenic(options):
    if not options.scenic:
        raise ModuleNotFoundError("no --scenic PATH")
    spec = importlib.util.spec_from_file_location("scenic_model_utils", _scenic_file(options.scenic))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def loss(x, y, alpha, gamma):
        if alpha is None:  # it has no None; a half of both is undone exactly
            return 2.0 * module.focal_sigmoid_cross_entropy(x, y, alpha=0.5, gamma=gamma)
        return module.focal_sigmoid_cross_entropy(x, y, alpha=alpha, gamma=gamma)

    return loss


def _keras(options):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    def loss(x, y, alpha, gamma):
        weights = {} if alpha is None else {"apply_class_balancing": True, "alpha": alpha}
        function = keras.losses.BinaryFocalCrossentropy(from_logits=True, gamma=gamma, reduction=None, **weights)
        return function(y[:, None], x[:, None])  # it takes the mean over the last axis

    return loss


def _torchvision(options):
    import torchvision

    return lambda x, y, alpha, gamma: torchvision.ops.sigmoid_focal_loss(
        x, y, alpha=-1 if alpha is None else alpha, gamma=gamma
    )


def _fvcore(options):
    from fvcore.nn import sigmoid_focal_loss

    return lambda x, y, alpha, gamma: sigmoid_focal_loss(x, y, alpha=-1 if alpha is None else alpha, gamma=gamma)


def _kornia(options):
    from kornia.losses import binary_focal_loss_with_logits

    return lambda x, y, alpha, gamma: binary_focal_loss_with_logits(
        x[:, None], y[:, None], alpha=alpha, gamma=gamma, reduction="none"
    )[:, 0]


CONTESTANTS = {
    "focaljax": Contestant(_focaljax, "sigmoid_focal_loss", True),
    "focaljax, traced": Contestant(_focaljax, "sigmoid_focal_loss; alpha and gamma are traced", True, is_traced=True),
    "focaljax, class ids": Contestant(
        _focaljax_integer_labels, "sigmoid_focal_loss_with_integer_labels, one class", False
    ),
    "focaljax, softmax": Contestant(_focaljax_softmax, "softmax_focal_loss_with_integer_labels, logits (0, x)", False),
    "optax": Contestant(_optax, "sigmoid_focal_loss", True, distribution="optax"),
    "torchvision": Contestant(_torchvision, "ops.sigmoid_focal_loss", True, "torch", distribution="torchvision"),
    "fvcore": Contestant(_fvcore, "nn.sigmoid_focal_loss", True, "torch", distribution="fvcore"),
    "kornia": Contestant(_kornia, "losses.binary_focal_loss_with_logits", False, "torch", distribution="kornia"),
    "keras": Contestant(
        _keras, "losses.BinaryFocalCrossentropy(from_logits=True)", True, "keras", distribution="keras"
    ),
    "scenic": Contestant(_scenic, "focal_sigmoid_cross_entropy", False, distribution=""),
}


# Measuring: in this process, or in a worker that another environment's Python runs.


def measure(name: str, task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Returns what one contestant computes, as JSON can hold it; raises ImportError if it cannot be imported.

    Args:
        name: of the contestant.
        task: `logits`, `half_logits` (those in bfloat16), `labels`, `alphas`, `gammas`: lists of numbers.
        options: with `scenic`.

    Returns:
        `results`: nested lists `[3, gammas, alphas, labels, logits]`, the value and two derivatives, the second only
        where alpha is None (it is a mere factor, and second derivatives are slow to compile), else NaN;
        `half_results`: the same for bfloat16 without alpha; `half_types`: the types of its value and derivative;
        `versions`.
    """
    contestant = CONTESTANTS[name]
    loss = contestant.load(options)
    evaluate = _evaluate_torch if contestant.needs == "torch" else _evaluate_jax
    labels = task["labels"] if contestant.covers_soft else [y for y in task["labels"] if y in (0, 1)]
    hard = [y for y in labels if y in (0, 1)]

    def on_grid(logits, labels, alphas, dtype):
        x, y = np.tile(np.float32(logits), len(labels)), np.repeat(np.float32(labels), len(logits))
        pairs = list(itertools.product(task["gammas"], alphas))
        outcomes = [evaluate(loss, x, y, alpha, gamma, dtype, contestant.is_traced) for gamma, alpha in pairs]
        numbers = np.stack([numbers for numbers, _ in outcomes], axis=1)
        return numbers.reshape(3, len(task["gammas"]), len(alphas), len(labels), len(logits)), outcomes[0][1]

    results, _ = on_grid(task["logits"], labels, task["alphas"], "float32")
    half, types = on_grid(task["half_logits"], hard, [None], "bfloat16")
    framework = "torch" if contestant.needs == "torch" else "jax"
    versions = {framework: importlib.metadata.version(framework)}
    if contestant.distribution:
        versions[contestant.distribution] = importlib.metadata.version(contestant.distribution)
    else:
        content = _scenic_file(options.scenic).read_bytes()
        versions["scenic"] = "model_utils.py, git blob " + _git_blob(content)[:10]
    return {"results": results.tolist(), "half_results": half.tolist(), "half_types": types, "versions": versions}


_compiled: dict[Any, Any] = {}


def _evaluate_jax(loss, x, y, alpha, gamma, dtype, is_traced):
    import jax

    def outputs(x, y, alpha, gamma):
        def value_and_gradient(x):
            value, pull = jax.vjp(lambda x: loss(x, y, alpha, gamma), x)
            return value, pull(jax.numpy.ones_like(value))[0]

        if alpha is not None:
            return value_and_gradient(x)
        (value, first), (_, second) = jax.jvp(value_and_gradient, (x,), (jax.numpy.ones_like(x),))
        return value, first, second

    x = jax.numpy.asarray(x, dtype)
    if is_traced:
        # One program for all numbers.
        arrays = _compiled.setdefault((loss, dtype, alpha is None), jax.jit(outputs))(x, y, alpha, gamma)
    else:
        arrays = jax.jit(lambda x, y: outputs(x, y, alpha, gamma))(x, y)
    return _stacked([np.asarray(a, np.float32) for a in arrays]), [str(a.dtype) for a in arrays[:2]]


def _evaluate_torch(loss, x, y, alpha, gamma, dtype, is_traced):
    import torch

    x = torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=True)
    value = loss(x, torch.tensor(y, dtype=x.dtype), alpha, gamma)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    arrays = [value, first]
    if alpha is None:
        arrays += torch.autograd.grad(first.sum(), x)
    types = [str(a.dtype).removeprefix("torch.") for a in arrays[:2]]
    return _stacked([a.detach().float().numpy() for a in arrays]), types


def _stacked(arrays):
    return np.stack(arrays if len(arrays) == 3 else [*arrays, np.full_like(arrays[0], np.nan)])


def _scenic_file(path: str) -> pathlib.Path:
    file = pathlib.Path(path)
    return file / "scenic/model_lib/base_models/model_utils.py" if file.is_dir() else file


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def measure_anywhere(name: str, task: dict[str, Any], options: argparse.Namespace) -> dict[str, Any] | None:
    """Returns `measure` of a contestant, by the Python that the options name for it; None if it is not installed."""
    needs = CONTESTANTS[name].needs
    python = {"torch": options.python_with_torch, "keras": options.python_with_keras}.get(needs)
    if not python:
        try:
            return measure(name, task, options)
        except ImportError as error:
            print(f"{name}: not installed ({error})", file=sys.stderr)
            return None
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "answer.json"
        command = [python, __file__, "--worker", name, "--out", str(answer)]
        status = subprocess.run(command, input=json.dumps(task), text=True, check=False).returncode
        if status == NOT_IMPORTABLE:
            return None
        if status:
            raise RuntimeError(f"{name}: {python} ended with status {status}; what it printed is above")
        return json.loads(answer.read_text())


def _work(options: argparse.Namespace) -> None:
    task = json.load(sys.stdin)
    try:
        answer = measure(options.worker, task, options)
    except ImportError as error:
        print(f"{options.worker}: not installed ({error})", file=sys.stderr)
        sys.exit(NOT_IMPORTABLE)
    pathlib.Path(options.out).write_text(json.dumps(answer))


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python-with-torch", help="an interpreter that has torch and its libraries; default: this one"
    )
    parser.add_argument("--python-with-keras", help="an interpreter that has keras and jax; default: this one")
    parser.add_argument("--scenic", help="a checkout of scenic, or its model_lib/base_models/model_utils.py")
    parser.add_argument("--peers", help="comma-separated names beside focaljax's; default: all. 'none': no peer")
    parser.add_argument("--gammas", help="comma-separated; default: the whole grid's")
    parser.add_argument("--out", default=str(ROOT / "docs" / "exactness.md"))
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # Rounding differs between devices; the page is about the formulas.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Hundreds of small programs, most of them the same in the next run.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if options.worker:
        _work(options)
        return
    # Imported here: a worker's Python has no mpmath.
    import exactness_reference as reference
    from ml_dtypes import bfloat16

    names = [name for name in CONTESTANTS if name.startswith("focaljax")]
    others = [name for name in CONTESTANTS if name not in names]
    chosen = others if options.peers is None else [p for p in options.peers.split(",") if p and p != "none"]
    if unknown := sorted(set(chosen) - set(others)):
        parser.error(f"--peers: {', '.join(unknown)} unknown; there are {', '.join(others)}")
    gammas = [float(g) for g in options.gammas.split(",")] if options.gammas else reference.GAMMAS
    rounded = np.float32(reference.LOGITS)
    task = {
        "logits": rounded.tolist(),
        "half_logits": rounded.astype(bfloat16).astype(np.float32).tolist(),
        "labels": [reference.as_float32(y) for y in reference.LABELS],
        "alphas": [None if a is None else reference.as_float32(a) for a in reference.ALPHAS],
        "gammas": [reference.as_float32(g) for g in gammas],
    }
    measured = {}
    for name in [*names, *chosen]:
        measured[name] = measure_anywhere(name, task, options)
        print(f"{name}: {'measured' if measured[name] else 'not installed'}", file=sys.stderr)
    flags = [f"--{flag} PATH" for flag in ("python-with-torch", "python-with-keras", "scenic")
             if getattr(options, flag.replace("-", "_"))]  # fmt: skip
    flags += [f"--{flag} {getattr(options, flag)}" for flag in ("peers", "gammas") if getattr(options, flag)]
    command = " ".join(["python benchmarks/exactness.py", *flags])
    page = reference.make_page(measured, {name: CONTESTANTS[name].call for name in measured}, task, command)
    path = pathlib.Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
