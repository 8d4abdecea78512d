"""One epoch of `focaljax train` on images of which 1% are damaged, and annotations of which another 1% are.

Usage: python benchmarks/damaged_data.py [--images 10000] [--seed 0] [--folder DIR]

Draws small JPEGs with a COCO file, damages files and annotations in every way that the readers know, trains a tiny
detector on them with the command that a user would type, and compares the run's data report with what was done: each
damaged file is named under its fault, and no sound one is; the counts fit. Prints a row for each way of damage: files,
named in the report, and under which fault. Ends with 1 if training fails or the report differs.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import command
import cv2
import numpy as np

from focaljax.data import images as image_files
from focaljax.data import repair

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIDE = 32
BATCH = 40
UNREADABLE = "unreadable image: another one trained on in its place"


@dataclasses.dataclass(frozen=True)
class Damage:
    """A way to damage a file or an entry.

    Attributes:
        name: for the table.
        fault: the kind that the report must name it by; '' where the reader has to cope without a word.
        apply: of a file: gets its path. Of annotations: gets the document and the image's entry.
    """

    name: str
    fault: str
    apply: Callable[..., Any]


def _truncate(path: pathlib.Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(20, len(content) - 2)])


def _write_garbage(path: pathlib.Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.randrange(1, 2000)))


def _declare_huge(path: pathlib.Path, _: random.Random) -> None:
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = b"\xff\xdc" * 2  # 65500, the most that decoders take
    path.write_bytes(content)


def _spoil_png(path: pathlib.Path, _: random.Random) -> None:
    content = bytearray(_png(path))
    middle = content.index(b"IDAT") + 8
    content[middle : middle + 20] = b"\xa5" * 20
    path.write_bytes(content)


def _write_cmyk(path: pathlib.Path, _: random.Random) -> None:
    from PIL import Image

    Image.open(path).convert("CMYK").save(path, "JPEG")


def _png(path: pathlib.Path) -> bytes:
    return cv2.imencode(".png", cv2.imread(str(path)))[1].tobytes()


def _enlarge(path: pathlib.Path, _: random.Random) -> None:
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (SIDE + 8, SIDE)))


def _replace_by(make: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path, random.Random], None]:
    def replace(path: pathlib.Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return replace


def _link_to_device(path: pathlib.Path) -> None:
    path.symlink_to("/dev/zero")


OF_FILES = [
    Damage("truncated", f"{image_files.TRUNCATED}: image skipped", _truncate),
    Damage("emptied", f"{image_files.EMPTY}: image skipped", lambda path, _: path.write_bytes(b"")),
    Damage("garbage", f"{image_files.UNDECODABLE}: image skipped", _write_garbage),
    Damage("text", f"{image_files.UNDECODABLE}: image skipped", lambda path, _: path.write_text("<html>404</html>")),
    Damage("removed", f"{image_files.MISSING}: image skipped", lambda path, _: path.unlink()),
    Damage("65500 x 65500 declared", f"{image_files.TOO_LARGE}: image skipped", _declare_huge),
    Damage("named pipe", f"{image_files.NO_ACCESS}: image skipped", _replace_by(os.mkfifo)),
    Damage("folder", f"{image_files.NO_ACCESS}: image skipped", _replace_by(pathlib.Path.mkdir)),
    Damage("link to a device", f"{image_files.NO_ACCESS}: image skipped", _replace_by(_link_to_device)),
    Damage("another size", "image of another size than annotated: image skipped", _enlarge),
    Damage("PNG spoilt in the middle", UNREADABLE, _spoil_png),
    Damage("PNG named .jpg", "", lambda path, _: path.write_bytes(_png(path))),
    Damage("CMYK", "", _write_cmyk),
    Damage("text behind the end", "", lambda path, _: path.write_bytes(path.read_bytes() + b"trailing" * 9)),
]  # fmt: skip


def _with_box(*bbox: Any, **others: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def add(document: dict[str, Any], image: dict[str, Any]) -> None:
        entry = {"id": 10_000_000 + image["id"], "image_id": image["id"], "category_id": 1, "bbox": list(bbox)}
        document["annotations"].append(entry | others)

    return add


def _with_image(**others: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _, image: image.update(others)


def _list_twice(document: dict[str, Any], image: dict[str, Any]) -> None:
    document["images"].append(dict(image))


def _lead_out(document: dict[str, Any], image: dict[str, Any]) -> None:
    document["images"].append(image | {"id": 20_000_000 + image["id"], "file_name": f"../out/{image['file_name']}"})


def _without_id(document: dict[str, Any], image: dict[str, Any]) -> None:
    document["images"].append(image | {"id": str(image["id"])})


def _steer_the_terminal(document: dict[str, Any], image: dict[str, Any]) -> None:
    document["images"].append(
        image | {"id": 30_000_000 + image["id"], "file_name": f"[/]\x1b[2J\n{image['file_name']}"}
    )


_NO_SIZE = "image without an annotated size: taken from the file"
_NO_CATEGORY = "annotation of an unknown category: dropped"
_NO_BOX = "annotation without a bbox of four numbers: dropped"
OF_ANNOTATIONS = [
    Damage("box with NaN", repair.NOT_FINITE, _with_box(float("nan"), 1, 5, 5)),
    Damage("infinite box", repair.NOT_FINITE, _with_box(1, 1, float("inf"), 5)),
    Damage("box of no width", repair.NO_AREA, _with_box(3, 3, 0, 5)),
    Damage("box of negative width", repair.NO_AREA, _with_box(9, 9, -5, 5)),
    Damage("box wholly outside", repair.WHOLLY_OUTSIDE, _with_box(SIDE + 9, 3, 5, 5)),
    Damage("box over the edge", repair.CLIPPED, _with_box(SIDE - 9, 3, 50, 5)),
    Damage("box of 1e308", repair.CLIPPED, _with_box(1, 1, 1e308, 5)),
    Damage("box of three numbers", _NO_BOX, _with_box(1, 2, 3)),
    Damage("box of text", _NO_BOX, _with_box("a", "b", "c", "d")),
    Damage("box of 400 digits", _NO_BOX, _with_box(10**400, 1, 2, 3)),
    Damage("unknown category", _NO_CATEGORY, _with_box(1, 1, 5, 5, category_id=77)),
    Damage("category that is a list", _NO_CATEGORY, _with_box(1, 1, 5, 5, category_id=[1])),
    Damage("unknown image", "annotation of an unknown image: dropped", _with_box(1, 1, 5, 5, image_id="none")),
    Damage("no size", _NO_SIZE, _with_image(height=None)),
    Damage("size of 400 digits", _NO_SIZE, _with_image(width=10**400)),
    Damage("image listed twice", "image id used before: image skipped", _list_twice),
    Damage("id that is text", "image entry without an integer id and a file name: skipped", _without_id),
    Damage("name with ../", "file name that leads out of the images folder: image skipped", _lead_out),
    Damage("name with escapes", f"{image_files.MISSING}: image skipped", _steer_the_terminal),
]  # fmt: skip


def draw(folder: pathlib.Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Writes JPEGs with one or two shapes each to `folder/images`; returns their COCO document."""
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    random_pixels = np.random.default_rng(rng.randrange(2**32))
    for image_id in range(1, count + 1):
        picture = random_pixels.integers(0, 60, (SIDE, SIDE, 3), np.uint8)
        for category_id in rng.sample((1, 2), rng.choice((1, 2))):
            side = rng.randrange(8, 20)
            x, y = rng.randrange(SIDE - side), rng.randrange(SIDE - side)
            colour = tuple(rng.randrange(90, 256) for _ in range(3))
            if category_id == 1:
                cv2.rectangle(picture, (x, y), (x + side - 1, y + side - 1), colour, -1)
            else:
                cv2.circle(picture, (x + side // 2, y + side // 2), side // 2, colour, -1)
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id}
            annotations.append(entry | {"bbox": [x, y, side, side]})
        name = f"{image_id:06}.jpg"
        cv2.imwrite(str(folder / "images" / name), picture)
        images.append({"id": image_id, "file_name": name, "height": SIDE, "width": SIDE})
    categories = [{"id": 1, "name": "[red]box[/red]"}, {"id": 2, "name": "disc\x1b[31m\n[/]"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def damage(
    folder: pathlib.Path, document: dict[str, Any], each: int, rng: random.Random
) -> dict[str, tuple[Damage, str, str]]:
    """Damages `each` files, and annotations of as many other images; returns what was done: file -> how, and what for.

    Each of the values is the damage, 'file' or 'annotation', and the file's number as it must occur in the report.
    """
    chosen = rng.sample(list(document["images"]), 2 * each)
    done = {}
    for place, image in enumerate(chosen[:each]):
        one = OF_FILES[place % len(OF_FILES)]
        one.apply(folder / "images" / image["file_name"], rng)
        done[image["file_name"]] = (one, "file", image["file_name"])
    for place, image in enumerate(chosen[each:]):
        one = OF_ANNOTATIONS[place % len(OF_ANNOTATIONS)]
        done[image["file_name"]] = (one, "annotation", image["file_name"])
        one.apply(document, image)
    return done


def train(folder: pathlib.Path, count: int) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs the command; returns the process and its seconds."""
    settings = {
        "cpu_devices": 1, "data.image_size": (SIDE, SIDE), "data.timeout": 120.0, "model.levels": (3, 4),
        "model.fpn_channels": 8, "model.head_channels": 8, "model.head_depth": 1, "anchors.sizes": (8.0, 16.0),
        "anchors.scales": (1.0,), "optim.batch_size": BATCH, "optim.steps": -(-count // BATCH), "optim.warmup_steps": 5,
        "optim.ema_decay": 0.0, "augment.scale": (1.0, 1.0), "eval.batch_size": 32, "eval.every": 100_000,
        "checkpoint.every": 100_000, "log.every": 1, "data.val.limit": 64,
    }  # fmt: skip
    for split in ("train", "val"):
        settings |= {f"data.{split}.images": folder / "images", f"data.{split}.annotations": folder / "coco.json"}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    train = [sys.executable, "-m", "focaljax", "train", f"--config={ROOT / 'configs' / 'own_data.py'}", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run([*train, "--workdir", str(folder / "run")], env=environment, text=True, capture_output=True)
    return done, time.perf_counter() - start


def compare(done: dict[str, tuple[Damage, str, str]], report: list[str]) -> list[str]:
    """Prints the table; returns what differs between what was done and the report's lines."""
    wrong: list[str] = []
    named: collections.Counter[str] = collections.Counter()
    made = collections.Counter(one.name for one, _, _ in done.values())
    left = list(report)
    for one, what, name in done.values():
        if not one.fault:
            wrong += [f"{one.name}: {line}" for line in report if name in line]
            continue
        if one.name == "unknown image":  # there is no file to name
            lines = [line for line in left if line.startswith(f"{one.fault}: ")][:1]
        else:
            lines = [line for line in left if line.startswith(f"{one.fault}: ") and name in line]
        named[one.name] += bool(lines)
        if len(lines) != 1:
            wrong.append(f"{one.name} of the {what} {name} is in {len(lines)} lines of the report")
        for line in lines:
            left.remove(line)
    wrong += [f"the report has a line for nothing that was done: {line}" for line in left]
    print(f"{'damage':28}{'made':>6}{'named':>7}  fault")
    for one in (*OF_FILES, *OF_ANNOTATIONS):
        if made[one.name]:
            print(f"{one.name:28}{made[one.name]:6}{named[one.name]:7}  {one.fault or '(none: read as it is)'}")
    return wrong


def main() -> int:
    """Runs all of it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path, help="a new folder, where everything stays")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with command.folder(arguments.folder) as folder:
        document = draw(folder, arguments.images, rng)
        done = damage(folder, document, max(1, arguments.images // 100), rng)
        sys.set_int_max_str_digits(0)
        (folder / "coco.json").write_text(json.dumps(document))
        process, seconds = train(folder, arguments.images)
        if process.returncode != 0:
            print(f"training ended with {process.returncode}:\n{process.stdout[-2000:]}\n{process.stderr[-3000:]}")
            return 1
        report = (folder / "run" / "data_report_train.txt").read_text().splitlines()
        wrong = compare(done, report)
        shown = [*process.stdout.splitlines(), *process.stderr.splitlines()]
        wrong += [f"output that steers a terminal: {line!r}" for line in shown if "\x1b" in line]
        records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [record["loss"] for record in records if record["split"] == "train"]
        steps = -(-arguments.images // BATCH)
        if len(losses) != steps or not np.isfinite(losses).all():
            wrong.append(f"{len(losses)} losses of {steps} steps, all of them finite: {np.isfinite(losses).all()}")
        megabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(
            f"{arguments.images} images, {len(done)} damaged, {len(report)} findings; {steps} steps of {BATCH} images, "
            f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {seconds:.0f} s, {megabytes:.0f} MB"
        )
        print("\n".join(["the report differs:", *wrong]) if wrong else "the report is as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
