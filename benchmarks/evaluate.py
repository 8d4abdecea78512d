"""Times COCO's metrics of many detections, focaljax on each of its engines, against pycocotools and its fast rivals.

python benchmarks/evaluate.py [--images 5000] [--detections 100] [--classes 80] [--rounds 3] ...

The work: from annotations and detections in COCO's forms (benchmarks/peers/evaluation_data.py, from a seed) to the 12
numbers; focaljax's are with metrics by class. Two threads each, where a library has threads. Before anything is timed,
focaljax must have pycocotools' 12 numbers and AP of each class to the last bit, and the others nearly.

'engine' is what a call of focaljax takes without its own part: checks, tables, and the means.
faster-coco-eval is no part of focaljax; if it is not installed it is listed as such.
Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import sys
from typing import Any

import command
import report
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

# Of another order of summation; more would be another metric.
TOLERANCE = 1e-12
OURS, FALLBACK, REFERENCE = "focaljax/hotcoco", "focaljax/pycocotools", "pycocotools"
# Contestant -> its title, the module of its worker, and what that needs besides the work.
CONTESTANTS: dict[str, tuple[str, str, dict[str, str]]] = {
    OURS: ("focaljax on hotcoco", "evaluation_with_focaljax", {"engine": "hotcoco"}),
    FALLBACK: ("focaljax on pycocotools", "evaluation_with_focaljax", {"engine": "pycocotools"}),
    REFERENCE: ("pycocotools", "evaluation_with_peers", {}),
    "faster-coco-eval": ("faster-coco-eval", "evaluation_with_peers", {}),
    "hotcoco": ("hotcoco", "evaluation_with_peers", {}),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    work = {
        "num_images": options.images,
        "detections_an_image": options.detections,
        "num_classes": options.classes,
    }
    common = {"work": work, "device": "cpu", "threads": options.threads, "seed": options.seed}
    with contextlib.ExitStack() as stack:
        workers = {
            key: stack.enter_context(
                Worker(sys.executable, {"module": module, "contestants": [key], **settings, **common})
            )
            for key, (_, module, settings) in CONTESTANTS.items()
        }
        first_answers = {key: worker.answer() for key, worker in workers.items()}
        reports = {key: answer["contestants"][key] for key, answer in first_answers.items()}
        for key in (OURS, FALLBACK, REFERENCE):
            if reports[key]["status"] != "ok":
                raise WorkerError(f"{CONTESTANTS[key][0]} does not run: {reports[key]['status']}")
        differences = check_agreement({key: one["answer"] for key, one in reports.items() if "answer" in one})
        turns = [
            Turn(workers[key], key, part, calls)
            for key, one in reports.items()
            if one["status"] == "ok"
            for part, calls in one["calls"].items()
        ]
        timings = time_in_rounds(turns, options.rounds, options.seed)
    result = {
        "work": {
            **work,
            "objects": reports[OURS]["answer"]["objects"],
            "threads": options.threads,
            "seed": options.seed,
            "rounds": options.rounds,
            "metrics": reports[OURS]["answer"]["metrics"],
        },
        **report.provenance(first_answers.values(), "cpu"),
        "contestants": [_row(key, reports[key], timings, differences) for key in CONTESTANTS],
    }
    report.publish(result, table(result), options.out, reports)


def check_agreement(answers: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Returns the largest difference of each contestant from pycocotools in any of the 12 numbers or AP of a class.

    Args:
        answers: by contestant: `metrics`, `class_ap` and, of focaljax, `engine`.

    Raises:
        DisagreementError: focaljax has any difference or ran on another engine; a peer has more than 1e-12.
    """
    expected, faults = answers[REFERENCE], []
    differences = dict.fromkeys(answers, 0.0)
    for key, answer in answers.items():
        tolerance = 0.0 if key in (OURS, FALLBACK) else TOLERANCE
        for quantity in ("metrics", "class_ap"):
            for name, wanted in expected[quantity].items():
                got = answer[quantity][name]
                # Written so that NaN is not right.
                if not abs(got - wanted) <= tolerance:
                    faults.append(f"{key}: {quantity} {name} is {got!r}, expected {wanted!r}")
                differences[key] = max(differences[key], abs(got - wanted))
    for key in (OURS, FALLBACK):
        if not answers[key]["engine"].startswith(engine := key.partition("/")[2]):
            faults.append(f"{key}: ran on {answers[key]['engine']}, expected {engine}")
    if faults:
        raise report.DisagreementError("contestants differ:\n" + "\n".join(faults))
    return differences


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read: times in seconds, and how many times faster than pycocotools."""
    work = result["work"]
    counts = f"{work['num_images']} images x {work['detections_an_image']} detections x {work['num_classes']} classes"
    lines = [
        f"{counts}, {work['objects']} objects, {work['threads']} threads: {result['machine']['processor']}",
        f"AP {work['metrics']['AP']:.4f}",
        "",
        f"{'':26}{'median s':>10}{'min s':>10}{'rounds':>8}{'times faster':>14}{'differs by':>12}{'engine s':>10}",
    ]
    for row in result["contestants"]:
        if row["status"] != "ok":
            lines.append(f"{row['name']:26}  {row['status'].splitlines()[0][:80]}")
            continue
        value = row["value"]
        engine = f"{row['engine']['median_ms'] / 1e3:10.3f}" if "engine" in row else ""
        seconds = f"{value['median_ms'] / 1e3:10.3f}{value['min_ms'] / 1e3:10.3f}{value['undisturbed_rounds']:8}"
        comparison = f"{row['times_faster_than_pycocotools']:14.1f}{row['largest_difference']:12.0e}"
        lines.append(f"{row['name']:26}{seconds}{comparison}{engine}")
    notes = f"medians of {work['rounds']} rounds, or of those not disturbed if at least 3; times faster: time of "
    return "\n".join(
        [*lines, "", notes + "pycocotools by this; differs by: at most, in the 12 numbers and AP by class"]
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("evaluate", __doc__, rounds=3)
    command.add_threads(parser)
    for name, default in (("images", 5000), ("detections", 100), ("classes", 80)):
        help_text = f"{'on each image, ' if name == 'detections' else ''}default: {default}"
        parser.add_argument(f"--{name}", type=command.count, default=default, metavar="N", help=help_text)
    return parser.parse_args(arguments)


def _row(
    key: str, answer: dict[str, Any], timings: dict[tuple[str, str], Timing], differences: dict[str, float]
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": CONTESTANTS[key][0], "status": answer["status"]}
    if answer["status"] != "ok":
        return row
    for part, calls in answer["calls"].items():
        row[part] = report.times(timings[key, part], ours=timings[OURS, "value"], calls=calls, digits=2)
    faster = timings[REFERENCE, "value"].median / timings[key, "value"].median
    row["times_faster_than_pycocotools"] = round(faster, 2)
    row["largest_difference"] = differences[key]
    return row


if __name__ == "__main__":
    command.run(main)
