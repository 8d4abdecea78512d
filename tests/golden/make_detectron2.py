"""Reference values from detectron2: `python -m tests.golden.make_detectron2 --detectron2 CHECKOUT`, where torch is.

Writes `detectron2.npz` beside this file; `README.md` says what is in it. All on the CPU. detectron2's compiled part is
not needed: its RetinaNet uses none of it.
"""

import argparse
import contextlib
import copy
import hashlib
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import torch
import torchvision

from tests.golden import fill

FILE = pathlib.Path(__file__).parent / "detectron2.npz"


def import_detectron2(checkout: str) -> None:
    """Makes `import detectron2` find the checkout, uncompiled, with every function open to `double_boxes`."""
    torch.jit._state.disable()
    sys.path.insert(0, checkout)
    sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")


@contextlib.contextmanager
def double_boxes():
    """Has detectron2 leave boxes and logits in float64, which it takes to float32 wherever it meets them."""
    from detectron2.structures import Boxes

    keep = lambda boxes, tensor: setattr(boxes, "tensor", tensor.double())  # noqa: E731
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double), mock.patch.object(Boxes, "__init__", keep):
        yield


def clipping_first(model):
    """A copy of the model that clips candidates to the image before non-maximum suppression, as torchvision does."""
    model = copy.copy(model)
    decode = model._decode_multi_level_predictions

    def decode_and_clip(*arguments):
        candidates = decode(*arguments)
        candidates.pred_boxes.clip(candidates.image_size)
        return candidates

    model._decode_multi_level_predictions = decode_and_clip
    return model


def less_certain(model):
    """A copy of the model whose logits are lower by `fill.DETECTRON2_FEW`, so that the score threshold counts."""
    model = copy.deepcopy(model)
    model.head.cls_score.bias.data -= fill.DETECTRON2_FEW
    return model


def build(checkout: str, backbone: str):
    """The model of the published configuration, filled."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    name = {"resnet50": "R_50_FPN_1x", "resnet101": "R_101_FPN_3x"}[backbone]
    file = pathlib.Path(checkout) / f"configs/COCO-Detection/retinanet_{name}.yaml"
    config.merge_from_file(str(file), allow_unsafe=True)  # the anchors' sizes are a Python expression in there
    config.MODEL.DEVICE = "cpu"
    model = build_model(config)
    values = fill.fill_state_dict({name: tuple(value.shape) for name, value in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(value) for name, value in values.items()})
    model = model.double()
    model.anchor_generator.float()  # as it is, and ours
    # It keeps the mean in float32, which is off by up to 3e-6 of 0..255.
    model.pixel_mean = torch.tensor(config.MODEL.PIXEL_MEAN, dtype=torch.float64).view(-1, 1, 1)
    return model


def forward(model, inputs) -> dict[str, torch.Tensor]:
    """What the model computes on the way, by name."""
    images = model.preprocess_image(inputs)
    stages = []
    hook = model.backbone.bottom_up.res2.register_forward_hook(lambda module, inputs, output: stages.append(output))
    features = model.backbone.bottom_up(images.tensor)
    hook.remove()
    pyramid = list(model.backbone(images.tensor).values())
    outputs = model._transpose_dense_predictions(model.head(pyramid), [model.num_classes, 4])
    values = {"input": images.tensor, "c2": stages[0]}
    values |= {f"c{name.removeprefix('res')}": value for name, value in features.items()}
    values |= {f"p{level}": value for level, value in enumerate(pyramid, start=3)}
    for name, levels in zip(("class_logits", "box_deltas"), outputs, strict=True):
        values |= {f"{name}{level}": value for level, value in enumerate(levels, start=3)}
    return values


def numpy(value) -> np.ndarray:
    return value.detach().numpy()


def instances(size, boxes, labels):
    from detectron2.structures import Boxes, Instances

    return Instances(size, gt_boxes=Boxes(torch.tensor(boxes)), gt_classes=torch.tensor(labels))


def our_labels(labels, num_classes: int) -> np.ndarray:
    """Labels of anchors with our numbers for background and ignored."""
    labels = numpy(labels)
    return np.select([labels == -1, labels == num_classes], [-2, -1], labels).astype(np.int8)


def detect(model, inputs) -> list[dict[str, np.ndarray]]:
    with torch.no_grad():
        found = [result["instances"] for result in model.eval()(inputs)]
    return [
        {"boxes": x.pred_boxes.tensor.numpy(), "scores": x.scores.numpy(), "labels": x.pred_classes.numpy()}
        for x in found
    ]


def make_model(checkout: str) -> dict[str, np.ndarray]:
    from detectron2.utils.events import EventStorage

    model = build(checkout, "resnet50")
    initial = model.state_dict()
    golden = {
        "names": np.array(list(initial)),
        "shapes": np.array([" ".join(map(str, value.shape)) for value in initial.values()]),
    }
    inputs = [
        # BGR, as its data mapper gives them.
        {"image": torch.tensor(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1).double()}
        for image in map(fill.image, fill.DETECTRON2_SIZES, "01")
    ]
    with torch.no_grad():
        values = forward(model.eval(), inputs)
    golden |= {f"eval/{name}": fill.sample(numpy(value)) for name, value in values.items()}
    golden["batch_shape"] = np.array(values["input"].shape)

    singles = detect(build(checkout, "resnet50").float(), [{"image": image["image"].float()} for image in inputs])
    with double_boxes():
        detections, clipped_first = detect(model, inputs), detect(clipping_first(model), inputs)
        few = detect(less_certain(model), inputs)
        unlimited = copy.copy(model)
        unlimited.max_detections_per_image = fill.DETECTRON2_MANY
        many = detect(unlimited, inputs)
    for index, (single, double) in enumerate(zip(singles, detections, strict=True)):
        assert (single["labels"] == double["labels"]).all()
        golden |= {f"detections{index}/{name}": value for name, value in double.items()}
        golden |= {f"clipped_first{index}/{name}": value for name, value in clipped_first[index].items()}
        golden |= {f"few{index}/{name}": value for name, value in few[index].items()}
        golden |= {f"many{index}/{name}": fill.sample(value) for name, value in many[index].items()}
        golden[f"many{index}/count"] = np.array(len(many[index]["labels"]))
        others = len(set(clipped_first[index]["scores"]) - set(double["scores"]))
        print(
            f"  image {index}: {len(double['boxes'])} detections, scores {double['scores'][[0, -1]].tolist()}; "
            f"all in float32 boxes are off by {abs(single['boxes'] - double['boxes']).max():.1e} px; "
            f"clipped before suppression {len(clipped_first[index]['boxes'])}, {others} of them others; "
            f"without a limit {len(many[index]['boxes'])}; "
            f"of lower scores {len(few[index]['boxes'])}, the last {few[index]['scores'][-1]:.4f}"
        )

    objects = [
        instances(size, *fill.detectron2_objects(index, model.num_classes))
        for index, size in enumerate(fill.DETECTRON2_SIZES)
    ]
    inputs = [image | {"instances": objects_of_image} for image, objects_of_image in zip(inputs, objects, strict=True)]
    model.train()
    with double_boxes(), EventStorage():
        anchors = model.anchor_generator([values[f"p{level}"] for level in range(3, 8)])
        labels, _ = model.label_anchors(anchors, objects)
        golden |= {f"labels{i}": our_labels(row, model.num_classes) for i, row in enumerate(labels)}
        losses = model(inputs)
        normalizers = [model.loss_normalizer]
        sum(losses.values()).backward()
        model(inputs)
        normalizers.append(model.loss_normalizer)
    golden |= {name: np.array(value.item()) for name, value in losses.items()}
    golden["normalizers"] = np.array(normalizers)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            golden[f"gradient/{name}"] = fill.sample(numpy(parameter.grad), 16)
    print(f"  losses { ({name: value.item() for name, value in losses.items()}) }, divided by {normalizers}")
    return golden


def make_parts(checkout: str) -> dict[str, np.ndarray]:
    from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform

    model, golden = build(checkout, "resnet50").float(), {}

    def anchors_of(height, width):
        maps = [torch.zeros(1, 1, -(-height // 2**level), -(-width // 2**level)) for level in range(3, 8)]
        return model.anchor_generator(maps)

    for height, width in fill.ANCHOR_IMAGES:
        anchors = np.concatenate([numpy(level.tensor) for level in anchors_of(height, width)])
        golden[f"anchors{height}x{width}"] = anchors[:: len(anchors) // 64 | 1]
        golden[f"anchors{height}x{width}/sha256"] = np.array(hashlib.sha256(anchors.tobytes()).hexdigest())
    for name, boxes in fill.matching_scenes().items():
        scene = instances(fill.MATCHING_IMAGE, boxes, np.arange(len(boxes)))
        (labels,), _ = model.label_anchors(anchors_of(*fill.MATCHING_IMAGE), [scene])
        golden[f"matches/{name}"] = our_labels(labels, model.num_classes)

    sizes = [ResizeShortestEdge.get_output_shape(*size, 800, 1333) for size in fill.resize_sizes()]
    golden["resized_sizes"] = np.array(sizes, np.int16)
    image = fill.image((60, 83), "transform")
    for name, (height, width) in (("larger", (90, 125)), ("smaller", (24, 33))):
        golden[name] = ResizeTransform(60, 83, height, width).apply_image(image)

    model = build(checkout, "resnet101")
    shapes = {name: " ".join(map(str, value.shape)) for name, value in model.state_dict().items()}
    golden |= {"r101/names": np.array(list(shapes)), "r101/shapes": np.array(list(shapes.values()))}
    image = fill.image((64, 64), "r101")[..., ::-1].copy()
    with torch.no_grad():
        values = forward(model.eval(), [{"image": torch.tensor(image).permute(2, 0, 1).double()}])
    return golden | {f"r101/{name}": fill.sample(numpy(value), 32) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detectron2", required=True, help="path of a checkout, with its folders detectron2 and configs"
    )
    checkout = parser.parse_args().detectron2
    torch.set_num_threads(2)
    import_detectron2(checkout)
    golden = make_model(checkout) | make_parts(checkout)
    np.savez_compressed(FILE, versions=np.array([torch.__version__, torchvision.__version__]), **golden)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
