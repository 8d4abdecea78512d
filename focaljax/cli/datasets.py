"""From a config to its data: the sources of the splits, their classes, the batches of training."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import rich.progress
from ml_collections import ConfigDict

from focaljax.cli.console import track
from focaljax.cli.main import UsageError
from focaljax.data import pipeline
from focaljax.data.augmentation import Augmentation
from focaljax.data.cache import CachedSource
from focaljax.data.deadline import with_deadline
from focaljax.data.example import Source
from focaljax.data.subset import FirstImages

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Classes:
    """What a model's outputs mean.

    Attributes:
        names: K names, in label order.
        category_ids: the data set's own ids, in label order.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]


def save_classes(source: Source, workdir: pathlib.Path) -> None:
    """Writes the classes of the training split to `WORKDIR/classes.json`, in COCO's form of categories."""
    categories = [
        {"id": int(category_id), "name": name}
        for category_id, name in zip(source.category_ids, source.class_names, strict=True)
    ]
    (workdir / "classes.json").write_text(json.dumps(categories, indent=2) + "\n")


def load_classes(workdir: pathlib.Path) -> Classes:
    """Returns the classes that `save_classes` wrote.

    Raises:
        UsageError: they are missing or unreadable.
    """
    path = workdir / "classes.json"
    try:
        categories = json.loads(path.read_text())
        names, ids = (tuple(entry[key] for entry in categories) for key in ("name", "id"))
        if not all(isinstance(name, str) for name in names) or not all(type(k) is int for k in ids):
            raise TypeError("a class needs a text as its name and an integer as its id")
        return Classes(names, ids)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}): is {workdir} that of a run of `focaljax train`?") from None


def make_source(config: ConfigDict, split: str, *, classes: Classes | None = None) -> Source:
    """Returns the source of one split.

    Args:
        config: the whole config.
        split: 'train', 'val' or 'test'.
        classes: those of the training split, which this one must have; None for that split itself.

    Raises:
        UsageError: a setting that the source needs is missing.
        DataError: nothing sensible can be read.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    source = _whole_source(config, split, classes)
    if (limit := config.data[split].limit) > 0:
        source = FirstImages(source, limit)
    if not config.data.cache:
        return source
    return CachedSource(source, config.data.cache, split, track=track, timeout=config.data.timeout)


def _whole_source(config: ConfigDict, split: str, classes: Classes | None) -> Source:
    data = config.data
    root, part = pathlib.Path(data.root), data[split]
    class_names = tuple(data.classes) if classes is None else classes.names
    if data.source == "coco":
        from focaljax.data.coco import CocoSource

        _require(config, f"data.{split}.images", f"data.{split}.annotations")
        category_ids = () if classes is None else classes.category_ids
        return CocoSource(
            root / part.images,
            root / part.annotations,
            class_names=class_names,
            category_ids=category_ids,
            timeout=data.timeout,
        )
    if data.source == "voc":
        from focaljax.data.voc import VocSource

        _require(config, f"data.{split}.images", f"data.{split}.annotations")
        return VocSource(
            root / part.images,
            root / part.annotations,
            split=root / part.name if part.name else None,
            class_names=class_names,
            timeout=data.timeout,
        )
    from focaljax.data.tfds_source import TfdsSource

    _require(config, f"data.{split}.name")
    if data.source == "tfds":
        _require(config, "data.tfds_name", "data.root")
        return TfdsSource(data.tfds_name, part.name, data_dir=data.root, timeout=data.timeout)
    if data.source == "shapes":
        from focaljax.data.shapes import prepare_shapes

        _require(config, "data.root")
        with rich.progress.Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
            task = progress.add_task("drawing the data set shapes", visible=False)
            folder = prepare_shapes(
                data.root,
                **data.shapes,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
            )
        return TfdsSource(folder, part.name, timeout=data.timeout)
    raise UsageError(f"data.source must be 'coco', 'voc', 'tfds' or 'shapes', got {data.source!r}")


def training_batches(config: ConfigDict, source: Source, start_step: int) -> Iterator[pipeline.Batch]:
    """Returns this host's share of the training batches from `start_step` on."""
    height, width = config.data.image_size
    augmentation = Augmentation(**config.augment)
    batches = pipeline.training_batches(
        source,
        batch_size=config.optim.batch_size,
        height=height,
        width=width,
        max_boxes=config.data.max_boxes or max(1, source.max_boxes * augmentation.images_in_view),
        seed=config.seed,
        augmentation=augmentation,
        start_step=start_step,
        num_threads=config.data.num_threads or None,
        shard=(jax.process_index(), jax.process_count()),
    )
    return with_deadline(batches, config.data.timeout)


def _require(config: ConfigDict, *settings: str) -> None:
    for setting in settings:
        value: Any = config
        for key in setting.split("."):
            value = value[key]
        if not value:
            raise UsageError(
                f"data.source={config.data.source!r} needs --config.{setting}=..., which is empty in this config"
                + (" (to evaluate on the training split: --config.eval.split=train)" if "data.val." in setting else "")
            )
