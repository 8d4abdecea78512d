import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

from focaljax.cli.config import default_config
from focaljax.detection import assign_anchors, postprocess, pyramid_anchors
from focaljax.models.resnet import frozen_parameters
from focaljax.models.retinanet import CHANNEL_ORDERS, RetinaNet
from focaljax.models.variants import VARIANTS


def model_of(variant, **options):
    return RetinaNet(variant.num_classes, variant.anchors_per_position, **{**variant.model, **options})


@functools.cache
def variables_of(name):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model_of(VARIANTS[name]).init, jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counted by torch, `sum(p.numel() for p in model.parameters())`: frozen batch normalisation has none (its four
    # arrays are buffers there, batch_stats here), live one has scale and bias. The first two are published.
    [
        ("torchvision_v1", 34_014_999),
        ("torchvision_v2", 38_198_935),
        # torchvision's RetinaNet built with the backbone, classes and P6 of these.
        ("mlperf", 37_060_652),
        ("detectron2_r50", 37_915_572),
        ("detectron2_r101", 56_855_476),
        ("paper", 37_915_572),
    ],
)
def test_variants_have_the_references_number_of_parameters(name, parameters):
    assert count(variables_of(name)["params"]) == parameters


def test_every_published_network_is_there():
    assert set(VARIANTS) == {"paper", "torchvision_v1", "torchvision_v2", "mlperf", "detectron2_r50", "detectron2_r101"}


@pytest.mark.parametrize("name", VARIANTS)
def test_entries_are_arguments_of_what_they_are_for(name):
    variant = VARIANTS[name]
    attributes = {field.name for field in dataclasses.fields(RetinaNet)}
    assert set(variant.model) <= attributes - {"num_classes", "anchors_per_position"}
    for entries, function in (
        (variant.anchors, pyramid_anchors),
        (variant.matching, assign_anchors),
        (variant.thresholds, postprocess),
    ):
        assert set(entries) <= set(inspect.signature(function).parameters)
    assert set(variant.loss) <= set(default_config().loss)
    assert variant.preprocessing.channel_order in CHANNEL_ORDERS
    assert variant.preprocessing.min_size <= variant.preprocessing.max_size


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_match_the_anchors(name):
    variant = VARIANTS[name]
    images = jax.ShapeDtypeStruct((1, 96, 160, 3), jnp.float32)
    class_logits, box_deltas = jax.eval_shape(model_of(variant).apply, variables_of(name), images)
    anchors = jax.eval_shape(
        functools.partial(pyramid_anchors, (96, 160), levels=variant.model["levels"], **variant.anchors)
    )
    assert [x.shape for x in class_logits] == [(1, level.shape[0], variant.num_classes) for level in anchors]
    assert [x.shape for x in box_deltas] == [(1, level.shape[0], 4) for level in anchors]


def test_the_papers_is_the_models_default():
    model = RetinaNet(80)
    variant = VARIANTS["paper"]
    assert {key: getattr(model, key) for key in variant.model} == variant.model
    assert model.anchors_per_position == variant.anchors_per_position


def test_what_the_published_networks_differ_in():
    model = {name: variant.model for name, variant in VARIANTS.items()}
    assert {name: entries["p6_from"] for name, entries in model.items()} == {
        "paper": "c5",
        "torchvision_v1": "p5",
        "torchvision_v2": "c5",
        "mlperf": "p5",
        "detectron2_r50": "c5",
        "detectron2_r101": "c5",
    }
    assert {name for name in VARIANTS if VARIANTS[name].anchors["layout"] == "torchvision"} == {
        "torchvision_v1",
        "torchvision_v2",
        "mlperf",
    }
    assert {name for name in VARIANTS if model[name]["norm"] != "frozen_batch_norm"} == {"torchvision_v2"}
    assert {name for name in VARIANTS if model[name]["norm_epsilon"] == 0} == {"torchvision_v1"}
    assert {name: variant.loss["box"] for name, variant in VARIANTS.items()} == {
        "paper": "smooth_l1",
        "torchvision_v1": "l1",
        "torchvision_v2": "giou",
        "mlperf": "l1",
        "detectron2_r50": "l1",
        "detectron2_r101": "l1",
    }
    caffe = {"detectron2_r50", "detectron2_r101"}
    assert {name for name in VARIANTS if model[name]["stride_in_1x1"]} == caffe
    assert {name for name in VARIANTS if VARIANTS[name].preprocessing.channel_order == "bgr"} == caffe
    assert VARIANTS["detectron2_r50"].preprocessing.pixel_mean == (103.53, 116.28, 123.675)
    assert VARIANTS["detectron2_r50"].preprocessing.pixel_std == (1.0, 1.0, 1.0)


def test_heads_of_torchvision_v2_have_group_norm_of_32_groups_and_no_hidden_biases():
    params = variables_of("torchvision_v2")["params"]
    for head in ("class_head", "box_head"):
        for i in range(4):
            assert set(params[head][f"conv{i}"]) == {"kernel"}
            assert params[head][f"norm{i}"]["group_norm"]["scale"].shape == (256,)


def test_frozen_parts_of_torchvision_v1_are_the_stem_and_the_first_stage():
    # Kernels only: 7 x 7 x 3 x 64; a first block of 64 x 64 + 9 x 64 x 64 + 64 x 256 and 64 x 256 beside it; two of
    # 256 x 64 + 9 x 64 x 64 + 64 x 256.
    params = variables_of("torchvision_v1")["params"]
    is_frozen = frozen_parameters(params, VARIANTS["torchvision_v1"].model["freeze_at"])
    frozen = sum(
        leaf.size for leaf, frozen in zip(jax.tree.leaves(params), jax.tree.leaves(is_frozen), strict=True) if frozen
    )
    assert frozen == 9_408 + (4_096 + 36_864 + 16_384 + 16_384) + 2 * (16_384 + 36_864 + 16_384)
