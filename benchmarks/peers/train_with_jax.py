"""The contestant of the benchmark of the train step that runs on JAX: focaljax."""

import functools
import time

import numpy as np
from on_jax import OnJax
from train_batch import (
    LEARNING_RATE,
    MOMENTUM,
    STEPS_COMPARED,
    WEIGHT_DECAY,
    filled_weights,
    parse_name,
    synthetic_batch,
)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "focaljax")


class Library(OnJax):
    """Builds contestants by name: 'focaljax/SIZE', and 'product by jax/SIDE', a float32 matrix product.

    Args:
        network: of which `variant`, the name of a published RetinaNet, and `num_classes` are used here.
        batch: arguments of `synthetic_batch` besides the size.
        dtype: of the activations.
        device: "cpu" or "gpu".
        threads: unused; the processor affinity, set before JAX starts, gives its number of threads.

    Raises:
        RuntimeError: there is no such device.
    """

    def __init__(self, *, network: dict, batch: dict, dtype: str, device: str, threads: int) -> None:
        super().__init__(device)
        self._network, self._batch, self._dtype = network, batch, dtype

    def build(self, name: str) -> dict:
        """Returns what to call for the one part: "value" (puts the batch on the device and trains) or "product"."""
        kind, side = parse_name(name)
        if kind != "focaljax":
            factor = self.jax.random.normal(self.jax.random.key(0), (side, side))
            return {"product": self.compile(self.jax.numpy.matmul, factor, factor)}
        return {"value": self._train_step(side)}

    def answer(self, parts: dict) -> dict:
        """Returns the losses of the first steps, and what the compiler says of one."""
        run = parts["value"]
        return {
            "losses": run.losses,
            "flops": run.flops,
            "bytes_held": run.compiled.memory_analysis().argument_size_in_bytes,
            "compile_seconds": run.compile_seconds,
        }

    def _train_step(self, size: int):
        from focaljax.cli import build
        from focaljax.cli.config import apply_variant, default_config
        from focaljax.training import mesh as meshes
        from focaljax.training.state import create_state

        config = default_config()
        apply_variant(config, self._network["variant"])
        config.data.image_size = (size, size)
        config.model.dtype = self._dtype
        config.optim.update(
            batch_size=self._batch["batch_size"],
            schedule="constant",
            warmup_steps=0,
            learning_rate=LEARNING_RATE,
            learning_rate_batch=0,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            bias_weight_decay=-1.0,  # as the kernels'
        )
        mesh = meshes.make_mesh(self.jax.devices()[:1])
        model = build.make_model(config, self._network["num_classes"])
        optimizer, schedule = build.make_optimizer_and_schedule(config)
        create = self.jax.jit(
            functools.partial(create_state, optimizer=optimizer), out_shardings=meshes.replicated(mesh)
        )
        state = create(self._variables(model, size))
        batch = synthetic_batch(size, **self._batch)

        step_on = functools.partial(build.compiled_train_step, config, model, optimizer, schedule)
        start = time.perf_counter()
        compiled = step_on(mesh).lower(state, meshes.put_batch(batch, mesh)).compile()
        compile_seconds = time.perf_counter() - start
        # As the step is written: what the compiler makes of it may compute more, or hide it in calls of a library.
        on_cpu = step_on(meshes.make_mesh(self.jax.devices("cpu")[:1]))
        shapes = self.jax.tree.map(lambda leaf: self.jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state, batch))
        flops = on_cpu.lower(*shapes).cost_analysis()["flops"]

        def run():
            nonlocal state
            state, metrics = compiled(state, meshes.put_batch(batch, mesh))
            return state, metrics

        run.compiled, run.compile_seconds, run.flops = compiled, compile_seconds, flops
        metrics = [run()[1] for _ in range(STEPS_COMPARED)]
        run.losses = [[float(one["classification_loss"]), float(one["box_loss"])] for one in metrics]
        return run

    def _variables(self, model, size: int) -> dict:
        """Returns the model's variables, filled by the rule that fills torchvision's."""
        from focaljax.models.pretrained import from_torchvision, to_torchvision

        init = functools.partial(model.init, train=False)
        images = self.jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        shapes = self.jax.eval_shape(init, self.jax.random.key(0), images)
        named = to_torchvision(self.jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
        state_dict = filled_weights({name: array.shape for name, array in named.items()})
        return from_torchvision(state_dict, norm=model.norm)
