"""Times class-wise non-maximum suppression against torchvision's `batched_nms`, and checks that both keep the same.

python benchmarks/nms.py [--python-with-torch PATH] [--candidates 1000,5000] [--limits 100,300,all] [--classes 80] ...

The work: M candidates of K classes in an image of 800 x 800 pixels, eight around each object (benchmarks/peers/
nms_boxes.py); those kept with their scores and classes, best first, at most as many as the limit; 'all': without one.
torchvision has no limit inside, its RetinaNet cuts the result. On the CPU two threads each. Before anything is timed,
both must keep the same boxes in the same order.

torchvision may live in another environment (--python-with-torch); if it is not installed, it is listed as such.
Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import sys
from typing import Any

import command
import report
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

OURS, PEER = "focaljax", "torchvision"
MODULES = {OURS: "nms_with_jax", PEER: "nms_with_torch"}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    tasks = [f"{count}/{limit}" for count in options.candidates for limit in options.limits]
    with contextlib.ExitStack() as stack:
        workers = {}
        for library, python in ((OURS, sys.executable), (PEER, options.python_with_torch)):
            settings = {name: getattr(options, name) for name in ("device", "threads", "seed")}
            settings |= {"module": MODULES[library], "classes": options.classes, "iou_threshold": options.iou}
            settings["contestants"] = [f"{library}/{task}" for task in tasks]
            workers[library] = stack.enter_context(Worker(python, settings))
        first_answers = {worker: worker.answer() for worker in workers.values()}
        reports: dict[str, dict[str, Any]] = {}
        for answer in first_answers.values():
            reports |= answer["contestants"]
        for task in tasks:
            if (status := reports[f"{OURS}/{task}"]["status"]) != "ok":
                raise WorkerError(f"focaljax itself does not run: {status}")
            check_agreement(task, reports)
        turns = [
            Turn(workers[key.split("/")[0]], key, "value", one["calls"]["value"])
            for key, one in reports.items()
            if one["status"] == "ok"
        ]
        timings = time_in_rounds(turns, options.rounds, options.seed)
    result = {
        "work": {
            "classes": options.classes,
            "iou_threshold": options.iou,
            "dtype": "float32",
            "device": options.device,
            "threads": options.threads if options.device == "cpu" else None,
            "seed": options.seed,
            "rounds": options.rounds,
        },
        **report.provenance(first_answers.values(), options.device),
        "tasks": [_row(task, reports, timings) for task in tasks],
    }
    report.publish(result, table(result), options.out, reports)


def check_agreement(task: str, reports: dict[str, dict[str, Any]]) -> None:
    """Raises DisagreementError if torchvision ran and keeps other boxes than ours, or in another order.

    Args:
        task: candidates and limit, such as '1000/100'.
        reports: of the workers, by contestant.
    """
    if (peer := reports[f"{PEER}/{task}"])["status"] != "ok":
        return
    ours, theirs = (one["answer"]["kept"] for one in (reports[f"{OURS}/{task}"], peer))
    if ours != theirs:
        pairs = zip([*ours, None], [*theirs, None])
        row, (our_box, their_box) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        raise report.DisagreementError(
            f"{task}: focaljax keeps {len(ours)} boxes, torchvision {len(theirs)}; row {row} is box {our_box} of ours "
            f"and {their_box} of theirs"
        )


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read: times in ms, and torchvision's by ours."""
    work = result["work"]
    threads = f", {work['threads']} threads" if work["threads"] else ""
    processor = result["machine"]["processor"]
    half = f"{'median':>9}{'min':>8}{'rounds':>8}"
    lines = [
        f"{work['classes']} classes, IoU {work['iou_threshold']:g}, {work['device']}{threads}: {processor}",
        "",
        f"{'':26}{OURS:^25}  {PEER:^25}",
        f"{'candidates':>10}{'limit':>8}{'kept':>8}{half}  {half}{'ratio':>8}",
    ]
    for row in result["tasks"]:
        peer = row[PEER]
        theirs = f"{_cells(peer)}{peer['times_focaljax']:8.2f}" if "ms" in peer else peer["status"].splitlines()[0][:80]
        lines.append(f"{row['candidates']:10}{row['limit'] or 'all':>8}{row['kept']:8}{_cells(row[OURS])}  {theirs}")
    notes = f"ms, medians of {work['rounds']} rounds, or of those not disturbed if at least 3; "
    return "\n".join([*lines, "", notes + "ratio: time of torchvision by that of focaljax"])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("nms", __doc__, rounds=15)
    command.add_device(parser)
    command.add_python(parser, "torch")
    parser.add_argument(
        "--candidates", type=command.counts, default=(1000, 5000), metavar="M,..", help="default: 1000,5000"
    )
    parser.add_argument(
        "--limits", type=_limits, default=(100, 300, "all"), metavar="D,..", help="default: 100,300,all"
    )
    parser.add_argument("--classes", type=command.count, default=80, metavar="K", help="default: 80")
    parser.add_argument("--iou", type=float, default=0.5, help="threshold, default: 0.5")
    return parser.parse_args(arguments)


def _limits(text: str) -> tuple[int | str, ...]:
    return tuple(one if one == "all" else command.count(one) for one in text.split(","))


def _row(task: str, reports: dict[str, dict[str, Any]], timings: dict[tuple[str, str], Timing]) -> dict[str, Any]:
    count, limit = task.split("/")
    row: dict[str, Any] = {
        "candidates": int(count),
        "limit": None if limit == "all" else int(limit),
        "kept": len(reports[f"{OURS}/{task}"]["answer"]["kept"]),
    }
    ours = timings[f"{OURS}/{task}", "value"]
    for library in (OURS, PEER):
        key = f"{library}/{task}"
        row[library] = {"status": reports[key]["status"]}
        if reports[key]["status"] == "ok":
            row[library] |= report.times(
                timings[key, "value"], ours=ours, calls=reports[key]["calls"]["value"], digits=4
            )
            row[library]["temporaries_bytes"] = reports[key]["temporaries"]["value"]
    return row


def _cells(part: dict[str, Any]) -> str:
    return f"{part['median_ms']:9.2f}{part['min_ms']:8.2f}{part['undisturbed_rounds']:8}"


if __name__ == "__main__":
    command.run(main)
