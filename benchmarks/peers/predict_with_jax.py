"""The contestant of the prediction benchmark that runs on JAX: focaljax."""

import functools

import numpy as np
from on_jax import OnJax
from predict_batch import NUM_CLASSES, filled_weights, synthetic_images

PACKAGES = ("jax", "jaxlib", "flax", "focaljax")


class Library(OnJax):
    """Builds contestants by name: 'focaljax/throughput' and 'focaljax/latency'.

    Args:
        variant: name of a published RetinaNet.
        image_size: height and width in pixels.
        batch_size: B, of the throughput; the latency is of one image.
        dtype: of the activations.
        device: "cpu" or "gpu".
        threads: unused; the processor affinity, set before JAX starts, gives its number of threads.
        seed: of the images.
    """

    def __init__(
        self, *, variant: str, image_size: int, batch_size: int, dtype: str, device: str, threads: int, seed: int
    ) -> None:
        super().__init__(device)
        self._variant, self._dtype = variant, dtype
        self._images = synthetic_images(batch_size, image_size, seed)

    def build(self, name: str) -> dict:
        """Returns what to call for the one part, "value": images from the host, boxes on the device or back here."""
        from focaljax.evaluation.inference import make_predict_step
        from focaljax.models.variants import variant_named
        from focaljax.training import mesh as meshes

        is_latency = name.endswith("/latency")
        images = self._images[:1] if is_latency else self._images
        batch = {"image": images, "size": np.tile(np.array(images.shape[1:3], np.int32), (len(images), 1))}
        variant, (model, host_variables) = variant_named(self._variant), self._detector
        step = make_predict_step(
            model, anchors={"levels": model.levels, **variant.anchors}, thresholds=variant.thresholds
        )
        mesh = meshes.make_mesh(self.jax.devices()[:1])
        variables = self.jax.device_put(host_variables, meshes.replicated(mesh))
        lowered = meshes.compiled_for_rows(step, mesh).lower(variables, meshes.put_batch(batch, mesh))
        compiled = lowered.compile()

        def run():
            found = compiled(variables, meshes.put_batch(batch, mesh))
            return self.jax.device_get(found) if is_latency else found

        run.compiled = compiled
        return {"value": run}

    def answer(self, parts: dict) -> dict:
        """Returns the detections of each image."""
        found = self.jax.device_get(parts["value"]())
        return {
            "detections": [
                {
                    "boxes": boxes[is_detection].tolist(),
                    "scores": scores[is_detection].tolist(),
                    "labels": labels[is_detection].tolist(),
                }
                for boxes, scores, labels, is_detection in zip(
                    found.boxes_xyxy, found.scores, found.labels, found.is_detection
                )
            ]
        }

    @functools.cached_property
    def _detector(self) -> tuple:
        """The model and its variables, filled by the rule that fills torchvision's."""
        from focaljax.models.pretrained import from_torchvision, to_torchvision
        from focaljax.models.retinanet import RetinaNet
        from focaljax.models.variants import variant_named

        variant = variant_named(self._variant)
        model = RetinaNet(
            num_classes=NUM_CLASSES,
            anchors_per_position=variant.anchors_per_position,
            dtype=self.jax.numpy.dtype(self._dtype),
            **variant.model,
        )
        init = functools.partial(model.init, train=False)
        image = self.jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        shapes = self.jax.eval_shape(init, self.jax.random.key(0), image)
        named = to_torchvision(self.jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
        state_dict = filled_weights({name: array.shape for name, array in named.items()})
        return model, from_torchvision(state_dict, norm=model.norm)
