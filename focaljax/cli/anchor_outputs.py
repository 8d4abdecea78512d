"""What a trained detector gives for each anchor, beside what the anchor was assigned to: for figures of a loss."""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from focaljax.cli import build, datasets, prediction
from focaljax.cli.console import track
from focaljax.cli.evaluate import load_detector, saved_run
from focaljax.cli.main import UsageError, silence_libraries
from focaljax.data.example import DataError, Example
from focaljax.data.transforms import resize_and_pad
from focaljax.detection import AnchorTargets, assign_anchors, pyramid_anchors
from focaljax.detection.postprocess import softmax_log_odds
from focaljax.models.retinanet import normalize_images
from focaljax.training import mesh as meshes
from focaljax.training.checkpoints import CheckpointError
from focaljax.training.classification import is_softmax

Array = jax.Array
T = TypeVar("T")


def figure_of_runs(
    description: str | None,
    out: pathlib.Path,
    arguments: Sequence[str] | None,
    of_run: Callable[[str, str, int], T],
    *,
    images: int,
) -> tuple[argparse.Namespace, list[tuple[str, dict[str, Any], T]]]:
    """Reads the command line of a script that makes a figure of trained detectors, and looks into each.

    Args:
        description: of the script.
        out: where the figure goes if nothing else is said.
        arguments: of the command line; None: those of the process.
        of_run: what is wanted of a run: from its folder, the split and the number of images.
        images: how many if nothing else is said.

    Returns:
        The options `workdir`, `split`, `images` and `out`, a folder that is there now; and for each run its folder,
        its name as by `name_of`, and what is wanted of it.

    Raises:
        SystemExit: the command line is wrong, or a run cannot be read; one line says what.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, nargs="+", metavar="RUN", help="of runs of `focaljax train`")
    parser.add_argument("--split", default="val", choices=datasets.SPLITS, help="of their data (default val)")
    parser.add_argument("--images", type=int, default=images, help=f"the first so many (default {images})")
    parser.add_argument("--out", type=pathlib.Path, default=out, metavar="DIR")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error(f"--images {options.images}: expected at least 1")
    silence_libraries()
    try:
        found = [
            (workdir, name_of(pathlib.Path(workdir)), of_run(workdir, options.split, options.images))
            for workdir in options.workdir
        ]
    except (UsageError, DataError, CheckpointError) as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    return options, found


def name_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the data set, row, seed and AP of a run of a sweep; of another the name of its folder."""
    try:
        result = json.loads((folder / "result.json").read_text())
        return {"data": result["data"], "row": result["row"], "seed": result["seed"], "AP": f"{result['AP']:.3f}"}
    except (OSError, ValueError, KeyError, TypeError):
        return {"data": "", "row": folder.name, "seed": "", "AP": ""}


def anchor_outputs(workdir: str, split: str, images: int) -> Iterator[tuple[Array, Array]]:
    """Yields the outputs of all anchors of an image and what they were assigned to, image by image.

    Args:
        workdir: of a run of `focaljax train`; its last weights, averaged where the run averages them.
        split: of the run's data.
        images: the first so many; fewer where the split has no more.

    Yields:
        Logits float32 `[A, K]`, whose sigmoid is the score of each class, of softmax losses too; and labels int32 `[A]`
        of all boxes of the image, by the run's matching: a class id, `losses.BACKGROUND` or `losses.IGNORED`.

    Raises:
        UsageError, DataError, CheckpointError: the run, its data or its weights cannot be read.
    """
    config, folder = saved_run(workdir, ())
    source = datasets.make_source(config, split, classes=datasets.load_classes(folder))
    classes = len(source.class_names)
    mesh = meshes.make_mesh(jax.devices()[:1])
    _, variables, _ = load_detector(config, folder, classes, mesh)
    height, width = config.data.image_size
    view = functools.partial(
        resize_and_pad, height=height, width=width, largest_sides=prediction.largest_sides_of(config)
    )
    of_image = _outputs_of_image(config, build.make_model(config, classes), (height, width))
    count = min(images, len(source))
    for image in track(_padded(source, count, view), "outputs of anchors", count):
        yield of_image(variables, *image)


def _outputs_of_image(config: Any, model: Any, shape: tuple[int, int]) -> Callable[..., tuple[Array, Array]]:
    """Returns a function from variables and an image to logits `[A, K]` and labels `[A]`."""
    anchors_xyxy = np.concatenate(pyramid_anchors(shape, **prediction.anchor_settings(config)))
    pixels = prediction.pixel_settings(config)
    softmax = is_softmax(config.loss.classification)

    @jax.jit
    def of_image(variables: Any, image: Any, size: Any, boxes: Any, labels: Any, is_crowd: Any, is_box: Any) -> Any:
        of_levels, _ = model.apply(variables, normalize_images(image[None], size[None], **pixels), train=False)
        targets: AnchorTargets = assign_anchors(
            jnp.asarray(anchors_xyxy), boxes, labels, is_crowd, is_box, **config.matching
        )
        logits = jnp.concatenate(of_levels, axis=1)[0].astype(jnp.float32)
        return softmax_log_odds(logits) if softmax else logits, targets.labels

    return of_image


def _padded(source: Any, count: int, view: Callable[..., Any]) -> Iterator[tuple[Any, ...]]:
    max_boxes = max(1, source.max_boxes)  # all of them, whatever data.max_boxes leaves to the training
    for index in range(count):
        example: Example = source[index]
        image, size = view(example.image)
        scale_y, scale_x = size[0] / example.image.shape[0], size[1] / example.image.shape[1]
        N = len(example.labels)
        boxes = np.zeros((max_boxes, 4), np.float32)
        boxes[:N] = example.boxes_xyxy[:N] * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        labels = np.zeros(max_boxes, np.int32)
        labels[:N] = example.labels[:N]
        is_crowd = np.zeros(max_boxes, bool)
        is_crowd[:N] = example.is_crowd[:N]
        yield image, np.array(size, np.int32), boxes, labels, is_crowd, np.arange(max_boxes) < N
