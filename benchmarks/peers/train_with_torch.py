"""The contestants of the benchmark of the train step that run on PyTorch: torchvision's RetinaNet in four forms.

Each in what is known to be its fastest setting: images that are not resized again, pinned memory, cuDNN's choice of
algorithms by trial, and no value fetched from the device that the model does not fetch itself. The optimiser is as in
torchvision's references.
"""

import functools
import time

import torch
from on_torch import OnTorch
from train_batch import (
    LEARNING_RATE,
    MOMENTUM,
    STEPS_COMPARED,
    WEIGHT_DECAY,
    filled_weights,
    parse_name,
    synthetic_batch,
)

PACKAGES = ("torch", "torchvision")


class Library(OnTorch):
    """Builds contestants by name: 'FORM/SIZE', and 'product by torch/SIDE', a float32 matrix product.

    FORM is 'eager', 'channels_last', 'compile' or 'compile_channels_last'.

    Args:
        network: of which `backbone`, `num_classes` and `norm_epsilon` are used here.
        batch: arguments of `synthetic_batch` besides the size.
        dtype: 'float32', or what the forward pass computes in under autocast.
        device: "cpu" or "gpu".
        threads: of PyTorch.
    """

    def __init__(self, *, network: dict, batch: dict, dtype: str, device: str, threads: int) -> None:
        super().__init__(device, threads)
        torch.backends.cudnn.benchmark = True
        self._network, self._batch, self._dtype = network, batch, getattr(torch, dtype)

    def build(self, name: str) -> dict:
        """Returns what to call for the one part: "value" (puts the batch on the device and trains) or "product".

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        kind, side = parse_name(name)
        if kind.startswith("product"):
            factor = torch.randn(side, side, device=self.device)
            return {"product": lambda: factor @ factor}
        return {"value": self._train_step(kind, side)}

    def answer(self, parts: dict) -> dict:
        """Returns the losses of the first steps, and what one takes; FLOPs as PyTorch counts them, if not compiled."""
        from torch.utils.flop_counter import FlopCounterMode

        run = parts["value"]
        flops = None
        if run.compile_seconds is None:
            with FlopCounterMode(display=False) as counter:
                run()
            flops = counter.get_total_flops()
        return {
            "losses": run.losses,
            "flops": flops,
            "bytes_held": run.bytes_held,
            "compile_seconds": run.compile_seconds,
        }

    def _train_step(self, form: str, size: int):
        is_compiled = form.startswith("compile")
        model = self._model(size)
        if form.endswith("channels_last"):
            model = model.to(memory_format=torch.channels_last)
        # dynamic=False: or the second size would be compiled for any size.
        network = torch.compile(model, dynamic=False) if is_compiled else model
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        batch = synthetic_batch(size, **self._batch)
        host = [torch.from_numpy(batch[name]) for name in ("image", "boxes", "labels")]
        host[0], host[2] = host[0].permute(0, 3, 1, 2).contiguous(), host[2].long()
        if self.is_on_gpu:
            host = [tensor.pin_memory() for tensor in host]

        def run():
            images, boxes, labels = (tensor.to(self.device, non_blocking=True) for tensor in host)
            images = images.float() / 255
            targets = [{"boxes": box, "labels": label} for box, label in zip(boxes, labels)]
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                losses = network(list(images), targets)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            return losses["classification"].detach(), losses["bbox_regression"].detach()

        start = time.perf_counter()
        losses = [run()]
        self.synchronize(losses)
        run.compile_seconds = time.perf_counter() - start if is_compiled else None
        losses += [run() for _ in range(1, STEPS_COMPARED)]
        run.losses = [[loss.item() for loss in step] for step in losses]
        momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
        run.bytes_held = sum(tensor.nbytes for tensor in (*model.state_dict().values(), *momenta))
        return run

    def _model(self, size: int):
        """Returns the detector as torchvision builds it on a pretrained backbone, with filled weights."""
        from torchvision.models import resnet
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
        from torchvision.models.detection.retinanet import RetinaNet
        from torchvision.ops import FrozenBatchNorm2d
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        norm = functools.partial(FrozenBatchNorm2d, eps=self._network["norm_epsilon"])
        backbone = getattr(resnet, self._network["backbone"])(norm_layer=norm)
        # Of the five parts the last three are trained.
        features = _resnet_fpn_extractor(backbone, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
        model = RetinaNet(features, self._network["num_classes"], min_size=size, max_size=size, _skip_resize=True)
        filled = filled_weights({name: tuple(value.shape) for name, value in model.state_dict().items()})
        model.load_state_dict({name: torch.from_numpy(value) for name, value in filled.items()})
        return model.to(self.device).train()
