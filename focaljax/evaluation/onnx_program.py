"""Detectors as ONNX files, by jax2onnx, up to the boxes and scores of all anchors; run by onnxruntime."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Array = jax.Array

INPUTS, OUTPUTS = ("images", "sizes"), ("boxes_xyxy", "scores")


def write_onnx(
    anchor_step: Callable[[Any, Array, Array], tuple[Array, Array]],
    variables: Any,
    path: pathlib.Path,
    *,
    image_size: tuple[int, int],
) -> None:
    """Writes the step as an ONNX file with the weights inside, for any number of images.

    Args:
        anchor_step: of `make_anchor_step`; no loops, which jax2onnx makes badly.
        variables: the model's weights.
        path: of the file.
        image_size: H and W in pixels.

    Raises:
        ModuleNotFoundError: jax2onnx or a package of its is not installed.
    """
    import jax2onnx
    import onnx_ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    # It warns of shapes that the file says all the same.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)

    def decode(images: Array, sizes: Array) -> tuple[Array, Array]:
        return anchor_step(variables, images, sizes)

    arguments: list[Any] = [
        jax.ShapeDtypeStruct(("B", *image_size, 3), np.uint8),
        jax.ShapeDtypeStruct(("B", 2), np.int32),
    ]
    made = jax2onnx.to_onnx(
        decode, arguments, model_name="focaljax", input_names=list(INPUTS), output_names=list(OUTPUTS)
    )
    model = onnx_ir.from_proto(made)
    # The heads' weights come once for each level.
    DeduplicateHashedInitializersPass()(model)
    path.write_bytes(onnx_ir.to_proto(model).SerializeToString())


def run_onnx(path: pathlib.Path, images: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes `[B, A, 4]` and scores `[B, A, K]` as onnxruntime computes them on the CPU.

    Args:
        path: of the file.
        images: uint8 `[B, H, W, 3]`.
        sizes: int32 `[B, 2]`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(list(OUTPUTS), dict(zip(INPUTS, (images, sizes), strict=True)))
    return boxes, scores
