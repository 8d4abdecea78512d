"""The contestants of the input benchmark on PyTorch: torchvision's transforms in a DataLoader, as in its references.

A worker process for each thread of the others. Decoding by Pillow, as the references do, or by torchvision itself;
resizing and padding, which torchvision's detectors do later and in float32, here on uint8, as the others.
"""

import torch
from input_files import BATCH, BOXES_XYXY, fitted_size, parse_name, summary
from input_on_host import OnHost
from torch.utils.data import DataLoader, Dataset

PACKAGES = ("torch", "torchvision", "Pillow")
FLIP = 0.5


class Pictures(Dataset):
    """Images, resized to fit and padded, with their sizes, and in training with their boxes.

    Args:
        paths: of the files.
        side: of the result.
        decoder: "PIL" or "decode_jpeg".
        is_training: whether images and boxes are flipped at random.
    """

    def __init__(self, paths: list[str], side: int, decoder: str, is_training: bool) -> None:
        from torchvision.transforms import v2

        self._paths, self._side, self._decoder = paths, side, decoder
        self._flip = v2.RandomHorizontalFlip(FLIP) if is_training else None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple:
        from torchvision import io, tv_tensors
        from torchvision.transforms import v2

        if self._decoder == "PIL":
            from PIL import Image

            with Image.open(self._paths[index]) as file:
                image = v2.functional.pil_to_tensor(file.convert("RGB"))
        else:
            image = io.decode_jpeg(io.read_file(self._paths[index]), mode=io.ImageReadMode.RGB)
        size = tuple(image.shape[1:])
        height, width = fitted_size(*size, self._side)
        padding = [0, 0, self._side - width, self._side - height]
        boxes = ()
        if self._flip is not None:
            boxes = tv_tensors.BoundingBoxes(BOXES_XYXY, format="XYXY", canvas_size=size)
            image, boxes = self._flip(tv_tensors.Image(image), boxes)
            boxes = v2.functional.resize(boxes, [height, width])
        image = v2.functional.resize(image, [height, width], antialias=True)
        return v2.functional.pad(image, padding), (height, width), boxes


class Endless(torch.utils.data.Sampler):
    """Yields the indices of so many images in their order, over and over."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self):
        while True:
            yield from range(self._count)


def collate(examples: list[tuple]) -> tuple:
    """Returns images uint8 `[B, 3, side, side]`, sizes and boxes."""
    images, sizes, boxes = zip(*examples)
    return torch.stack(images), sizes, boxes


class Library(OnHost):
    """Builds contestants by name; see `OnHost`."""

    def build(self, name: str) -> dict:
        """Returns what to call for the one part: "value" for the plain work, "training" with flips.

        Raises:
            ModuleNotFoundError: torchvision or Pillow is not installed, or torchvision without its decoders.
        """
        import PIL  # noqa: F401 - asked for here, not in the worker processes
        import torchvision  # noqa: F401

        kind, side = parse_name(name)
        decoder, _, work = kind.partition(", ")
        if decoder == "decode_jpeg" and not hasattr(torch.ops.image, "decode_jpeg"):
            raise ModuleNotFoundError("torchvision has no decoders", name="torchvision.image")
        pictures = Pictures(self.paths, side, decoder, is_training=work == "flips")
        generator = torch.Generator().manual_seed(self.seed)
        loader = DataLoader(
            pictures,
            batch_size=BATCH,
            sampler=Endless(len(pictures)),
            num_workers=self.threads,
            collate_fn=collate,
            generator=generator,
        )
        run = self.run(iter(loader))
        run.first_batch = lambda: collate([pictures[index] for index in range(BATCH)])
        return {"training" if work == "flips" else "value": run}

    def answer(self, parts: dict) -> dict:
        """Returns a summary of the first batch."""
        images, sizes, _ = parts["value"].first_batch()
        means = [image[:, :height, :width].float().mean() for image, (height, width) in zip(images, sizes)]
        return summary(sizes, means)
