"""Reference values from torchvision: `python -m tests.golden.make_torchvision`, where it and torch are installed.

Writes `torchvision_*.npz` beside this file; `README.md` says what is in them. All in float64, on the CPU.
"""

import copy
import hashlib
import pathlib

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import retinanet
from torchvision.models.detection._utils import BoxCoder, Matcher, overwrite_eps
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tests.golden import fill

FOLDER = pathlib.Path(__file__).parent
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


def build(case: fill.Case) -> retinanet.RetinaNet:
    """The detector of torchvision's builders, for any backbone and normalisation, every layer trained."""
    backbone = getattr(resnet, case.backbone)(norm_layer=FrozenBatchNorm2d if case.is_frozen else nn.BatchNorm2d)
    c5_channels = backbone.inplanes
    p6_channels = 256 if case.head == "v1" else c5_channels
    features = _resnet_fpn_extractor(
        backbone, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(p6_channels, 256)
    )
    transform = {"min_size": case.min_size, "max_size": case.max_size, "size_divisible": case.multiple}
    if case.head == "v1":
        model = retinanet.RetinaNet(features, case.num_classes, **transform)
    else:
        model = copy.deepcopy(retinanet.retinanet_resnet50_fpn_v2(num_classes=case.num_classes, weights_backbone=None))
        model.backbone = features
        model.transform = GeneralizedRCNNTransform(
            image_mean=model.transform.image_mean, image_std=model.transform.image_std, **transform
        )
    if case.is_frozen:
        overwrite_eps(model, case.epsilon)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(value) for name, value in fill.fill_state_dict(shapes).items()})
    return model.double()


def forward(model, images, targets):
    """What the model computes on the way, by name."""
    batch, targets = model.transform(images, targets)
    stages = []
    hook = model.backbone.body.layer1.register_forward_hook(lambda module, inputs, output: stages.append(output))
    features = model.backbone.body(batch.tensors)
    hook.remove()
    pyramid = list(model.backbone.fpn(features).values())
    outputs = model.head(pyramid)
    values = {"input": batch.tensors, "c2": stages[0]}
    values |= {f"c{level}": value for level, value in enumerate(features.values(), start=3)}
    values |= {f"p{level}": value for level, value in enumerate(pyramid, start=3)}
    counts = [9 * value.shape[2] * value.shape[3] for value in pyramid]
    for name, key in (("class_logits", "cls_logits"), ("box_deltas", "bbox_regression")):
        values |= {f"{name}{level}": value for level, value in enumerate(outputs[key].split(counts, dim=1), start=3)}
    return values, batch, targets, outputs, pyramid


def numpy(value) -> np.ndarray:
    return value.detach().numpy()


def make_case(case: fill.Case) -> dict[str, np.ndarray]:
    model = build(case)
    initial = copy.deepcopy(model.state_dict())
    images = [torch.tensor(image).permute(2, 0, 1).double() / 255 for image in fill.case_images(case)]
    targets = [
        {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)} for boxes, labels in fill.case_objects(case)
    ]
    names = list(initial)
    golden = {
        "names": np.array(names),
        "shapes": np.array([" ".join(map(str, initial[name].shape)) for name in names]),
    }

    model.eval()
    with torch.no_grad():
        values, batch, _, outputs, pyramid = forward(model, images, None)
        golden |= {f"eval/{name}": fill.sample(numpy(value)) for name, value in values.items()}
        golden["batch_shape"] = np.array(batch.tensors.shape)
        golden["image_sizes"] = np.array(batch.image_sizes)
        counts = [9 * value.shape[2] * value.shape[3] for value in pyramid]
        anchors = model.anchor_generator(batch, pyramid)
        detections = model.postprocess_detections(
            {name: list(value.split(counts, dim=1)) for name, value in outputs.items()},
            [list(value.split(counts)) for value in anchors],
            batch.image_sizes,
        )
        # The boxes of the whole model are in pixels of the image as it came.
        for index, (detected, final) in enumerate(zip(detections, model(images), strict=True)):
            assert torch.equal(detected["scores"], final["scores"])
            golden |= {f"detections{index}/{name}": numpy(value) for name, value in detected.items()}
            golden[f"detections{index}/original_boxes"] = numpy(final["boxes"])
            print(f"  image {index}: {len(final['boxes'])} detections, scores {final['scores'][[0, -1]].tolist()}")

    model.train()
    groups = [[p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]]
    optimizer = torch.optim.SGD(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (WEIGHT_DECAY, 0.0), strict=True)],
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
    )
    values, batch, resized, outputs, pyramid = forward(model, images, targets)
    losses = model.compute_loss(resized, outputs, model.anchor_generator(batch, pyramid))
    if not case.is_frozen:
        golden |= {f"train/{name}": fill.sample(numpy(value)) for name, value in values.items()}
    for index, target in enumerate(resized):
        golden[f"boxes{index}"] = numpy(target["boxes"])
    golden |= {name: np.array(value.item()) for name, value in losses.items()}
    sum(losses.values()).backward()
    gradients = {name: numpy(parameter.grad) for name, parameter in model.named_parameters()}
    golden["gradient_names"] = np.array(list(gradients))
    golden["gradient_norms"] = np.array([np.linalg.norm(value) for value in gradients.values()])
    golden |= {f"gradient/{name}": gradients[name] for name in fill.whole_gradients(case)}
    optimizer.step()
    for name, value in model.state_dict().items():
        golden[f"after/{name}"] = fill.sample(numpy(value), 16)
    print(f"  losses { ({name: value.item() for name, value in losses.items()}) }")

    # The steps above are those of the model itself.
    again = build(case)
    again.train()
    for name, value in again(images, targets).items():
        assert value.item() == losses[name].item(), name
    return golden


def make_parts() -> dict[str, np.ndarray]:
    golden = {}
    anchor_generator = retinanet._default_anchorgen()

    def anchors_of(height, width):
        maps = [torch.zeros(1, 1, -(-height // 2**level), -(-width // 2**level)) for level in range(3, 8)]
        return anchor_generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]

    for height, width in fill.ANCHOR_IMAGES:
        anchors = numpy(anchors_of(height, width))
        golden[f"anchors{height}x{width}"] = anchors[:: len(anchors) // 64 | 1]
        golden[f"anchors{height}x{width}/sha256"] = np.array(hashlib.sha256(anchors.tobytes()).hexdigest())

    anchors = anchors_of(*fill.MATCHING_IMAGE)
    for name, boxes in fill.matching_scenes().items():
        for is_low_quality in (False, True):
            matcher = Matcher(0.5, 0.4, allow_low_quality_matches=is_low_quality)
            matches = numpy(matcher(box_iou(torch.tensor(boxes).float(), anchors))).astype(np.int8)
            golden[f"matches/{name}/{'low_quality' if is_low_quality else 'plain'}"] = matches
            print(f"  {name}: {(matches >= 0).sum()} assigned, {(matches == -2).sum()} ignored of {len(matches)}")

    deltas, anchors, boxes = (torch.tensor(array) for array in fill.deltas_and_anchors())
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    golden["decoded"] = numpy(coder.decode_single(deltas, anchors))
    golden["encoded"] = numpy(coder.encode_single(boxes, anchors))

    transform = GeneralizedRCNNTransform(800, 1333, list(fill.PIXEL_MEAN), list(fill.PIXEL_STD)).eval()
    # One channel and no pixels in memory: only the sizes count.
    sizes = [
        transform.resize(torch.zeros(1, 1, 1).expand(1, height, width))[0].shape[-2:]
        for height, width in fill.resize_sizes()
    ]
    golden["resized_sizes"] = np.array(sizes, np.int16)

    small = GeneralizedRCNNTransform(90, 140, list(fill.PIXEL_MEAN), list(fill.PIXEL_STD)).eval()
    images = [fill.image(size, "transform") for size in ((60, 83), (123, 211))]
    batch, _ = small([torch.tensor(image).permute(2, 0, 1).double() / 255 for image in images])
    golden["transformed_shape"] = np.array(batch.tensors.shape)
    golden["transformed_sizes"] = np.array(batch.image_sizes)
    golden["transformed"] = fill.sample(numpy(batch.tensors), 2000)
    large = torch.tensor(fill.image((427, 640), "transform")).permute(2, 0, 1)[None].double()
    size = transform.resize(large[0])[0].shape[-2:]
    golden["resized"] = fill.sample(numpy(transform.resize(large[0])[0]), 2000)
    golden["resized_shape"] = np.array(size)
    golden["restored_boxes"] = numpy(resize_boxes(boxes, (90, 125), (60, 83)))
    return golden


def main() -> None:
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    versions = np.array([torch.__version__, torchvision.__version__])
    for name, make in [("parts", make_parts)] + [(n, lambda c=c: make_case(c)) for n, c in fill.CASES.items()]:
        print(name)
        path = FOLDER / f"torchvision_{name}.npz"
        np.savez_compressed(path, versions=versions, **make())
        print(f"  {path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
