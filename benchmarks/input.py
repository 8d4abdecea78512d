"""Times the input pipeline against its peers: images a second, decoded, resized and padded, in batches of 16.

python benchmarks/input.py [--images FOLDER] [--threads 1,2] [--python-with-torch PATH] [--host-cores 16] ...

The work: JPEGs of 640 x 480 pixels, made by the script (the same from the same seed), or those of a folder, each under
many names, so that there are 2048 files, which the system holds in memory. Plain: decoded, resized to fit, padded to
640 x 640, uint8. With flips: and half of them mirrored with their boxes, the default augmentation; with all steps:
also another scale, cropped, and other colours. Kept: from a file of decoded images (data.cache), 512 of them.
torchvision's are those of its references in a DataLoader with as many worker processes as the others have threads.
Decoding alone is the floor, and its scaling is the machine's. All are bound to as many cores as they have threads.
Before anything is timed, all plain contestants must give the same images.

At 800 x 800 pixels focaljax alone, and what follows from it for a host of many cores that trains at a given speed: an
estimate, linear in the cores, unless as many were measured (--threads 1,2,4,8,16).

torchvision may live in another environment (--python-with-torch); what is not installed is listed as such.
Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import dataclasses
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import command
import cv2
import numpy as np
import report
import simplejpeg
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

BENCHMARKS = pathlib.Path(__file__).parent
BATCH, BATCHES_A_CALL = 16, 8  # as in peers/input_files.py
SIDE, LARGE_SIDE = 640, 800
FILES = 2048
HEIGHT, WIDTH, QUALITY = 480, 640, 90
# Of an image's mean, in 0..255. Decoders round differently; where images shrink, Pillow and torchvision average more.
TOLERANCE = 1.0


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Attributes:
        key: by which the worker knows it.
        title: by which a reader knows it.
        module: of the worker.
        ours: key of the contestant of focaljax that does the same work.
    """

    key: str
    title: str
    module: str
    ours: str


PLAIN, FLIPS, ALL_STEPS = (f"focaljax/{kind}/{SIDE}" for kind in ("evaluation", "flips", "all steps"))
LARGE = f"focaljax/flips/{LARGE_SIDE}"
LARGE_ALL_STEPS = f"focaljax/all steps/{LARGE_SIDE}"
OURS, PIL, TORCH = "input_with_focaljax", "input_with_pil", "input_with_torch"
CONTESTANTS = (
    Contestant(PLAIN, "focaljax, plain", OURS, PLAIN),
    Contestant(f"pil/plain/{SIDE}", "Pillow, plain", PIL, PLAIN),
    Contestant(f"torch/PIL, plain/{SIDE}", "torchvision, PIL, plain", TORCH, PLAIN),
    Contestant(f"torch/decode_jpeg, plain/{SIDE}", "torchvision, decode_jpeg, plain", TORCH, PLAIN),
    Contestant(f"focaljax/decode/{SIDE}", "decoding alone (simplejpeg)", OURS, PLAIN),
    Contestant(f"focaljax/still/{SIDE}", "focaljax, training, unchanged", OURS, FLIPS),
    Contestant(FLIPS, "focaljax, flips", OURS, FLIPS),
    Contestant(f"torch/PIL, flips/{SIDE}", "torchvision, PIL, flips", TORCH, FLIPS),
    Contestant(f"torch/decode_jpeg, flips/{SIDE}", "torchvision, decode_jpeg, flips", TORCH, FLIPS),
    Contestant(f"focaljax/flips, kept/{SIDE}", "focaljax, flips, kept decoded", OURS, FLIPS),
    Contestant(ALL_STEPS, "focaljax, all steps", OURS, ALL_STEPS),
    Contestant(f"focaljax/all steps, kept/{SIDE}", "focaljax, all steps, kept decoded", OURS, ALL_STEPS),
    Contestant(LARGE, f"focaljax, flips, {LARGE_SIDE} px", OURS, LARGE),
    Contestant(LARGE_ALL_STEPS, f"focaljax, all steps, {LARGE_SIDE} px", OURS, LARGE_ALL_STEPS),
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given = (
            _given_images(options.images) if options.images else make_pictures(folder, options.pictures, options.seed)
        )
        files = link_files(given, folder / "files", options.files)
        mean_bytes = round(sum(path.stat().st_size for path in given) / len(given))
        workers = {}
        for threads, module in itertools.product(options.threads, (OURS, PIL, TORCH)):
            python = options.python_with_torch if module == TORCH else sys.executable
            settings = {"module": module, "folder": str(files), "threads": threads, "seed": options.seed}
            settings["contestants"] = [f"{one.key}/{threads}" for one in CONTESTANTS if one.module == module]
            workers[threads, module] = stack.enter_context(Worker(python, {**settings, "device": "cpu"}))
        answers = {key: worker.answer() for key, worker in workers.items()}
        reports = {name: one for answer in answers.values() for name, one in answer["contestants"].items()}
        check_agreement(reports)
        turns = [
            Turn(workers[threads, one.module], f"{one.key}/{threads}", part, calls)
            for threads in options.threads
            for one in CONTESTANTS
            for part, calls in reports[f"{one.key}/{threads}"].get("calls", {}).items()
        ]
        timings = time_in_rounds(turns, options.rounds, options.seed)
    by_name = {name: timing for (name, _), timing in timings.items()}
    rows = [_row(one, threads, reports, by_name) for threads in options.threads for one in CONTESTANTS]
    result = {
        "work": {
            "images": "given" if options.images else f"made, {WIDTH} x {HEIGHT}, quality {QUALITY}, 4:2:0",
            "distinct": len(given),
            "files": options.files,
            "mean_bytes": mean_bytes,
            "batch": BATCH,
            "side": SIDE,
            "threads": list(options.threads),
            "seed": options.seed,
            "rounds": options.rounds,
        },
        **report.provenance(answers.values(), "cpu"),
        "contestants": rows,
        "host": host_estimate(rows, options.host_cores, options.target),
    }
    report.publish(result, table(result), options.out, reports)


def make_pictures(folder: pathlib.Path, count: int, seed: int) -> list[pathlib.Path]:
    """Writes JPEGs with what photographs have: shading at all scales, edges, grain; returns their paths."""
    paths = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        pixels = np.full((HEIGHT, WIDTH, 3), rng.uniform(90, 160, 3), np.float32)
        for octave in range(1, 8):
            coarse = rng.normal(0, 1, (3 * 2**octave // 4 + 1, 2**octave + 1, 3)).astype(np.float32)
            pixels += 55 / 2 ** (0.6 * octave) * cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(12):
            center, axes = rng.integers(0, (WIDTH, HEIGHT)).tolist(), rng.integers(15, 120, 2).tolist()
            color = rng.uniform(0, 255, 3).tolist()
            cv2.ellipse(pixels, center, axes, rng.uniform(0, 180), 0, 360, color, thickness=-1)
        pixels += rng.normal(0, 4, (HEIGHT, WIDTH, 1))
        paths.append(folder / f"{index:04}.jpg")
        image = np.clip(pixels, 0, 255).astype(np.uint8)
        paths[-1].write_bytes(simplejpeg.encode_jpeg(image, QUALITY, "RGB", "420"))
    return paths


def link_files(paths: Sequence[pathlib.Path], folder: pathlib.Path, count: int) -> pathlib.Path:
    """Returns a folder with so many files, which are links to these in turn.

    A data set of few images would be measured with Grain's shuffling, which takes longer an image the fewer there are.
    """
    folder.mkdir()
    for index, path in zip(range(count), itertools.cycle(paths)):
        (folder / f"{index:06}{path.suffix.lower()}").symlink_to(path.resolve())
    return folder


def check_agreement(reports: dict[str, dict[str, Any]]) -> None:
    """Raises DisagreementError if contestants of the plain work give other images than ours.

    Args:
        reports: of the workers, by contestant with its threads, such as 'pil/plain/640/2'.

    Raises:
        WorkerError: focaljax itself does not run.
    """
    for name, one in reports.items():
        if name.startswith("focaljax/") and one["status"] != "ok":
            raise WorkerError(f"{name} does not run: {one['status']}")
        if "answer" not in one:
            continue
        ours, theirs = reports[f"{PLAIN}/{name.rpartition('/')[2]}"]["answer"], one["answer"]
        if theirs["sizes"] != ours["sizes"]:
            raise report.DisagreementError(f"{name}: sizes are {theirs['sizes']}, those of focaljax {ours['sizes']}")
        for row, (mean, expected) in enumerate(zip(theirs["means"], ours["means"])):
            if not abs(mean - expected) <= TOLERANCE:
                raise report.DisagreementError(f"{name}: image {row} has the mean {mean}, that of focaljax {expected}")


def host_estimate(rows: list[dict[str, Any]], host_cores: int, target: float) -> list[dict[str, Any]]:
    """Returns for each kind of training at 800 pixels whether a host with so many cores keeps up.

    Args:
        rows: of the contestants.
        host_cores: of the host that trains.
        target: images a second that the accelerators take.

    Returns:
        Dicts with the `images_per_second` that are expected: those measured with the most threads, times the cores by
        those threads (`is_estimate`: fewer threads were measured than there are cores).
    """
    estimates = []
    for key in (LARGE, LARGE_ALL_STEPS):
        measured = {row["threads"]: row["images_per_second"] for row in rows if row["key"] == key}
        threads = max((count for count in measured if count <= host_cores), default=min(measured))
        expected = measured[threads] * host_cores / threads
        estimates.append(
            {
                "key": key,
                "host_cores": host_cores,
                "target": target,
                "from_threads": threads,
                "is_estimate": threads != host_cores,
                "images_per_second": round(expected, 1),
                "times_target": round(expected / target, 2),
            }
        )
    return estimates


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read: images a second by threads, how they scale, and ratios to ours."""
    work, rows = result["work"], result["contestants"]
    columns = "".join(f"{f'on {count}':>12}{'ratio':>7}{'rounds':>7}" for count in work["threads"])
    lines = [
        f"{work['images']}: {work['distinct']} images, {work['mean_bytes'] / 1e3:.0f} KB on average, batches of "
        f"{work['batch']}, {work['side']} px: {result['machine']['processor']}",
        "",
        f"{'images/s, by threads':36}{columns}  scaling",
    ]
    for one in CONTESTANTS:
        cells, rates = "", []
        for row in (row for row in rows if row["key"] == one.key):
            if "images_per_second" not in row:
                cells = f"  {row['status'].splitlines()[0][:80]}"
                break
            rates.append(row["images_per_second"])
            cells += f"{rates[-1]:12.1f}{row['times_focaljax']:7.2f}{row['undisturbed_rounds']:7}"
        else:
            cells += f"{rates[-1] / rates[0]:9.2f}" if len(rates) > 1 else ""
        lines.append(f"{one.title:36}{cells}")
    lines += ["", "ratio: time by that of focaljax for the same work; scaling: most threads by fewest"]
    for one in result["host"]:
        how = f"estimated from {one['from_threads']} threads, linear in cores" if one["is_estimate"] else "measured"
        verdict = "not starved" if one["times_target"] >= 1 else "starved"
        lines.append(
            f"{one['key']}: {one['host_cores']} cores read {one['images_per_second']:.0f} images/s ({how}); training "
            f"at {one['target']:g} images/s is {verdict}: {one['times_target']:.2f} times what it takes"
        )
    return "\n".join(lines)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("input", __doc__, rounds=9)
    command.add_python(parser, "torch")
    parser.add_argument("--images", type=pathlib.Path, metavar="FOLDER", help="JPEGs to use instead of made ones")
    parser.add_argument("--pictures", type=command.count, default=128, help="how many are made, default: 128")
    parser.add_argument("--files", type=command.count, default=FILES, help=f"names that they get, default: {FILES}")
    parser.add_argument("--threads", type=_threads, default=(1, 2), help="of each contestant, default: 1,2")
    parser.add_argument("--host-cores", type=command.count, default=16, help="of the host that trains, default: 16")
    parser.add_argument("--target", type=command.count, default=400, help="images/s that it takes, default: 400")
    return parser.parse_args(arguments)


def _threads(text: str) -> tuple[int, ...]:
    return tuple(sorted(set(command.counts(text))))


def _row(
    contestant: Contestant, threads: int, reports: dict[str, dict[str, Any]], timings: dict[str, Timing]
) -> dict[str, Any]:
    name = f"{contestant.key}/{threads}"
    row = {"key": contestant.key, "name": contestant.title, "threads": threads, "status": reports[name]["status"]}
    if name not in timings:
        return row
    timing = timings[name]
    if contestant.module == TORCH:
        # The worker does not count its own processes' time as its own: nobody knows who disturbed it.
        timing = dataclasses.replace(timing, others=(None,) * len(timing.seconds))
    (calls,) = reports[name]["calls"].values()
    row["images_per_second"] = round(BATCH * BATCHES_A_CALL / timing.median, 1)
    return row | report.times(timing, ours=timings[f"{contestant.ours}/{threads}"], calls=calls, digits=2)


def _given_images(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"--images: no JPEGs in {folder}")
    return paths


if __name__ == "__main__":
    command.run(main)
