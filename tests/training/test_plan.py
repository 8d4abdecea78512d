"""Plans of a step: the compiler's numbers, arithmetic as traced, rooflines, and the batch that would fit."""

import dataclasses
import functools
import importlib.util
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from focaljax.training import mesh as meshes
from focaljax.training import plan, topologies
from focaljax.training.collectives import Collective
from focaljax.training.topologies import CHIPS, TopologyError, parse_topology


def convolution(images, kernel, stride=1, **arguments):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride,) * 2, "VALID", dimension_numbers=layout, **arguments)


def flops(function, *shapes):
    return plan.traced_flops(jax.jit(function).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def test_flops_of_convolutions_and_their_gradients():
    images, kernel = (2, 9, 9, 3), (3, 3, 3, 8)
    # 2 images, 7 x 7 positions, 8 outputs, of 3 x 3 x 3 products and sums each.
    assert flops(convolution, images, kernel) == 2 * 2 * 49 * 8 * 27
    # With stride 2: 4 x 4 positions.
    value = 2 * 2 * 16 * 8 * 27

    def loss(x, k):
        return convolution(x, k, stride=2).sum()

    assert flops(loss, images, kernel) == value
    # The kernel's gradient takes as much again.
    assert flops(jax.value_and_grad(loss, argnums=1), images, kernel) == 2 * value
    # The images' has their 81 positions, of 9 * 8 products for each of 3 channels: of four, one is not with a zero.
    assert flops(jax.value_and_grad(loss, argnums=0), images, kernel) == value + 2 * 2 * 81 * 3 * 9 * 8 // 4


def test_flops_of_products_loops_and_what_is_computed_again():
    product = 2 * 4 * 5 * 6
    assert flops(lambda a, b: a @ b, (4, 5), (5, 6)) == product
    assert flops(lambda a, b: lax.scan(lambda c, _: (c, a @ b), 0, None, length=7), (4, 5), (5, 6)) == 7 * product
    assert (
        flops(lambda a, b: lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((4, 6))), (4, 5), (5, 6)) == product
    )

    def loss(b, a):
        return jnp.sum(jnp.sin(jnp.sin(a @ b) @ b))

    square = 2 * 4 * 4 * 4
    # Two products, and of each the gradients by both sides but for the first one's by a.
    assert flops(jax.grad(loss), (4, 4), (4, 4)) == 5 * square
    assert flops(jax.grad(jax.checkpoint(loss)), (4, 4), (4, 4)) == 7 * square


def test_grouped_convolution_has_the_products_of_one_group():
    grouped = functools.partial(convolution, feature_group_count=4)
    assert flops(grouped, (1, 5, 5, 8), (3, 3, 2, 8)) == 2 * 9 * 8 * 9 * 2


def test_compiled_program_tells_memory_flops_and_time(mesh_of_eight):
    replicated = meshes.replicated(mesh_of_eight)
    step = jax.jit(lambda w, x: w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w),
                   in_shardings=(replicated, meshes.split_batch(mesh_of_eight)), out_shardings=replicated,
                   donate_argnums=0)  # fmt: skip
    traced = step.trace(np.zeros((64, 32), np.float32), np.zeros((16, 64), np.float32))
    program = plan.compile_program(traced, 8)
    # The weights, and two of the sixteen rows; the new weights take the place of the old ones.
    assert program.memory.arguments == 4 * (64 * 32 + 2 * 64)
    assert program.memory.output == 0
    assert program.memory.total >= program.memory.arguments
    assert program.seconds > 0
    if not math.isnan(program.flops):  # a program from the compile cache need not know
        assert program.flops >= 2 * 2 * (2 * 64 * 32)
    assert [one.kind for one in program.collectives] == ["all-reduce"]


def test_refusal_names_what_is_needed_and_what_there_is():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (372.65G) exceeds available HBM (15.75G). HLO module: jit_train_step."
    )
    assert plan.needed_and_available(message) == (int(372.65 * 2**30), int(15.75 * 2**30))
    older = "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.00G of 15.48G hbm."
    assert plan.needed_and_available(older) == (17 * 2**30, int(15.48 * 2**30))
    assert plan.needed_and_available("something else") == (None, None)


class Refusing:
    """In the place of a traced step, and of a lowered one."""

    def __init__(self, message):
        self._message = message

    def lower(self):
        return self

    def compile(self, compiler_options):
        raise jax.errors.JaxRuntimeError(self._message)


def test_only_too_little_memory_is_a_refusal():
    with pytest.raises(plan.DoesNotFitError, match="exceeds"):
        plan.compile_program(Refusing("RESOURCE_EXHAUSTED: (2G) exceeds available HBM (1G)"), 1)
    for message in ("INTERNAL: a fault", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 1M of 1M"):
        with pytest.raises(jax.errors.JaxRuntimeError, match=message[:8]):
            plan.compile_program(Refusing(message), 1)
    with pytest.raises(plan.DoesNotFitError, match="hbm"):
        plan.compile_program(Refusing("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."), 1)


def test_roofline_is_the_longest_of_three_times():
    chip = topologies.Chip("chip", 2, 2**30, 100.0, 50.0, hbm_bandwidth=10.0, link_bandwidth=5.0, source="")
    program = plan.Program(None, 400.0, 70.0, 50.0, (Collective("all-reduce", ("f32",), 1, 20, 4),), 1.0)
    best = plan.roofline(program, chip, batch_size=8, flops=300.0)
    # 400 / 100, 50 / 10, and 2 * 3/4 * 20 bytes / 5: 8 images in 6 seconds.
    assert (best.compute, best.memory, best.communication) == (4.0, 5.0, 6.0)
    assert best.images_per_second == pytest.approx(8 / 6)
    assert best.bound == "communication"
    assert plan.roofline(program, chip, batch_size=8, flops=300.0, is_float32=True).compute == 8.0
    # A compiler that counts nothing: arithmetic as traced.
    uncounted = dataclasses.replace(program, flops=math.nan, traffic=20.0, collectives=())
    best = plan.roofline(uncounted, chip, batch_size=8, flops=300.0)
    assert (best.compute, best.images_per_second, best.bound) == (3.0, 8 / 3, "compute")


def test_images_that_fit_lie_on_the_line_through_two_programs():
    points = [(8, 900), (4, 500)]  # 100 bytes an image, 100 for the state
    assert plan.images_that_fit(points, capacity=1250) == 11
    assert plan.images_that_fit(points, capacity=1250, multiple=4) == 8
    assert plan.images_that_fit(points, capacity=350) == 2
    assert plan.images_that_fit(points, capacity=50) == 0
    assert plan.images_that_fit([(4, 500), (8, 500)], capacity=600) is None
    with pytest.raises(ValueError, match="different"):
        plan.images_that_fit([(4, 500), (4, 500)], capacity=600)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("limit", [0, 1, 7, 8, 37, 100])
@pytest.mark.parametrize("guess", [1, 40, 120])
def test_largest_batch_is_found_within_an_eighth(limit, guess, multiple):
    asked = []

    def fits(images):
        asked.append(images)
        assert len(asked) < 40
        return images <= limit

    low, high = plan.largest_fitting(fits, 0, guess, multiple)
    assert low <= limit < high
    assert low % multiple == 0
    assert high - low <= max(multiple, low // 8)
    assert len(asked) == len(set(asked))


def test_topologies_are_named_by_kind_and_shape():
    topology = parse_topology("V5P:2x2x4")
    assert (topology.name, topology.devices, topology.chip) == ("v5p:2x2x4", 16, CHIPS["v5p"])
    assert parse_topology("cpu:8").chip is None
    # NVLink inside a host; between hosts, the network cards of all its GPUs.
    assert parse_topology("gpu:8").chip.link_bandwidth == 450e9
    assert parse_topology("gpu:16").chip.link_bandwidth == 8 * 50e9
    for name, message in {
        "v5e": "v5e:AxB, such as v5e:4x4",
        "v5e:4": "v5e:AxB",
        "v5e:0x4": "v5e:AxB",
        "v5p:4x4": "v5p:AxBxC, such as v5p:2x2x4",
        "gpu:2x4": "gpu:COUNT, such as gpu:8",
        "gpu:17": "a multiple",
        "v7:4x4": "the kinds are v5e, v5p, v6e, gpu, cpu",
    }.items():
        with pytest.raises(TopologyError, match=message):
            parse_topology(name)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(TopologyError, match=r"pip install 'focaljax\[tpu\]'"):
        topologies.tpu_devices(parse_topology("v5e:2x2"))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu")
def test_tpu_compiler_plans_for_chips_that_are_not_there(monkeypatch):
    for name in topologies._COMPILER_VARIABLES:
        monkeypatch.setenv(name, topologies._COMPILER_VARIABLES[name])  # and is taken back
    mesh = meshes.make_mesh(topologies.tpu_devices(parse_topology("v5e:2x2")))
    assert mesh.size == 4
    hbm = plan.hbm_for_programs(mesh)
    assert 0.9 * CHIPS["v5e"].hbm_bytes < hbm <= CHIPS["v5e"].hbm_bytes
    step = jax.jit(lambda w, x: jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w),
                   in_shardings=(meshes.replicated(mesh), meshes.split_batch(mesh)),
                   out_shardings=meshes.replicated(mesh))  # fmt: skip
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((128, 256), (64, 128))]
    program = plan.compile_program(step.trace(*shapes), 4)
    assert program.memory.total > 0
    assert "all-reduce" in {one.kind for one in program.collectives}
    with pytest.raises(TopologyError, match="v5e:3x3.*try v5e:4x4"):
        topologies.tpu_devices(parse_topology("v5e:3x3"))


needs_gpu_compiler = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("jax_cuda12_plugin", "jax_cuda13_plugin")),
    reason="needs the GPU compiler: pip install 'focaljax[cuda]'",
)


def run_alone(script):
    """Runs Python in a process of its own, as the tests' JAX is bound to the CPU; returns the process that ended."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    return subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)


@needs_gpu_compiler
def test_gpu_compiler_plans_for_gpus():
    script = (
        "import jax, jax.numpy as jnp\n"
        "from focaljax.training import mesh as meshes, plan, topologies\n"
        "gpus = topologies.gpu_devices(topologies.parse_topology('gpu:16'))\n"
        "mesh = meshes.make_mesh(gpus)\n"
        "put = meshes.replicated(mesh), meshes.split_batch(mesh)\n"
        "step = jax.jit(lambda w, x: jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w), in_shardings=put)\n"
        "shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((128, 256), (64, 128))]\n"
        "program = plan.compile_program(step.trace(*shapes), 16, {'xla_gpu_autotune_level': 0})\n"
        "print(program.memory.total > 0, {one.group for one in program.collectives})\n"
    )
    answer = run_alone(script)
    assert answer.stdout == "True {16}\n", answer.stderr


@needs_gpu_compiler
def test_gpu_compiler_takes_strided_convolutions_of_size_1():
    # As a product it aborts.
    answer = run_alone(
        "import jax, jax.numpy as jnp\n"
        "from focaljax.models import layers\n"
        "from focaljax.training import mesh as meshes, plan, topologies\n"
        "mesh = meshes.make_mesh(topologies.gpu_devices(topologies.parse_topology('gpu:1')))\n"
        "layer = layers.conv(64, 1, stride=2, name='conv')\n"
        "loss = lambda w, x: jnp.sum(jnp.tanh(layer.apply({'params': {'kernel': w}}, x)))\n"
        "step = jax.jit(jax.grad(loss), in_shardings=meshes.replicated(mesh))\n"
        "shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 1, 32, 64), (8, 40, 40, 32))]\n"
        "print(plan.compile_program(step.trace(*shapes), 1, {'xla_gpu_autotune_level': 0}).memory.total > 0)\n"
    )
    assert answer.stdout == "True\n", answer.stderr
