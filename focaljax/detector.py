"""The detector as one object: images in, boxes out, from published weights or from a run of `focaljax train`."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import flax.linen as nn
import jax
import numpy as np

from focaljax.data.coco_categories import BY_CATEGORY_ID, CATEGORY_IDS, WITHOUT_GAPS
from focaljax.data.files import read_regular_file
from focaljax.data.images import decode_upright_image
from focaljax.data.views import MakeView, View, shortest_edge_view, view_batches
from focaljax.detection import Detections
from focaljax.evaluation.detections import ImageDetections
from focaljax.evaluation.inference import THRESHOLDS, VIEW_KEYS, TestTimeAugmentation, make_predict_step
from focaljax.evaluation.prediction import predict_batches
from focaljax.models.pretrained import load_variables
from focaljax.models.resnet import RESNETS
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variables import check_complete
from focaljax.models.variants import VARIANTS, Preprocessing, Variant, variant_named
from focaljax.models.weight_names import WeightsError
from focaljax.training import mesh as meshes
from focaljax.training.programs import Compilation, ProgramPerShape

Image = np.ndarray | str | os.PathLike[str]

# What of a model shows in its weights and tells the variants apart; backbone, depths and channels are free in each.
_TELLING = ("levels", "p6_from", "head_norm")
# torchvision's where it is not loading its own COCO weights of v1.
_TORCH_NORM_EPSILON = 1e-5


class Detector:
    """A trained detector: called with images it returns the objects in them.

    Images of one padded shape go through the network together; for each shape the network is compiled once, at its
    first image, which takes seconds.

    Attributes:
        class_names: K names, in label order.
        category_ids: K COCO category ids, in label order.
        description: what the detector is, one line.
        batch_size: images in a batch.
        model: the network.
        step_settings: the arguments of `make_predict_step` besides it.
        scales: factors on the usual size of an image, one view each.

    Example:
        >>> detector = Detector.from_weights("retinanet.safetensors")  # doctest: +SKIP
        >>> for found in detector(["a.jpg", "b.jpg"]):  # doctest: +SKIP
        ...     print(found.boxes_xyxy, found.scores, [detector.class_names[label] for label in found.labels])
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        *,
        make_view: MakeView,
        anchors: Mapping[str, Any],
        thresholds: Mapping[str, Any],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        pixels: Mapping[str, Any] | None = None,
        tta: TestTimeAugmentation | None = None,
        batch_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        description: str = "",
        on_compile: Callable[[Compilation], None] = lambda _: None,
        softmax: bool = False,
    ) -> None:
        """Puts the weights on the devices; nothing is compiled yet.

        Args:
            model: gives class logits and box deltas for each level.
            variables: its weights.
            make_view: resizes and pads an image for the network.
            anchors: arguments of `focaljax.detection.pyramid_anchors` besides the image size.
            thresholds: arguments of `focaljax.detection.postprocess`.
            class_names: K names, in label order.
            category_ids: K COCO category ids, in label order.
            pixels: arguments of `focaljax.models.retinanet.normalize_images`.
            tta: further views of each image; None: the plain view alone.
            batch_size: a multiple of the number of devices. None: for each device 8, or 1 if it is a CPU, which gains
                nothing from more.
            mesh: of the devices over which a batch is split; None: the first device.
            description: one line.
            on_compile: is told when the network was compiled for a shape.
            softmax: the weights were trained with a softmax loss.

        Raises:
            ValueError: the batch cannot be split evenly over the devices, or there are more names than ids or fewer.
        """
        if len(class_names) != len(category_ids):
            raise ValueError(f"{len(class_names)} class_names and {len(category_ids)} category_ids: one each is needed")
        self._mesh = meshes.make_mesh(jax.devices()[:1]) if mesh is None else mesh
        is_cpu = self._mesh.devices.flat[0].platform == "cpu"
        self.batch_size = self._mesh.size * (1 if is_cpu else 8) if batch_size is None else batch_size
        meshes.check_batch_size(self.batch_size, self._mesh)
        self.class_names, self.category_ids = tuple(class_names), tuple(category_ids)
        self.description = description
        tta = tta or TestTimeAugmentation()
        self._make_view, self.scales = make_view, tta.scales
        self._variables = jax.device_put(variables, meshes.replicated(self._mesh))
        self.model = model
        self.step_settings: dict[str, Any] = {
            "anchors": anchors,
            "thresholds": thresholds,
            "pixels": pixels,
            "flip": tta.flip,
            "softmax": softmax,
        }
        step = make_predict_step(model, **self.step_settings)
        self._predict_step = ProgramPerShape(meshes.compiled_for_rows(step, self._mesh), "prediction step", on_compile)

    @classmethod
    def from_weights(
        cls,
        path: str | os.PathLike[str],
        *,
        variant: str | None = None,
        class_names: Sequence[str] | None = None,
        norm_epsilon: float | None = None,
        preprocessing: Preprocessing | None = None,
        thresholds: Mapping[str, Any] | None = None,
        tta: TestTimeAugmentation | None = None,
        batch_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        on_compile: Callable[[Compilation], None] = lambda _: None,
    ) -> Self:
        """Returns the detector whose weights are in a file, with the settings that they were published with.

        Number of classes, backbone and heads are read from the names and shapes of the weights. Images are resized as
        torchvision does for every variant; detectron2 itself averages where an image shrinks, which moves its boxes by
        fractions of a pixel. Files that `focaljax convert` wrote with torchvision's names are taken for torchvision's,
        anchors included.

        Args:
            path: of torchvision's or detectron2's RetinaNet or of `focaljax convert`; `.safetensors`, `.npz`, `.pkl`,
                or `.pth` (needs torch); see `focaljax.models.weight_files.read_weights`.
            variant: a name in `focaljax.models.variants.VARIANTS`: anchors, preparation of the images and thresholds.
                None: recognised by the names and shapes (`recognize_variant`), which cannot be done for focaljax's own
                names.
            class_names: K names, in label order. None: COCO's for torchvision with 91 classes and detectron2 with 80,
                else 'class 0', 'class 1' and so on.
            norm_epsilon: of the backbone's normalisation. None: the variant's, which is 0 for torchvision v1, as its
                published COCO weights want; 1e-5 where v1's normalisation was live in training. Give 1e-5 for a v1 that
                was trained with torchvision from an ImageNet backbone: the file does not tell.
            preprocessing: instead of the variant's, such as for smaller images.
            thresholds: instead of some of the variant's, or to choose soft-NMS (`suppression`, `soft_sigma`); see
                `focaljax.detection.postprocess`.
            tta: see `__init__`.
            batch_size: see `__init__`.
            mesh: see `__init__`.
            on_compile: see `__init__`.

        Raises:
            WeightsError: the file cannot be read, is not of a detector, or does not fit the variant.
            ValueError: `variant` or a threshold is unknown, or `class_names` has another length than K.
        """
        loaded = load_variables(pathlib.Path(path))
        if loaded.source == "torchvision_classifier" or "fpn" not in loaded.variables["params"]:
            raise WeightsError(f"{path} holds a backbone without pyramid and heads: train a detector from it first")
        try:
            found = check_complete(loaded.variables)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        name = variant or recognize_variant(loaded.source, found, path)
        chosen = variant_named(name)
        attributes = _model_attributes(path, name, chosen, found)
        attributes["norm_epsilon"] = _norm_epsilon(norm_epsilon, name, attributes)
        model = RetinaNet(**attributes)
        names = _class_names(name, model.num_classes, class_names)
        unknown = sorted(set(thresholds or {}) - set(THRESHOLDS))
        if unknown:
            raise ValueError(f"thresholds must be some of {', '.join(THRESHOLDS)}, got {', '.join(unknown)}")
        preprocessing = preprocessing or chosen.preprocessing
        return cls(
            model,
            jax.tree.map(lambda array: np.asarray(array, np.float32), loaded.variables),
            make_view=functools.partial(
                shortest_edge_view,
                **{
                    key: getattr(preprocessing, key)
                    for key in ("min_size", "max_size", "pad_multiple", "keeps_aspect_ratio")
                },
            ),
            anchors={"levels": model.levels, **chosen.anchors},
            thresholds={**chosen.thresholds, **(thresholds or {})},
            pixels={
                "mean": preprocessing.pixel_mean,
                "std": preprocessing.pixel_std,
                "channel_order": preprocessing.channel_order,
            },
            class_names=names,
            category_ids=_category_ids(name, model.num_classes),
            tta=tta,
            batch_size=batch_size,
            mesh=mesh,
            on_compile=on_compile,
            description=(
                f"{name} with {model.backbone}, {model.num_classes} classes, "
                f"{model.norm} with epsilon {model.norm_epsilon:g}, from {path} ({loaded.source} names)"
            ),
        )

    @classmethod
    def from_workdir(
        cls,
        workdir: str | os.PathLike[str],
        *,
        step: int | str = "latest",
        tta: TestTimeAugmentation | None = None,
        batch_size: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> "Detector":
        """Returns the detector of a run of `focaljax train`.

        Args:
            workdir: the `--workdir` of the run.
            step: of its checkpoint: 'latest', 'best' (of the highest AP on `eval.split`) or the number of a step.
            tta: see `__init__`; None: as the run's own `eval.tta_flip` and `eval.tta_scales` say.
            batch_size: see `__init__`.
            mesh: see `__init__`.

        Raises:
            UsageError: there is no such run, or `step` names none of it.
            CheckpointError: it has no checkpoint, or none of this step.
        """
        # The only place below the command line that looks up to it: a run's settings are its config.
        from focaljax.cli.evaluate import chosen_step, run_detector, saved_run

        config, path = saved_run(os.fspath(workdir), ())
        return run_detector(
            config, path, step=chosen_step(config, path, str(step)), tta=tta, batch_size=batch_size, mesh=mesh
        )

    def __call__(self, images: Image | Sequence[Image]) -> list[ImageDetections]:
        """Returns the objects in each image, in the order of the images; `image_id` counts them from 0.

        Args:
            images: one image or several: uint8 arrays `[H, W, 3]`, RGB, of any sizes, or files, which are turned as
                their EXIF orientation says.

        Returns:
            One `ImageDetections` an image: `boxes_xyxy` in pixels of the image, `scores`, `labels`, best score first.

        Raises:
            TypeError: an image is neither a path nor a uint8 array.
            ValueError: an array has another shape.
            UnreadableImageError: a file cannot be decoded.
        """
        # A single array would otherwise be taken for a list of its rows; one of two axes is refused as an image.
        is_single = isinstance(images, str | os.PathLike) or getattr(images, "ndim", 0) in (2, 3)
        several: Sequence[Any] = [images] if is_single else images  # type: ignore[assignment]
        found = self.stream((index, _as_array(image, index)) for index, image in enumerate(several))
        return sorted(found, key=lambda detections: detections.image_id)

    def stream(self, images: Iterable[tuple[int, np.ndarray]]) -> Iterator[ImageDetections]:
        """Yields the objects in each image as soon as its batch is done: not in the order of the images.

        Fewer than 16 batches of images, resized, wait for others of their shape at a time, however many there are.

        Args:
            images: pairs of an id and an image, uint8 `[H, W, 3]`, RGB.
        """
        batches = view_batches(images, self._make_view, scales=self.scales, batch_size=self.batch_size)
        on_devices = meshes.put_batches(batches, self._mesh, VIEW_KEYS)
        return predict_batches(lambda batch: self._predict_step(self._variables, batch), on_devices)

    def view(self, image: np.ndarray) -> View:
        """Returns an image, uint8 `[H, W, 3]`, RGB, as the network gets it, at the first of its scales."""
        return self._make_view(image, self.scales[0])

    def predict_views(self, images: np.ndarray, sizes: np.ndarray) -> Detections:
        """Returns the objects in a batch of plain views, in pixels of the batch.

        Args:
            images: `[B, H, W, 3]`, RGB in 0..255, uint8 or float32; B is a multiple of the number of devices.
            sizes: int32 `[B, 2]`, height and width of the contents.
        """
        batch = meshes.put_batch({"image": images, "size": sizes, "more_views": ()}, self._mesh)
        return self._predict_step(self._variables, batch)

    def variables(self) -> Any:
        """Returns the weights on the host."""
        return jax.tree.map(np.asarray, self._variables)


def recognize_variant(source: str, attributes: Mapping[str, Any], path: str | os.PathLike[str] = "weights") -> str:
    """Returns the name in `VARIANTS` of a file of weights.

    Args:
        source: whose names the file has, see `focaljax.models.pretrained.LoadedWeights`.
        attributes: what `focaljax.models.variables.infer_model` found in it.
        path: of the file, for the message.

    Raises:
        WeightsError: the weights do not tell.

    Example:
        >>> recognize_variant("torchvision", {"backbone": "resnet18", "head_norm": "group_norm"})
        'torchvision_v2'
    """
    if source == "detectron2":
        return "detectron2_r101" if attributes["backbone"] == "resnet101" else "detectron2_r50"
    if source == "torchvision":
        if attributes["head_norm"] == "group_norm":
            return "torchvision_v2"
        mlperf = {"backbone": "resnext50_32x4d", "num_classes": VARIANTS["mlperf"].num_classes}
        return "mlperf" if mlperf.items() <= attributes.items() else "torchvision_v1"
    raise WeightsError(
        f"{path} has focaljax's own names, which do not say how images are prepared and where anchors are: name the "
        f"variant ({', '.join(VARIANTS)}), or use the workdir of the run"
    )


def _model_attributes(
    path: str | os.PathLike[str], name: str, variant: Variant, found: dict[str, Any]
) -> dict[str, Any]:
    """Returns the attributes of the model: the variant's, and over them what the weights show.

    Raises:
        WeightsError: the weights are not of this variant.
    """
    wanted = {**variant.model, "anchors_per_position": variant.anchors_per_position}
    wrong = [
        f"{key} {found[key]!r}, not {wanted[key]!r}"
        for key in (*_TELLING, "anchors_per_position")
        if key in found and found[key] != wanted[key]
    ]
    if wrong:
        raise WeightsError(
            f"{path} does not fit the variant {name}: the weights are of a model with {'; '.join(wrong)}"
        )
    # detectron2's basic blocks, which it has no published detector of, have no 1x1 to stride in.
    has_1x1 = RESNETS[found["backbone"]].expansion > 1
    return {**wanted, **found, "freeze_at": 0, "stride_in_1x1": wanted["stride_in_1x1"] and has_1x1}


def _norm_epsilon(given: float | None, name: str, attributes: Mapping[str, Any]) -> float:
    if given is not None:
        return given
    # Only constants were ever published with the epsilon 0: a normalisation that lived in training has torch's.
    is_live_v1 = name == "torchvision_v1" and attributes["norm"] == "batch_norm"
    return _TORCH_NORM_EPSILON if is_live_v1 else attributes["norm_epsilon"]


def _class_names(variant: str, num_classes: int, given: Sequence[str] | None) -> tuple[str, ...]:
    """Returns K names in label order: those given, or COCO's for a variant that was published for it."""
    is_torchvision = variant.startswith("torchvision")
    if given is None:
        if is_torchvision and num_classes == len(BY_CATEGORY_ID):
            return BY_CATEGORY_ID
        if variant.startswith("detectron2") and num_classes == len(WITHOUT_GAPS):
            return WITHOUT_GAPS
        return tuple(f"class {label}" for label in range(num_classes))
    if isinstance(given, str) or len(given) != num_classes:
        background = "; torchvision's class 0 is the background and needs a name too" if is_torchvision else ""
        raise ValueError(f"class_names has {len(given)} entries, the weights have {num_classes} classes{background}")
    return tuple(given)


def _category_ids(variant: str, num_classes: int) -> tuple[int, ...]:
    """Returns the data set's id of each label, the same whatever names the file and the classes have."""
    # torchvision and MLPerf train on the data set's ids as they stand: COCO's are 1..90, MLPerf's of OpenImages 0..263.
    if variant.startswith(("torchvision", "mlperf")):
        return tuple(range(num_classes))
    # detectron2 counts the classes in the order of their ids.
    if variant.startswith("detectron2") and num_classes == len(CATEGORY_IDS):
        return CATEGORY_IDS
    return tuple(range(1, num_classes + 1))


def _as_array(image: Any, index: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike):
        path = pathlib.Path(image)
        return decode_upright_image(read_regular_file(path), file_name=str(path), image_id=index)
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(
            f"image {index} is {array.dtype}, expected a path or a uint8 array [H, W, 3] with values in 0..255"
        )
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"image {index} has shape {array.shape}, expected [H, W, 3], RGB")
    return array
