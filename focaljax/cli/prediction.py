"""From a config to the parts that predict: batches of images and their views, the compiled prediction step."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from focaljax.data import pipeline
from focaljax.data.augmentation import Augmentation
from focaljax.data.deadline import with_deadline
from focaljax.data.example import Source
from focaljax.data.views import scaled_shape
from focaljax.detection import Detections
from focaljax.evaluation.inference import THRESHOLDS, VIEW_KEYS, TestTimeAugmentation, make_predict_step
from focaljax.models.retinanet import RetinaNet
from focaljax.training import mesh as meshes
from focaljax.training.classification import is_softmax


def anchor_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `pyramid_anchors` besides the image size."""
    anchors = {key: tuple(config.anchors[key]) for key in ("sizes", "scales", "ratios")}
    return {"levels": tuple(config.model.levels), "layout": config.anchors.layout, **anchors}


def pixel_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `normalize_images` besides the images."""
    data = config.data
    return {"mean": tuple(data.pixel_mean), "std": tuple(data.pixel_std), "channel_order": data.channel_order}


def threshold_settings(config: ConfigDict) -> dict[str, Any]:
    """Returns the thresholds of `postprocess`."""
    return {key: config.eval[key] for key in THRESHOLDS}


def make_tta(config: ConfigDict) -> TestTimeAugmentation:
    """Returns the views of an image that the config asks for.

    Raises:
        ValueError: a scale is impossible.
    """
    return TestTimeAugmentation(flip=config.eval.tta_flip, scales=tuple(config.eval.tta_scales))


def largest_sides_of(config: ConfigDict) -> tuple[int, int] | None:
    """Returns how large an image is evaluated at most: as large as it was at most in training; None: as fits."""
    return Augmentation(**config.augment).largest_sides


def evaluation_batches(config: ConfigDict, source: Source) -> Iterator[dict[str, Any]]:
    """Returns this host's share of the batches that hold every image of the source once, in all its sizes."""
    shape = tuple(config.data.image_size)
    largest_sides = largest_sides_of(config)
    of_scales = []
    for scale in make_tta(config).scales:
        height, width = scaled_shape(shape, scale)
        of_scales.append(
            pipeline.evaluation_batches(
                source,
                batch_size=config.eval.batch_size,
                height=height,
                width=width,
                largest_sides=scaled_shape(largest_sides, scale) if largest_sides else None,
                num_threads=config.data.num_threads or None,
                shard=(jax.process_index(), jax.process_count()),
            )
        )
    # Each scale reads and decodes the images anew: resizing the smaller batch on the device would lose detail.
    batches = (
        {**first, "more_views": tuple({key: batch[key] for key in ("image", "size")} for batch in others)}
        for first, *others in zip(*of_scales, strict=True)
    )
    return with_deadline(batches, config.data.timeout)


def put_evaluation_batches(
    batches: Iterator[dict[str, Any]], mesh: jax.sharding.Mesh
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields evaluation batches on the host and on the devices."""
    return meshes.put_batches(batches, mesh, VIEW_KEYS)


def compiled_predict_step(
    config: ConfigDict, model: RetinaNet, mesh: jax.sharding.Mesh
) -> Callable[[Any, Any], Detections]:
    """Returns the prediction step, compiled at its first call for each image size."""
    step = make_predict_step(
        model,
        anchors=anchor_settings(config),
        thresholds=threshold_settings(config),
        pixels=pixel_settings(config),
        flip=make_tta(config).flip,
        softmax=is_softmax(config.loss.classification),
    )
    return meshes.compiled_for_rows(step, mesh)
