"""Compares `focaljax predict` with torchvision on photos: `python -m tests.golden.compare_predictions IMAGE...`.

Needs the `parity` extra. Fills torchvision's `retinanet_resnet50_fpn` and `..._v2` (91 classes, 800/1333) by `fill.py`,
saves each as a .pth file, gives it to `focaljax predict`, and lets torchvision detect in the same images, both in
float32. Each detection must have its like: the same class, a score within 1e-4 and a box within 0.05 pixels.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import torchvision

from focaljax.cli.main import main as focaljax
from focaljax.data.images import decode_upright_image
from tests.golden import fill
from tests.golden.make_torchvision import build

# As published: the weights of v1 go with frozen normalisation without epsilon.
DETECTORS = {
    "retinanet_resnet50_fpn": fill.Case("v1", "resnet50", True, 0.0, 91, 800, 1333, 32, ()),
    "retinanet_resnet50_fpn_v2": fill.Case("v2", "resnet50", False, 1e-5, 91, 800, 1333, 32, ()),
}
CLASS_WEIGHTS = {"v1": 0.2, "v2": 1.0}
SCORE_TOLERANCE, BOX_TOLERANCE = 1e-4, 0.05


def by_torchvision(model: torch.nn.Module, file: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes as x, y, width and height, scores and classes."""
    image = (
        torch.from_numpy(decode_upright_image(file.read_bytes(), file_name=str(file), image_id=0))
        .permute(2, 0, 1)
        .float()
        / 255
    )
    with torch.no_grad():
        (found,) = model([image])
    boxes = found["boxes"].numpy()
    corner_and_sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return corner_and_sides, found["scores"].numpy(), found["labels"].numpy()


def by_focaljax(weights: pathlib.Path, files: list[pathlib.Path], out: pathlib.Path) -> list[tuple[np.ndarray, ...]]:
    """The same for each file."""
    if status := focaljax(["predict", "--weights", str(weights), "--out", str(out), *map(str, files)]):
        sys.exit(status)
    images = json.loads((out / "coco_images.json").read_text())["images"]
    results = json.loads((out / "coco_results.json").read_text())
    found = []
    for image in images:
        rows = [result for result in results if result["image_id"] == image["id"]]
        columns = ([row[key] for row in rows] for key in ("bbox", "score", "category_id"))
        found.append(tuple(np.array(column) for column in columns))
    return found


def compare(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> tuple[int, float, float]:
    """How many of theirs have their like among ours, and the largest differences of those boxes and scores."""
    boxes, scores, labels = ours
    matched, box_error, score_error = 0, 0.0, 0.0
    is_free = np.ones(len(scores), bool)
    for box, score, label in zip(*theirs, strict=True):
        apart = np.where(is_free & (labels == label), np.abs(boxes - box).max(axis=1), np.inf)
        nearest = int(apart.argmin())
        if apart[nearest] <= BOX_TOLERANCE and abs(scores[nearest] - score) <= SCORE_TOLERANCE:
            is_free[nearest] = False
            matched += 1
            box_error = max(box_error, apart[nearest])
            score_error = max(score_error, abs(scores[nearest] - score))
    return matched, box_error, score_error


def main() -> int:
    """Prints a line for each image; returns 1 if a detection has no like."""
    files = [pathlib.Path(name) for name in sys.argv[1:]]
    if not files:
        sys.exit(__doc__)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    is_equal = True
    with tempfile.TemporaryDirectory() as folder:
        for name, case in DETECTORS.items():
            model = build(case).float().eval()
            # At this image size the filled scores would all be 1 but for rounding.
            model.head.classification_head.cls_logits.weight.data *= CLASS_WEIGHTS[case.head]
            weights = pathlib.Path(folder) / f"{name}_coco.pth"
            torch.save(model.state_dict(), weights)
            found = by_focaljax(weights, files, pathlib.Path(folder) / name)
            for file, ours in zip(files, found, strict=True):
                theirs = by_torchvision(model, file)
                matched, box_error, score_error = compare(ours, theirs)
                is_equal &= matched == len(theirs[1]) == len(ours[1])
                print(
                    f"{name} {file.name}: {matched} of {len(theirs[1])} found by both, focaljax has {len(ours[1])}; "
                    f"boxes to {box_error:.1e} px; scores, {theirs[1].min():.3f} to {theirs[1].max():.3f}, "
                    f"to {score_error:.1e}"
                )
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
