"""Times the sigmoid focal loss of a detector against its peers: value, and value with gradient, of the normalised sum.

python benchmarks/loss.py [--peers optax,torchvision,keras] [--python-with-torch PATH] [--size 2x100000x80] ...

The work: B x A x K logits from N(-4, 2), a class id at one anchor in 1000, background at the others; the sum over all
divided by the number of positives. On the CPU two threads each. Contestants whose labels are one-hot have two rows,
with the array passed in and made within the time. Before anything is timed, all values and gradients must agree.

The floor reads the logits once and writes an array of their size (x + 1, so it measures the bandwidth of a copy): what
no gradient can be faster than.
Temporaries are bytes beside arguments and results at the peak: from the compiler's plan for JAX, measured for torch.
A peer that is not installed is listed as such. PyTorch may live in another environment (--python-with-torch).

On a GPU: python benchmarks/loss.py --device gpu --size 16x120087x264 --dtype bfloat16
(peers compute in the type of the logits, focaljax in float32 whatever that is).

Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

import command
import report
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

OURS, FLOOR = "focaljax/ids", "floor"
PARTS = ("value", "gradient")
MIB = 2**20

# Largest relative difference from ours. float32: each adds millions of terms in its own order. Half precision: the
# peers' elements have 3 digits, and so have their sums where the roundings lean to one side.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Attributes:
        key: by which the worker knows it.
        title: by which a reader knows it.
        peer: what --peers says; empty for what is always there.
        module: of the worker that runs it; one process for each module and interpreter.
    """

    key: str
    title: str
    peer: str
    module: str


CONTESTANTS = (
    Contestant(OURS, "focaljax, class ids", "", "with_jax"),
    Contestant("focaljax/one-hot given", "focaljax, one-hot given", "", "with_jax"),
    Contestant("optax/one-hot given", "optax, one-hot given", "optax", "with_jax"),
    Contestant("optax/one-hot inside", "optax, one-hot inside", "optax", "with_jax"),
    Contestant("keras/one-hot given", "keras on JAX, one-hot given", "keras", "with_jax"),
    Contestant("keras/one-hot inside", "keras on JAX, one-hot inside", "keras", "with_jax"),
    Contestant("torchvision/one-hot given", "torchvision, one-hot given", "torchvision", "with_torch"),
    Contestant("torchvision/one-hot inside", "torchvision, one-hot inside", "torchvision", "with_torch"),
    Contestant("torch.compile/one-hot given", "torch.compile, one-hot given", "torchvision", "with_torch"),
    Contestant("torch.compile/one-hot inside", "torch.compile, one-hot inside", "torchvision", "with_torch"),
    Contestant("torch.func/one-hot given", "torch.compile(grad), one-hot given", "torchvision", "with_torch"),
    Contestant("torch.func/one-hot inside", "torch.compile(grad), one-hot inside", "torchvision", "with_torch"),
    Contestant(FLOOR, "floor: read logits, write as many", "", "with_jax"),
)
PEERS = tuple(dict.fromkeys(contestant.peer for contestant in CONTESTANTS if contestant.peer))


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    contestants = [one for one in CONTESTANTS if not one.peer or one.peer in options.peers]
    with contextlib.ExitStack() as stack:
        workers = _start(stack, contestants, options)
        first_answers = {worker: worker.answer() for worker in dict.fromkeys(workers.values())}
        reports: dict[str, dict[str, Any]] = {}
        for answer in first_answers.values():
            reports |= answer["contestants"]
        if (status := reports[OURS]["status"]) != "ok":
            raise WorkerError(f"focaljax itself does not run: {status}")
        check_agreement({key: one["answer"] for key, one in reports.items() if "answer" in one}, options.dtype)
        turns = [
            Turn(workers[key], key, part, calls)
            for key, one in reports.items()
            if one["status"] == "ok"
            for part, calls in one["calls"].items()
        ]
        timings = time_in_rounds(turns, options.rounds, options.seed)
    rows = [_row(contestant, reports[contestant.key], timings) for contestant in contestants]
    result = {
        "work": {
            "size": dict(zip("BAK", options.size)),
            "dtype": options.dtype,
            "device": options.device,
            "threads": options.threads if options.device == "cpu" else None,
            "seed": options.seed,
            "rounds": options.rounds,
            "value": reports[OURS]["answer"]["value"],
            "gradient_norm": reports[OURS]["answer"]["gradient norm"],
        },
        **report.provenance(first_answers.values(), options.device),
        "contestants": rows,
    }
    report.publish(result, table(result), options.out, reports)


def check_agreement(answers: dict[str, dict[str, Any]], dtype: str) -> None:
    """Raises DisagreementError if a contestant's value or gradient is not ours.

    Args:
        answers: by contestant, the numbers that the workers send: value and summaries of the gradient.
        dtype: of the logits, which sets the tolerance.
    """
    tolerance, faults = TOLERANCE[dtype], []
    ours = answers[OURS]
    expected = ours | {"value beside the gradient": ours["value"], "gradient dtype": dtype}
    if not ours["value"] > 0:
        faults.append(f"{OURS}: value is {ours['value']}, expected more than 0")
    for key, answer in answers.items():
        for quantity, wanted in expected.items():
            got = answer[quantity]
            # Written so that NaN is not right.
            is_right = got == wanted if isinstance(wanted, str) else abs(got - wanted) <= tolerance * abs(wanted)
            if not is_right:
                faults.append(f"{key}: {quantity} is {got}, expected {wanted}")
    if faults:
        raise report.DisagreementError(
            f"contestants differ by more than {tolerance:g}:\n"
            + "\n".join(faults)
            + "\na peer that is wrong at this type can be left out with --peers"
        )


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read: times in ms, ratios to ours, temporaries in MiB."""
    work, rows = result["work"], result["contestants"]
    size = " x ".join(str(length) for length in work["size"].values())
    threads = f", {work['threads']} threads" if work["threads"] else ""
    lines = [f"{size} {work['dtype']}, {work['device']}{threads}: {result['machine']['processor']}", ""]
    lines.append(f"{'':36}{'value':^32}  {'value and gradient':^47}")
    half = f"{'median':>8}{'min':>8}{'ratio':>8}{'MiB':>8}"
    lines.append(f"{'ms, medians of ' + str(work['rounds']) + ' rounds':36}{half}  {half}{'x floor':>8}{'rounds':>7}")
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"{row['name']:36}  {row['status'].splitlines()[0][:100]}")
            continue
        value, gradient = (_cells(row.get(part)) for part in PARTS)
        kept = row["gradient"]["undisturbed_rounds"]
        lines.append(f"{row['name']:36}{value}  {gradient}{row['gradient']['times_floor']:8.2f}{kept:7}")
    notes = "ratio: time by that of focaljax with class ids; rounds: those not disturbed, of which the medians are (of "
    return "\n".join([*lines, "", notes + "all if fewer than 3); MiB: temporaries; -: not measured"])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("loss", __doc__, rounds=11)
    command.add_device(parser)
    for package in ("torch", "keras"):
        command.add_python(parser, package)
    peers = command.some_of(PEERS)
    parser.add_argument("--peers", type=peers, default=PEERS, metavar=",".join(PEERS), help="to run; '' for none")
    parser.add_argument("--size", type=_size, default=(2, 100_000, 80), metavar="BxAxK", help="default: 2x100000x80")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of the logits (default: float32)")
    return parser.parse_args(arguments)


def _size(text: str) -> tuple[int, int, int]:
    lengths = text.split("x")
    if len(lengths) != 3 or not all(length.isdecimal() and int(length) > 0 for length in lengths):
        raise argparse.ArgumentTypeError(f"{text!r} is not BxAxK, three whole numbers such as 2x100000x80")
    B, A, K = map(int, lengths)
    return B, A, K


def _start(
    stack: contextlib.ExitStack, contestants: list[Contestant], options: argparse.Namespace
) -> dict[str, Worker]:
    """Returns the worker of each contestant, all of them started."""
    # The interpreters by path, not resolved: a virtual environment's is a link, and works by its own path only.
    pythons = {"torchvision": options.python_with_torch, "keras": options.python_with_keras}
    groups: dict[tuple[str, str], list[str]] = {}
    for one in contestants:
        groups.setdefault((pythons.get(one.peer, sys.executable), one.module), []).append(one.key)
    settings = {name: getattr(options, name) for name in ("size", "dtype", "device", "threads", "seed")}
    workers = {}
    for (python, module), keys in groups.items():
        worker = stack.enter_context(Worker(python, {"module": module, "contestants": keys, **settings}))
        workers |= dict.fromkeys(keys, worker)
    return workers


def _row(contestant: Contestant, answer: dict[str, Any], timings: dict[tuple[str, str], Timing]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": contestant.title, "status": answer["status"]}
    if answer["status"] != "ok":
        return row
    for part, calls in answer["calls"].items():
        temporaries = answer["temporaries"][part]
        row[part] = report.times(timings[contestant.key, part], ours=timings[OURS, part], calls=calls, digits=3)
        row[part]["temporaries_mib"] = None if temporaries is None else round(temporaries / MIB, 1)
    times_floor = timings[contestant.key, "gradient"].median / timings[FLOOR, "gradient"].median
    row["gradient"]["times_floor"] = round(times_floor, 3)
    return row


def _cells(part: dict[str, Any] | None) -> str:
    if part is None:
        return "".join(f"{'-':>8}" for _ in range(4))
    temporaries = "-" if part["temporaries_mib"] is None else f"{part['temporaries_mib']:.0f}"
    return f"{part['median_ms']:8.2f}{part['min_ms']:8.2f}{part['times_focaljax']:8.2f}{temporaries:>8}"


if __name__ == "__main__":
    command.run(main)
