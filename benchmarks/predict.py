"""Times prediction, suppression included, against torchvision: images/s of batches, and the latency of one image.

python benchmarks/predict.py [--python-with-torch PATH] [--forms eager,channels_last,compile] [--image-size 512] ...

The work: RetinaNet R50-FPN with 91 classes as torchvision publishes it, on uint8 images that are on the host: transfer,
normalisation, network, decoding and non-maximum suppression, at most 300 detections an image. Both have the same
weights (benchmarks/peers/predict_batch.py). Throughput is of batches whose boxes stay on the device; latency is of one
image until its boxes are on the host. On the CPU two threads each. Before anything is timed, all must have found the
same objects.

torchvision may live in another environment (--python-with-torch); if it is not installed, it is listed as such. Its
compiled form can be left out with --forms.

On a GPU: python benchmarks/predict.py --device gpu --image-size 800 --batch-size 16 --dtype bfloat16
(torchvision under autocast)

Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

import command
import numpy as np
import report
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

from focaljax.models.variants import variant_named

VARIANT = "torchvision_v1"
OURS = "focaljax"
FORMS = {"eager": "torchvision", "channels_last": "torchvision, channels_last", "compile": "torchvision, torch.compile"}
TASKS = ("throughput", "latency")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """By how much two detections may differ that are the same.

    Attributes:
        score: difference of the scores.
        pixels: difference of any coordinate.
        share: of each side's detections, those that must have their like on the other.
    """

    score: float
    pixels: float
    share: float


# A box at the edge of a threshold or of the suppression comes or goes with the last digit, and takes others with it.
EXACT = Tolerance(score=1e-4, pixels=0.05, share=0.98)
# Factors of 8 bits of mantissa, or of 11, to which GPUs round those of float32 products: many scores are then equal.
ROUNDED = Tolerance(score=0.02, pixels=8.0, share=0.7)


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    keys = {OURS: [f"{OURS}/{task}" for task in TASKS]}
    keys["torchvision"] = [f"{form}/{task}" for form in options.forms for task in TASKS]
    with contextlib.ExitStack() as stack:
        workers = {}
        names = ("image_size", "batch_size", "dtype", "device", "threads", "seed")
        settings = {name: getattr(options, name) for name in names}
        ours = {"module": "predict_with_jax", "variant": VARIANT, "contestants": keys[OURS]}
        workers |= dict.fromkeys(keys[OURS], stack.enter_context(Worker(sys.executable, ours | settings)))
        if options.forms:
            epsilon = variant_named(VARIANT).model["norm_epsilon"]
            theirs = {"module": "predict_with_torch", "norm_epsilon": epsilon, "contestants": keys["torchvision"]}
            torch = stack.enter_context(Worker(options.python_with_torch, theirs | settings))
            workers |= dict.fromkeys(keys["torchvision"], torch)
        first_answers = {worker: worker.answer() for worker in dict.fromkeys(workers.values())}
        reports: dict[str, dict[str, Any]] = {}
        for answer in first_answers.values():
            reports |= answer["contestants"]
        tolerance = EXACT if (options.device, options.dtype) == ("cpu", "float32") else ROUNDED
        for task in TASKS:
            if (status := reports[f"{OURS}/{task}"]["status"]) != "ok":
                raise WorkerError(f"focaljax itself does not run: {status}")
            check_agreement(task, reports, tolerance)
        turns = [
            Turn(workers[key], key, "value", one["calls"]["value"])
            for key, one in reports.items()
            if one["status"] == "ok"
        ]
        timings = time_in_rounds(turns, options.rounds, options.seed)
    result = {
        "work": {
            "model": f"RetinaNet R50-FPN, {VARIANT}",
            "image_size": options.image_size,
            "batch_size": {"throughput": options.batch_size, "latency": 1},
            "dtype": options.dtype,
            "device": options.device,
            "threads": options.threads if options.device == "cpu" else None,
            "seed": options.seed,
            "rounds": options.rounds,
            "detections": [len(one["scores"]) for one in _detections(reports[f"{OURS}/throughput"])],
            "same_within": dataclasses.asdict(tolerance),
        },
        **report.provenance(first_answers.values(), options.device),
        "contestants": [_row(name, reports, timings, options.batch_size) for name in (OURS, *options.forms)],
    }
    report.publish(result, table(result), options.out, reports)


def check_agreement(task: str, reports: dict[str, dict[str, Any]], tolerance: Tolerance) -> None:
    """Raises DisagreementError if a contestant found other objects in an image than ours, or ours found none.

    Args:
        task: 'throughput' or 'latency'.
        reports: of the workers, by contestant.
        tolerance: what counts as the same.
    """
    ours = _detections(reports[f"{OURS}/{task}"])
    for key, one in reports.items():
        if not key.endswith(f"/{task}") or "answer" not in one:
            continue
        for index, (mine, theirs) in enumerate(zip(ours, _detections(one), strict=True)):
            same = count_same(mine, theirs, tolerance)
            most = max(len(mine["scores"]), len(theirs["scores"]))
            if same == 0 or same < tolerance.share * most:
                raise report.DisagreementError(
                    f"{task}, image {index}: focaljax has {len(mine['scores'])} detections, {key.split('/')[0]} "
                    f"{len(theirs['scores'])}, of which only {same} are the same"
                )


def count_same(ours: dict[str, list], theirs: dict[str, list], tolerance: Tolerance) -> int:
    """Returns how many detections of an image have their like, one each, on the other side.

    Args:
        ours: `boxes` (corners in pixels), `scores` and `labels` of D detections.
        theirs: likewise.
        tolerance: what counts as the same; the class always counts.
    """
    boxes, scores, labels = (np.array(ours[key]) for key in ("boxes", "scores", "labels"))
    is_free, same = np.ones(len(scores), bool), 0
    for box, score, label in zip(theirs["boxes"], theirs["scores"], theirs["labels"], strict=True):
        is_like = is_free & (labels == label) & (np.abs(scores - score) <= tolerance.score)
        apart = np.where(is_like, np.abs(boxes.reshape(-1, 4) - box).max(axis=1), np.inf)
        if apart.size and apart.min() <= tolerance.pixels:
            is_free[apart.argmin()] = False
            same += 1
    return same


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read: images/s, ms, and times by ours."""
    work = result["work"]
    threads = f", {work['threads']} threads" if work["threads"] else ""
    size = f"{work['image_size']} x {work['image_size']} px"
    half = f"{'median':>10}{'min':>9}{'ratio':>7}{'MiB':>7}{'rounds':>8}"
    lines = [
        f"{work['model']}, {size}, {work['dtype']}, {work['device']}{threads}: {result['machine']['processor']}",
        f"detections in each image: {', '.join(map(str, work['detections']))}",
        "",
        f"{'':28}{'batch of ' + str(work['batch_size']['throughput']) + ', ms':^50}  {'1 image, ms':^41}",
        f"{'':28}{half}{'img/s':>9}  {half}",
    ]
    for row in result["contestants"]:
        parts = [row[task] for task in TASKS]
        if failed := [part["status"] for part in parts if part["status"] != "ok"]:
            lines.append(f"{row['name']:28}  {failed[0].splitlines()[0][:90]}")
            continue
        throughput, latency = map(_cells, parts)
        lines.append(f"{row['name']:28}{throughput}{row['throughput']['images_per_second']:9.2f}  {latency}")
    notes = f"medians of {work['rounds']} rounds, or of those not disturbed if at least 3; "
    return "\n".join([*lines, "", notes + "ratio: time by that of focaljax; MiB: temporaries"])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("predict", __doc__, rounds=11)
    command.add_device(parser)
    command.add_python(parser, "torch")
    forms = command.some_of(tuple(FORMS))
    parser.add_argument("--forms", type=forms, default=tuple(FORMS), metavar=",".join(FORMS), help="'' for none")
    parser.add_argument("--image-size", type=_size, default=512, metavar="PX", help="a multiple of 32, default: 512")
    parser.add_argument("--batch-size", type=command.count, default=2, help="of the throughput, default: 2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    return parser.parse_args(arguments)


def _size(text: str) -> int:
    # torchvision pads others, and then its images are not ours.
    if (size := command.count(text)) % 32:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 32")
    return size


def _detections(answer: dict[str, Any]) -> list[dict[str, list]]:
    return answer["answer"]["detections"]


def _row(
    name: str, reports: dict[str, dict[str, Any]], timings: dict[tuple[str, str], Timing], batch_size: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": FORMS.get(name, name)}
    for task in TASKS:
        key = f"{name}/{task}"
        row[task] = {"status": reports[key]["status"]}
        if reports[key]["status"] == "ok":
            timing, calls = timings[key, "value"], reports[key]["calls"]["value"]
            row[task] |= report.times(timing, ours=timings[f"{OURS}/{task}", "value"], calls=calls, digits=2)
            images = batch_size if task == "throughput" else 1
            row[task]["images_per_second"] = round(images / timing.median, 3)
            temporaries = reports[key]["temporaries"]["value"]
            row[task]["temporaries_mib"] = None if temporaries is None else round(temporaries / MIB, 1)
    return row


def _cells(part: dict[str, Any]) -> str:
    times = f"{part['median_ms']:10.1f}{part['min_ms']:9.1f}{part['times_focaljax']:7.2f}"
    mib = "-" if part["temporaries_mib"] is None else f"{part['temporaries_mib']:.0f}"
    return f"{times}{mib:>7}{part['undisturbed_rounds']:8}"


if __name__ == "__main__":
    command.run(main)
