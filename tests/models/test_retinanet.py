import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.detection import pyramid_anchors
from focaljax.losses import BACKGROUND, sigmoid_focal_loss_with_integer_labels
from focaljax.models.retinanet import PIXEL_MEAN, PIXEL_STD, RetinaNet, normalize_images, prior_bias
from focaljax.training.programs import jit_for_one_run

SMALL = {
    "num_classes": 3,
    "backbone": "resnet_tiny",
    "norm": "batch_norm",
    "fpn_channels": 16,
    "head_depth": 1,
    "head_channels": 16,
}


def shapes_of(model, size=(64, 64)):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return variables, jax.eval_shape(model.apply, variables, images)


def leaf_names(tree):
    return {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def initialized():
    """A new small network with the paper's initialisation, and its compiled forward pass."""
    model = RetinaNet(**SMALL)
    key = jax.random.key(0, impl="rbg")  # compiles in a fraction of the default's time
    variables = jax.jit(model.init)(key, np.zeros((1, 32, 32, 3), np.float32))
    return model, variables, jax.jit(model.apply)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(2, 65, 97, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (100, 33), (600, 801)])
def test_outputs_match_the_anchors_of_the_image_size(size):
    for options in ({}, {"levels": (3, 4, 5, 6)}):
        _, (class_logits, box_deltas) = shapes_of(RetinaNet(**SMALL, **options), size)
        levels = options.get("levels", (3, 4, 5, 6, 7))
        sizes = tuple(4.0 * 2**level for level in levels)
        anchors = jax.eval_shape(functools.partial(pyramid_anchors, size, levels=levels, sizes=sizes))
        assert [x.shape for x in class_logits] == [(2, a.shape[0], 3) for a in anchors]
        assert [x.shape for x in box_deltas] == [(2, a.shape[0], 4) for a in anchors]


def test_outputs_of_a_position_are_anchor_by_anchor(initialized, images):
    _, variables, apply = initialized
    params = {**variables["params"]}
    for head, outputs in (("class_head", 3), ("box_head", 4)):
        output = params[head]["output"]
        bias = np.arange(9 * outputs, dtype=np.float32)
        params[head] = {**params[head], "output": {"kernel": np.zeros_like(output["kernel"]), "bias": bias}}
    class_logits, box_deltas = apply({**variables, "params": params}, images)
    for level in range(5):
        for outputs in (class_logits[level], box_deltas[level]):
            expected = np.arange(9 * outputs.shape[-1]).reshape(9, -1)
            for position in (0, -1):
                np.testing.assert_array_equal(outputs[0].reshape(-1, *expected.shape)[position], expected)


def test_outputs_are_row_by_row_like_the_anchors(initialized, fill_evenly):
    # A bright spot of a dark image answers most at the anchors around it. 65 x 97 px are 9 x 13 positions of P3.
    _, variables, apply = initialized
    variables = fill_evenly(variables)
    for level in (4, 5):  # whose cells are coarser
        variables["params"]["fpn"][f"lateral{level}"]["kernel"][:] = 0
    images = np.zeros((2, 65, 97, 3), np.float32)
    images[0, 24, 72] = images[1, 40, 32] = 1e6
    logits = np.asarray(apply(variables, images)[0][0]).sum(axis=-1)
    anchors = np.asarray(jax.jit(lambda: pyramid_anchors((65, 97), levels=(3,), sizes=(32.0,)))()[0])
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    for answer, (x, y) in zip(logits, ((72, 24), (32, 40)), strict=True):
        weights = np.where(answer > 0.7 * answer.max(), answer, 0)
        np.testing.assert_allclose(weights @ centers / weights.sum(), (x, y), atol=4)  # half a cell


def test_every_score_starts_at_the_prior(initialized, images):
    _, variables, apply = initialized
    class_logits, box_deltas = apply(variables, images)
    scores = np.concatenate([np.ravel(jax.nn.sigmoid(x)) for x in class_logits])
    np.testing.assert_allclose(scores, 0.01, rtol=0.15)
    deltas = np.concatenate([np.ravel(x) for x in box_deltas])
    assert np.abs(deltas).max() < 0.15


def test_prior_is_in_the_class_head_and_only_there(initialized):
    _, variables, _ = initialized
    params = variables["params"]
    np.testing.assert_allclose(params["class_head"]["output"]["bias"], -np.log(99), rtol=1e-6)
    for head in ("class_head", "box_head"):
        biases = {name: leaves["bias"] for name, leaves in params[head].items()}
        for name, bias in biases.items():
            if (head, name) != ("class_head", "output"):
                np.testing.assert_array_equal(bias, 0, err_msg=f"{head}/{name}")
        for leaves in params[head].values():
            np.testing.assert_allclose(np.std(leaves["kernel"]), 0.01, rtol=0.1)


def test_head_init_std_is_that_of_the_hidden_layers_and_leaves_the_output_layer_small():
    @jax.jit
    def heads(key):
        params = RetinaNet(**SMALL, head_init_std=0.1).init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        return params["class_head"], params["box_head"]

    for head in heads(jax.random.key(0, impl="rbg")):
        np.testing.assert_allclose(np.std(head["conv0"]["kernel"]), 0.1, rtol=0.1)
        np.testing.assert_allclose(np.std(head["output"]["kernel"]), 0.01, rtol=0.1)


def test_loss_of_a_background_batch_starts_where_the_prior_puts_it(initialized, images):
    _, variables, apply = initialized
    class_logits = np.concatenate(apply(variables, images)[0], axis=1)
    focal = jax.jit(functools.partial(sigmoid_focal_loss_with_integer_labels, alpha=0.25, gamma=2.0))
    loss = focal(class_logits, np.full(class_logits.shape[:2], BACKGROUND))
    # K (1 - alpha) pi^2 (-log(1 - pi)) = 3 x 0.75 x 1e-4 x 0.01005034; the loss goes with the cube of the score.
    np.testing.assert_allclose(np.mean(loss), 2.26133e-6, rtol=0.1)


def test_prior_bias_is_the_logit_of_the_prior():
    for prior in (1e-4, 0.01, 0.5, 0.9):
        np.testing.assert_allclose(jax.nn.sigmoid(prior_bias(prior)), prior, rtol=1e-5)
    for prior in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(ValueError, match=f"prior must be between 0 and 1, got {prior}"):
            prior_bias(prior)


def test_heads_are_shared_over_the_levels_and_not_with_each_other():
    few, _ = shapes_of(RetinaNet(**SMALL, levels=(3, 4, 5)))
    many, _ = shapes_of(RetinaNet(**SMALL, levels=(3, 4, 5, 6, 7)))
    assert set(many["params"]) == {"backbone", "fpn", "class_head", "box_head"}
    for head, outputs in (("class_head", 9 * 3), ("box_head", 9 * 4)):
        assert few["params"][head] == many["params"][head]
        assert set(many["params"][head]) == {"conv0", "output"}
        assert many["params"][head]["output"]["kernel"].shape == (3, 3, 16, outputs)


def test_one_change_of_a_head_changes_every_level(initialized, images):
    _, variables, apply = initialized
    class_head = variables["params"]["class_head"]
    changed_head = {**class_head, "output": {**class_head["output"], "bias": class_head["output"]["bias"] + 1}}
    changed = {**variables, "params": {**variables["params"], "class_head": changed_head}}
    (before, deltas_before), (after, deltas_after) = apply(variables, images), apply(changed, images)
    for level in range(5):
        np.testing.assert_allclose(after[level] - before[level], 1, rtol=1e-5)
        np.testing.assert_array_equal(deltas_before[level], deltas_after[level])


def test_the_papers_network_has_the_parameters_of_its_parts():
    # Backbone without the normalisation's 53120 (frozen); pyramid as in test_fpn; heads: 4 x (9 x 256 x 256 + 256)
    # each, and 9 x 256 x 720 + 720 for 80 classes x 9 anchors, 9 x 256 x 36 + 36 for boxes.
    variables, _ = shapes_of(RetinaNet(80))
    counts = {part: sum(x.size for x in jax.tree.leaves(tree)) for part, tree in variables["params"].items()}
    assert counts == {
        "backbone": 23_508_032 - 53_120,
        "fpn": 7_997_440,
        "class_head": 2_360_320 + 1_659_600,
        "box_head": 2_360_320 + 82_980,
    }
    assert leaf_names(variables["params"]) == {"kernel", "bias"}
    assert leaf_names(variables["batch_stats"]) == {"mean", "var", "scale", "bias"}


def test_training_updates_the_statistics_and_nothing_else(initialized, images):
    model, variables, _ = initialized
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    (class_logits, _), updated = apply(variables, images)
    assert set(updated) == {"batch_stats"}
    assert np.isfinite(class_logits[0]).all()
    before, after = variables["batch_stats"]["backbone"]["bn1"], updated["batch_stats"]["backbone"]["bn1"]
    assert (np.asarray(before["mean"]) != np.asarray(after["mean"])).all()


@pytest.mark.parametrize("head_norm", ["batch_norm", "group_norm"])
def test_head_norm_replaces_the_hidden_biases(head_norm):
    variables, _ = shapes_of(RetinaNet(**SMALL, head_norm=head_norm))
    assert set(variables["params"]["class_head"]) == {"conv0", "norm0", "output"}
    assert set(variables["params"]["class_head"]["conv0"]) == {"kernel"}


def test_bfloat16_keeps_parameters_and_outputs_in_float32(initialized, images):
    _, variables, apply = initialized
    model = RetinaNet(**SMALL, dtype=jnp.bfloat16)
    shapes, outputs = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves((shapes, outputs))} == {jnp.dtype("float32")}
    half = jax.jit(model.apply)(variables, images)
    full = apply(variables, images)
    # Eight bits of mantissa in a network of ten layers with outputs around -4.6 and 0.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.03), half, full)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(half[0], full[0], strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "batch_norm", "head_norm": "group_norm"},
        {"norm": "frozen_batch_norm", "p6_from": "p5"},
        {"norm": "group_norm", "head_norm": "batch_norm", "freeze_at": 2},
    ],
)
@pytest.mark.parametrize("train", [False, True])
def test_float64_is_float64_throughout(options, train):
    model = RetinaNet(**{**SMALL, **options}, dtype=jnp.float64)
    with jax.enable_x64(True):
        images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float64)
        variables = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64),
            jax.eval_shape(model.init, jax.random.key(0), images),
        )
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
        jaxpr, shapes = jax.make_jaxpr(apply, return_shape=True)(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float64")}
    assert "f64[" in str(jaxpr)
    assert "f32[" not in str(jaxpr)


def test_epsilon_and_frozen_parts_reach_the_backbone(initialized, images):
    _, variables, apply = initialized
    model = RetinaNet(**SMALL, norm_epsilon=3.0, freeze_at=2)
    function = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updated = function(variables, images)
    for name, before in variables["batch_stats"]["backbone"].items():
        is_equal = jax.tree.map(lambda a, b: bool((a == b).all()), before, updated["batch_stats"]["backbone"][name])
        assert set(jax.tree.leaves(is_equal)) == {name in ("bn1", "layer1_0")}, name
    logits = jax.jit(RetinaNet(**SMALL, norm_epsilon=3.0).apply)(variables, images)[0][0]
    assert (np.asarray(logits) != np.asarray(apply(variables, images)[0][0])).any()


def test_remat_keeps_less_and_changes_neither_outputs_nor_gradients_nor_names(fill):
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    results = []
    for remat in (False, True):
        model = RetinaNet(**SMALL | {"head_depth": 2, "levels": (3, 4)}, remat=remat)
        variables = fill(shapes_of(model)[0])

        def total(params, model=model, variables=variables):
            outputs, updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return sum(jnp.square(x).mean() for x in jax.tree.leaves(outputs)), updates

        # What a forward pass leaves for the backward pass. XLA's own figure would not do: on the CPU it merges what is
        # computed anew with what was computed before, and memory stays as it is.
        kept = jax.eval_shape(lambda params, total=total: jax.vjp(total, params, has_aux=True)[1], variables["params"])
        kept_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
        gradients = jit_for_one_run(jax.value_and_grad(total, has_aux=True))
        results.append((gradients(variables["params"]), kept_bytes))
    (plain, plain_bytes), (again, again_bytes) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, plain)
    params_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(variables["params"]))
    assert again_bytes - params_bytes < 0.5 * (plain_bytes - params_bytes)


def test_stride_in_1x1_reaches_the_backbone():
    model = RetinaNet(**{**SMALL, "backbone": "resnet50"}, stride_in_1x1=True)
    variables, _ = shapes_of(model)
    apply = functools.partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, variables, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert state["intermediates"]["backbone"]["layer2_0"]["conv1"]["__call__"][0].shape[1] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet19"}, "backbone must be one of resnet_tiny, resnet18, .*, got 'resnet19'"),
        ({"norm": "bn"}, "norm must be one of batch_norm, frozen_batch_norm, group_norm, got 'bn'"),
        ({"head_norm": "bn"}, "norm must be one of .*, got 'bn'"),
        ({"p6_from": "c6"}, "p6_from must be one of c5, p5, got 'c6'"),
        ({"levels": (3, 5)}, "levels must be consecutive"),
        ({"prior": 0.0}, "prior must be between 0 and 1, got 0.0"),
        ({"freeze_at": 6}, "freeze_at must be the number of frozen parts in 0..5"),
        ({"stride_in_1x1": True}, "stride_in_1x1 is for bottlenecks"),
        ({"norm_epsilon": -1.0}, "epsilon of a norm must be at least 0, got -1.0"),
    ],
)
def test_impossible_options_are_refused_with_the_possible_ones(options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(RetinaNet(**{**SMALL, **options}))


# Images


def test_images_are_normalised_by_channel_and_zero_in_their_padding():
    images = np.empty((2, 4, 6, 3), np.uint8)
    images[..., :] = [255, 0, 104]
    normalized = np.asarray(jax.jit(normalize_images)(images, np.array([[4, 6], [3, 2]])))
    expected = (np.array([255, 0, 104]) - PIXEL_MEAN) / PIXEL_STD
    np.testing.assert_allclose(normalized[0], np.broadcast_to(expected, (4, 6, 3)), rtol=1e-5)
    np.testing.assert_allclose(normalized[1, :3, :2], np.broadcast_to(expected, (3, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(normalized[1, 3:], 0)
    np.testing.assert_array_equal(normalized[1, :, 2:], 0)
    assert normalized.dtype == np.float32


@pytest.mark.parametrize(
    ("images", "sizes"), [((2, 4, 4), (2, 2)), ((2, 4, 4, 1), (2, 2)), ((2, 4, 4, 3), (1, 2)), ((2, 4, 4, 3), (2,))]
)
def test_images_and_sizes_of_other_shapes_are_refused(images, sizes):
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\] and sizes \[B, 2\], got"):
        normalize_images(np.zeros(images, np.uint8), np.ones(sizes, np.int32))


def test_normalisation_takes_other_means():
    images = np.full((1, 2, 2, 3), 10, np.uint8)
    normalized = normalize_images(images, np.array([[2, 2]]), mean=(0.0, 10.0, 20.0), std=(1.0, 1.0, 5.0))
    np.testing.assert_allclose(normalized[0, 1, 1], [10, 0, -2])


def test_bgr_turns_the_channels_around_and_takes_mean_and_std_in_that_order():
    images = np.empty((1, 2, 2, 3), np.uint8)
    images[..., :] = [10, 20, 40]
    options = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 2.0, 4.0), "channel_order": "bgr"}
    normalized = normalize_images(images, np.array([[2, 2]]), **options)
    np.testing.assert_allclose(normalized[0, 1, 1], [39, 9, 1.75])
    with pytest.raises(ValueError, match="channel_order must be one of rgb, bgr, got 'gbr'"):
        normalize_images(images, np.array([[2, 2]]), channel_order="gbr")


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_normalised_images_are_float32_but_of_float64_images(dtype):
    with jax.enable_x64(True):
        normalized = normalize_images(jnp.ones((1, 2, 2, 3), dtype), np.array([[2, 2]]))
    assert normalized.dtype == ("float64" if dtype == "float64" else "float32")
