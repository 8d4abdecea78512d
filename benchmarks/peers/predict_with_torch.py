"""The contestants of the prediction benchmark that run on PyTorch: torchvision's RetinaNet in three forms."""

import torch
from on_torch import OnTorch
from predict_batch import NUM_CLASSES, filled_weights, synthetic_images

PACKAGES = ("torch", "torchvision")


class Library(OnTorch):
    """Builds contestants by name: 'FORM/throughput' and 'FORM/latency'; FORM is eager, channels_last or compile.

    Args:
        norm_epsilon: of the backbone's normalisation.
        image_size: height and width in pixels.
        batch_size: B, of the throughput; the latency is of one image.
        dtype: 'float32', or what the network computes in under autocast.
        device: "cpu" or "gpu".
        threads: of PyTorch.
        seed: of the images.
    """

    def __init__(
        self,
        *,
        norm_epsilon: float,
        image_size: int,
        batch_size: int,
        dtype: str,
        device: str,
        threads: int,
        seed: int,
    ) -> None:
        super().__init__(device, threads)
        torch.backends.cudnn.benchmark = True
        self._epsilon, self._size, self._dtype = norm_epsilon, image_size, getattr(torch, dtype)
        images = torch.from_numpy(synthetic_images(batch_size, image_size, seed)).permute(0, 3, 1, 2).contiguous()
        self._images = images.pin_memory() if self.is_on_gpu else images

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value": images from the host, boxes on the device or back here.

        Raises:
            ModuleNotFoundError: torchvision is not installed.
        """
        form, task = name.split("/")
        is_latency = task == "latency"
        model = self._model()
        if form == "channels_last":
            model = model.to(memory_format=torch.channels_last)
        # dynamic=False: or the second batch size would be compiled for any.
        network = torch.compile(model, dynamic=False) if form == "compile" else model
        host = self._images[:1] if is_latency else self._images

        @torch.inference_mode()
        def run():
            images = host.to(self.device, non_blocking=True).float() / 255
            with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                found = network(list(images))
            return [{key: value.cpu() for key, value in one.items()} for one in found] if is_latency else found

        self.synchronize(run())  # it is compiled here
        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns the detections of each image."""
        return {"detections": [{key: value.tolist() for key, value in found.items()} for found in parts["value"]()]}

    def _model(self) -> torch.nn.Module:
        """Returns the detector as torchvision builds it, with filled weights; images are not resized."""
        from torchvision.models import resnet50
        from torchvision.models.detection._utils import overwrite_eps
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
        from torchvision.models.detection.retinanet import RetinaNet
        from torchvision.ops import FrozenBatchNorm2d
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        backbone = _resnet_fpn_extractor(
            resnet50(norm_layer=FrozenBatchNorm2d), 0, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        model = RetinaNet(backbone, NUM_CLASSES, min_size=self._size, max_size=self._size, _skip_resize=True)
        overwrite_eps(model, self._epsilon)
        filled = filled_weights({name: tuple(value.shape) for name, value in model.state_dict().items()})
        model.load_state_dict({name: torch.from_numpy(value) for name, value in filled.items()})
        return model.to(self.device).eval()
