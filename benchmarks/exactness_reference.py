"""The focal loss and its derivatives to 50 digits, the grid, the comparison with it, and the page that shows it.

Used by benchmarks/exactness.py; needs mpmath and numpy.
"""

import dataclasses
import importlib.metadata
import itertools
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np

GAMMAS = (0.0, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 5.0)
ALPHAS = (None, 0.25, 0.9)
LABELS = (0.0, 1.0, 0.3)
_SIZES = (1e-3, 0.01, 0.1, 0.5, 1, 2, 3, 5, 7, 10, 13, 16.2, 20, 50, 88, 100, 1e3, 1e4, 1e30, np.inf)
LOGITS = (*(-size for size in reversed(_SIZES)), 0.0, *_SIZES)
DERIVATIVES = ("value", "first derivative", "second derivative")

SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)
NEAR = 20.0  # the size of a logit up to which the stricter bound holds
BOUND_NEAR, BOUND_FAR = 4e-6, 4e-5
SECOND_RELATIVE, SECOND_ABSOLUTE = 1e-4, 1e-6
# At a logit of this size the logistic function differs from its limit in no digit that 50 can show.
_STAND_IN_FOR_INFINITY = 1e30


def as_float32(value: float) -> float:
    """Returns the float32 nearest to a number: all libraries and the reference start from the same inputs."""
    return float(np.float32(value))


def exact(logit: float, label: float, alpha: float | None, gamma: float) -> tuple[float, float, float]:
    """Returns the focal loss and its first two derivatives in the logit, right to a float64.

    With p = 1 / (1 + exp(-logit)), the loss is `weight miss^gamma cost`, where `miss = y (1 - p) + (1 - y) p`,
    `cost = -y log(p) - (1 - y) log(1 - p)` and `weight = y alpha + (1 - y) (1 - alpha)`, 1 without alpha. The
    derivatives are those of the product, by `dp = p (1 - p)`. At an infinite logit: the limits.

    Args:
        logit: any number, also infinite.
        label: y, in [0, 1].
        alpha: in [0, 1], or None.
        gamma: at least 0.
    """
    is_infinite = np.isinf(logit)
    with mpmath.workdps(50):
        x = mpmath.sign(logit) * _STAND_IN_FOR_INFINITY if is_infinite else mpmath.mpf(logit)
        y, gamma = mpmath.mpf(label), mpmath.mpf(gamma)
        # Each from a quotient of its own: 1 - p would have no digit left where p is 1 to 50 digits.
        p, q = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
        weight = 1 if alpha is None else y * alpha + (1 - y) * (1 - mpmath.mpf(alpha))
        cost = y * mpmath.log1p(mpmath.exp(-x)) + (1 - y) * mpmath.log1p(mpmath.exp(x))
        cost_1, cost_2 = (1 - y) * p - y * q, p * q
        miss, miss_1, miss_2 = y * q + (1 - y) * p, (1 - 2 * y) * p * q, (1 - 2 * y) * p * q * (q - p)
        factor = miss**gamma
        factor_1 = gamma * miss ** (gamma - 1) * miss_1
        factor_2 = gamma * (gamma - 1) * miss ** (gamma - 2) * miss_1**2 + gamma * miss ** (gamma - 1) * miss_2
        value = weight * factor * cost
        first = weight * (factor_1 * cost + factor * cost_1)
        second = weight * (factor_2 * cost + 2 * factor_1 * cost_1 + factor * cost_2)
        # The loss tends to 0 or grows with the logit.
        return float("inf") if is_infinite and value > 1 else float(value), float(first), float(second)


def exact_grid(logits: Sequence, labels: Sequence, alphas: Sequence, gammas: Sequence) -> np.ndarray:
    """Returns `exact` on the product of its arguments: float64 `[3, gammas, alphas, labels, logits]`."""
    points = [exact(x, y, a, g) for g, a, y, x in itertools.product(gammas, alphas, labels, logits)]
    return np.array(points).T.reshape(3, len(gammas), len(alphas), len(labels), len(logits))


@dataclasses.dataclass(frozen=True)
class Tally:
    """What is wrong with some results.

    Attributes:
        cases: results at finite logits.
        not_finite: of them NaN or infinite; the truth is finite at all of them.
        zero: of them 0 where the truth is a normal float32.
        near, far: largest relative error for logits up to `NEAR` in size, and for finite ones beyond, over the finite
            results whose truth is a normal float32; a zero has the error 1. None: there is no such result.
        limit_cases, wrong_limit: results at infinite logits, and how many of them are not the limit.
    """

    cases: int
    not_finite: int
    zero: int
    near: float | None
    far: float | None
    limit_cases: int
    wrong_limit: int


def relative_errors(results: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns the relative errors, NaN where the result is not finite or the truth is no normal float32."""
    is_measured = np.isfinite(results) & np.isfinite(truth) & (np.abs(truth) >= SMALLEST_NORMAL)
    safe = np.where(is_measured, truth, 1.0)
    return np.where(is_measured, np.abs(np.where(is_measured, results, 0.0) - safe) / np.abs(safe), np.nan)


def wrong_limits(results: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Returns whether results are NaN, or another number or infinity than their limit."""
    with np.errstate(invalid="ignore"):
        is_close = np.abs(results - truth) <= np.maximum(BOUND_FAR * np.abs(truth), SMALLEST_NORMAL)
    return ~np.where(np.isinf(truth), results == truth, is_close)


def tally(results: np.ndarray, truth: np.ndarray, logits: np.ndarray) -> Tally:
    """Returns how results differ from the truth.

    Args:
        results: `[..., L]`, values or derivatives.
        truth: `[..., L]`.
        logits: `[L]`.
    """
    is_finite = np.isfinite(logits)
    is_near = np.abs(logits) <= NEAR
    at_infinity = wrong_limits(results[..., ~is_finite], truth[..., ~is_finite])
    finite, finite_truth = results[..., is_finite], truth[..., is_finite]
    errors = relative_errors(results, truth)
    return Tally(
        cases=finite.size,
        not_finite=int((~np.isfinite(finite)).sum()),
        zero=int(((finite == 0) & (np.abs(finite_truth) >= SMALLEST_NORMAL)).sum()),
        near=_largest(errors[..., is_near]),
        far=_largest(errors[..., is_finite & ~is_near]),
        limit_cases=at_infinity.size,
        wrong_limit=int(at_infinity.sum()),
    )


def worst_cases(results: np.ndarray, truth: np.ndarray, logits: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Returns, for each kind of fault that occurs, the indices of one result.

    The kinds: not finite (at the smallest logit), 0 (where the truth is largest), the furthest off within `NEAR` and
    beyond, past the bound, and a wrong limit. Of equals, the first.
    """
    is_finite = np.broadcast_to(np.isfinite(logits), truth.shape)
    is_near = np.broadcast_to(np.abs(logits) <= NEAR, truth.shape)
    is_zero = (results == 0) & (np.abs(truth) >= SMALLEST_NORMAL) & is_finite
    errors = np.nan_to_num(relative_errors(results, truth))
    size = np.broadcast_to(np.abs(logits), truth.shape)
    kinds = {
        "NaN or infinite": (is_finite & ~np.isfinite(results), -size),
        "zero": (is_zero, np.abs(truth)),
        f"off, to {NEAR:g}": (is_near & ~is_zero & (errors > BOUND_NEAR), errors),
        "off, beyond": (is_finite & ~is_near & ~is_zero & (errors > BOUND_FAR), errors),
        "wrong limit": (~is_finite & wrong_limits(results, truth), np.zeros(truth.shape)),
    }
    found = {}
    for kind, (is_kind, rank) in kinds.items():
        if is_kind.any():
            index = np.unravel_index(np.where(is_kind, rank, -np.inf).argmax(), truth.shape)
            found[kind] = tuple(int(i) for i in index)
    return found


def _largest(errors: np.ndarray) -> float | None:
    return None if np.isnan(errors).all() else float(np.nanmax(errors))


# The page


def make_page(measured: dict[str, Any], calls: dict[str, str], task: dict[str, Any], command: str) -> str:
    """Returns the page in Markdown.

    Args:
        measured: by contestant, what benchmarks/exactness.py measured, None if it is not installed; ours first.
        calls: by contestant, the function.
        task: the grid, as given to the contestants.
        command: how the page was made.
    """
    present = {name: answer for name, answer in measured.items() if answer}
    grid = task["labels"], task["alphas"], task["gammas"]
    truth = exact_grid(task["logits"], *grid)
    half_truth = exact_grid(task["half_logits"], task["labels"], [None], task["gammas"])
    # A contestant without soft labels has the first two labels only.
    outcomes = {name: np.array(answer["results"]) for name, answer in present.items()}
    pairs = {name: (results, truth[:, :, :, : results.shape[3]]) for name, results in outcomes.items()}
    parts = [_introduction(measured, calls, task, command), _summary(pairs, np.array(task["logits"])), "## By gamma\n"]
    parts += [_by_gamma(name, calls[name], *pairs[name], task) for name in present]
    parts.append(_second_derivatives(pairs, task))
    parts.append(_half_precision(present, half_truth, task))
    return "\n".join(parts)


def _introduction(measured, calls, task, command):
    versions = {"mpmath": importlib.metadata.version("mpmath")}
    for answer in filter(None, measured.values()):
        versions.update(answer["versions"])
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    missing = ", ".join(name for name, answer in measured.items() if not answer)
    sizes = ", ".join(f"{x:g}" for x in task["logits"] if x >= 0)
    gammas = ", ".join(f"{gamma:.3g}" for gamma in task["gammas"])
    functions = "\n".join(f"- {name}: `{call}`" for name, call in calls.items() if measured[name])
    return f"""# Exactness of the sigmoid focal loss

Made by this command, which rewrites the whole page; edit the script, not the page:

    {command}

Versions: {listed}.
{f"Not installed, so without numbers: {missing}." if missing else "All libraries were installed."}

Functions, one value per element, without a reduction:

{functions}

## What is compared

Each library gets the same float32 inputs:

- logits 0 and, of both signs, {sizes.removeprefix("0, ")};
- labels {", ".join(f"{y:.3g}" for y in task["labels"])};
- gamma {gammas}; alpha {", ".join(map(_alpha, task["alphas"]))};
- where such a number is no float32, the float32 nearest to it.

JAX libraries run under `jax.jit`, torch ones eagerly, all on a CPU. The truth is computed with 50 digits from the
definition in probabilities, for exactly these inputs.

- **NaN or infinite**: results at finite logits that are not finite; the truth is finite at all of them.
- **zero**: results that are 0 where the truth is a normal float32, at least {SMALLEST_NORMAL:.3g} in size.
- **error**: the largest relative error of the finite results where the truth is a normal float32, for logits up to
  {NEAR:g} in size and beyond. A zero has the error 1. float32 itself rounds to 6e-08.
- **wrong limit**: results at the logits +-infinity that are not the limit of the loss or of its derivative.

A library takes part where its definition covers the case. For a soft label y, focaljax, optax, torchvision, fvcore
and keras weight the cross entropy with y by (y (1 - p) + (1 - y) p)^gamma. kornia gives each of its two terms a factor
of its own and scenic takes p_t as exp(-cross entropy), which are other losses: both take part with labels 0 and 1, as
do class ids and the softmax of two classes. "No alpha" is -1 for torchvision and fvcore, no class balancing for keras,
and twice the loss with alpha .5 for scenic. keras averages over the last axis, which here has the length 1.
"""


def _summary(pairs, logits):
    header = ["library", "points"]
    for short in ("value", "derivative"):
        header += [f"{short}: NaN or infinite", "zero", f"error to {NEAR:g}", "error beyond", "wrong limit"]
    rows = []
    for name, (results, truth) in pairs.items():
        tallies = [tally(results[order], truth[order], logits) for order in (0, 1)]
        rows.append([name, tallies[0].cases + tallies[0].limit_cases])
        for t in tallies:
            rows[-1] += [t.not_finite, t.zero, _error(t.near), _error(t.far), f"{t.wrong_limit} of {t.limit_cases}"]
    return "## Over the whole grid\n\n" + _table(header, rows)


def _by_gamma(name, call, results, truth, task):
    logits = np.array(task["logits"])
    rows = []
    for order in (0, 1):
        columns = [tally(results[order, g], truth[order, g], logits) for g in range(len(task["gammas"]))]
        rows += [
            [f"{DERIVATIVES[order]}: NaN or infinite", *(t.not_finite for t in columns)],
            ["zero", *(t.zero for t in columns)],
            [f"error to {NEAR:g}", *(_error(t.near) for t in columns)],
            ["error beyond", *(_error(t.far) for t in columns)],
            ["wrong limit", *(t.wrong_limit for t in columns)],
        ]
    table = _table([f"{columns[0].cases} points a gamma", *(f"gamma {g:.3g}" for g in task["gammas"])], rows)
    return f"### {name}\n\n`{call}`\n\n{table}\n{_worst(results, truth, task)}"


def _worst(results, truth, task):
    logits = np.array(task["logits"])
    # Of equal faults the first is shown: the usual hyperparameters before the others.
    usual_first = sorted(range(len(task["gammas"])), key=lambda g: abs(task["gammas"][g] - 2))
    rows = []
    for order in (0, 1):
        found = worst_cases(results[order][usual_first], truth[order][usual_first], logits)
        for kind, (position, a, y, x) in found.items():
            g = usual_first[position]
            gave, right = (array[order, g, a, y, x] for array in (results, truth))
            inputs = [
                f"{logits[x]:.6g}",
                f"{task['labels'][y]:.3g}",
                f"{task['gammas'][g]:.3g}",
                _alpha(task["alphas"][a]),
            ]
            rows.append([f"{DERIVATIVES[order]}: {kind}", *inputs, f"{gave:.6g}", f"{right:.6g}"])
    if not rows:
        return f"Nothing is past {BOUND_NEAR:g} for logits up to {NEAR:g}, or past {BOUND_FAR:g} beyond.\n"
    header = ["the worst of each kind", "logit", "label", "gamma", "alpha", "gives", "right is"]
    return _table(header, rows)


def _second_derivatives(pairs, task):
    logits, without_alpha = np.array(task["logits"]), task["alphas"].index(None)
    rows = []
    for name, (results, truth) in pairs.items():
        found, right = (array[2][:, without_alpha][..., np.isfinite(logits)] for array in (results, truth))
        is_bad = ~np.isfinite(found)
        error = np.abs(np.where(is_bad, right, found) - right)
        is_off = (error > SECOND_RELATIVE * np.abs(right)) & (error > SECOND_ABSOLUTE)
        cells = [f"{bad} / {off}" for bad, off in zip(_per_gamma(is_bad), _per_gamma(is_off), strict=True)]
        rows.append([name, *cells])
    return f"""## Second derivative

At finite logits, without alpha: how many are NaN or infinite / how many others are off by more than
{SECOND_RELATIVE:g} of the truth and more than {SECOND_ABSOLUTE:g}. Forward over reverse in JAX, reverse over reverse
in torch.

{_table(["library", *(f"gamma {g:.3g}" for g in task["gammas"])], rows)}"""


def _half_precision(present, truth, task):
    header = ["library", "types"]
    for short in ("value", "derivative"):
        header += [f"{short}: NaN or infinite", "zero", f"error to {NEAR:g}", "error beyond"]
    rows = []
    for name, answer in present.items():
        results = np.array(answer["half_results"])
        rows.append([name, ", ".join(answer["half_types"])])
        for order in (0, 1):
            t = tally(results[order], truth[order, :, :, : results.shape[3]], np.array(task["half_logits"]))
            rows[-1] += [t.not_finite, t.zero, _error(t.near), _error(t.far)]
    return f"""## bfloat16 logits

The grid rounded to bfloat16, labels 0 and 1, without alpha; the truth is for the rounded logits. The types
are those of the value and of the derivative; rounding to bfloat16 alone makes an error of up to 0.004.

{_table(header, rows)}"""


def _per_gamma(flags):
    return flags.reshape(len(flags), -1).sum(axis=1)


def _alpha(alpha):
    return "none" if alpha is None else f"{alpha:.3g}"


def _error(error):
    return "-" if error is None else f"{error:.1e}" if error else "0"


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
