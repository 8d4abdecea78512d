"""Names of torchvision and detectron2 to our variables and back; the lists of names come from torchvision itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from focaljax.models.pretrained import (
    LoadedWeights,
    WeightsError,
    check_complete,
    check_variables,
    detect_source,
    flatten_variables,
    from_detectron2,
    from_torchvision,
    import_weights,
    infer_model,
    load_variables,
    to_torchvision,
    unflatten_variables,
    write_weights,
)
from focaljax.models.resnet import RESNETS, ResNet
from focaljax.models.retinanet import RetinaNet
from tests.models import state_dicts
from tests.models.state_dicts import same

V1, V2 = "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"
V1_MODEL = {"num_classes": 91, "backbone": "resnet50", "norm": "frozen_batch_norm", "p6_from": "p5"}
V2_MODEL = {"num_classes": 91, "backbone": "resnet50", "norm": "batch_norm", "p6_from": "c5", "head_norm": "group_norm"}


@functools.cache
def _torchvision(name):
    return state_dicts.torchvision(name)


def torchvision(name):
    """A fresh dict: tests may change its entries, not the arrays."""
    return dict(_torchvision(name))


@functools.cache
def shapes_of(**model):
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    return jax.eval_shape(RetinaNet(**model).init, jax.random.key(0), images)


def leaf(variables, path):
    for name in path.split("/"):
        variables = variables[name]
    return variables


@pytest.mark.parametrize("name", [V1, V2, "resnet18", "resnext50_32x4d"])
def test_round_trip_gives_back_every_name_in_order_and_every_byte(name):
    state_dict = torchvision(name)
    back = to_torchvision(from_torchvision(state_dict))
    assert same(back, state_dict)
    kept_last = [key for key in state_dict if key.startswith("fc.")]
    assert list(back) == [key for key in state_dict if key not in kept_last] + kept_last


@pytest.mark.parametrize(("name", "model", "parameters"), [(V1, V1_MODEL, 34_014_999), (V2, V2_MODEL, 38_198_935)])
def test_published_detectors_fit_the_model_exactly(name, model, parameters):
    variables = from_torchvision(torchvision(name))
    check_variables(variables, shapes_of(**model))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
    assert infer_model(variables) == {
        "head_norm": None,
        "levels": (3, 4, 5, 6, 7),
        "fpn_channels": 256,
        "head_depth": 4,
        "head_channels": 256,
        "anchors_per_position": 9,
        **model,
    }


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_classification_network_fits_the_backbone(name):
    variables = from_torchvision(torchvision(name))
    init = functools.partial(ResNet(RESNETS[name], norm="batch_norm").init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    check_variables(variables, {collection: {"backbone": tree} for collection, tree in shapes.items()})
    assert infer_model(variables) == {"backbone": name, "norm": "batch_norm"}
    assert {"fc.weight", "fc.bias"} < variables["extra"].keys()


def test_each_kind_of_layer_lands_where_it_belongs():
    state_dict = torchvision(V2)
    variables = from_torchvision(state_dict)
    for ours, theirs in {
        "params/backbone/bn1/scale": "backbone.body.bn1.weight",
        "params/backbone/bn1/bias": "backbone.body.bn1.bias",
        "batch_stats/backbone/layer3_5/bn2/mean": "backbone.body.layer3.5.bn2.running_mean",
        "batch_stats/backbone/layer2_0/downsample_bn/var": "backbone.body.layer2.0.downsample.1.running_var",
        "params/fpn/lateral3/bias": "backbone.fpn.inner_blocks.0.0.bias",
        "params/fpn/output5/bias": "backbone.fpn.layer_blocks.2.0.bias",
        "params/fpn/p7/bias": "backbone.fpn.extra_blocks.p7.bias",
        "params/class_head/norm1/group_norm/scale": "head.classification_head.conv.1.1.weight",
        "params/class_head/output/bias": "head.classification_head.cls_logits.bias",
        "params/box_head/norm3/group_norm/bias": "head.regression_head.conv.3.1.bias",
        "params/box_head/output/bias": "head.regression_head.bbox_reg.bias",
    }.items():
        assert leaf(variables, ours) is state_dict[theirs], ours
    for ours, theirs in {
        "params/backbone/conv1/kernel": "backbone.body.conv1.weight",
        "params/backbone/layer1_0/downsample_conv/kernel": "backbone.body.layer1.0.downsample.0.weight",
        "params/class_head/conv2/kernel": "head.classification_head.conv.2.0.weight",
        "params/fpn/p6/kernel": "backbone.fpn.extra_blocks.p6.weight",
    }.items():
        kernel, weight = leaf(variables, ours), state_dict[theirs]
        for o, i, y, x in [(0, 0, 0, 0), (5, 2, 0, -1), (-1, 1, -1, 0), (7, 0, -1, -1)]:
            assert kernel[y, x, i, o] == weight[o, i, y, x]


def test_norm_follows_the_counts_of_batches_unless_it_is_named():
    v1, v2 = torchvision(V1), torchvision(V2)
    assert infer_model(from_torchvision(v1))["norm"] == "frozen_batch_norm"
    assert infer_model(from_torchvision(v1, norm="batch_norm"))["norm"] == "batch_norm"
    frozen = from_torchvision(v2, norm="frozen_batch_norm")
    assert "bn1" not in frozen["params"]["backbone"]
    assert set(frozen["batch_stats"]["backbone"]["bn1"]) == {"scale", "bias", "mean", "var"}
    assert same(to_torchvision(frozen), v2)
    with pytest.raises(ValueError, match=r"batch_norm, frozen_batch_norm, got 'group_norm'"):
        from_torchvision(v1, norm="group_norm")


def test_trained_normalisation_without_counts_gets_counts_of_zero():
    variables = from_torchvision(torchvision("resnet18"))
    del variables["extra"]
    counter = to_torchvision(variables)["layer4.1.bn2.num_batches_tracked"]
    assert (counter.dtype, counter.shape, int(counter)) == (np.int64, (), 0)


def test_dtypes_pass_through_unchanged():
    state_dict = {k: v.astype(np.float16) if v.ndim else v for k, v in torchvision("resnet18").items()}
    variables = from_torchvision(state_dict)
    assert {x.dtype for x in jax.tree.leaves(variables["params"])} == {np.dtype(np.float16)}
    assert same(to_torchvision(variables), state_dict)


def test_jax_arrays_go_out_as_numpy_arrays():
    variables = jax.tree.map(jnp.asarray, from_torchvision(torchvision("resnet18"), norm="batch_norm")["params"])
    stats = from_torchvision(torchvision("resnet18"))["batch_stats"]
    back = to_torchvision({"params": variables, "batch_stats": stats})
    assert all(isinstance(array, np.ndarray) for array in back.values())
    assert np.array_equal(back["layer1.0.conv1.weight"], torchvision("resnet18")["layer1.0.conv1.weight"])


def test_names_of_older_torchvision_mean_the_same():
    state_dict = torchvision(V1)
    old = state_dicts.with_old_names(state_dict)
    assert "head.regression_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.bias" in old
    assert same(to_torchvision(from_torchvision(old)), state_dict)


def test_a_weight_under_its_old_and_its_new_name_is_refused():
    state_dict = torchvision(V1)
    state_dict["backbone.fpn.inner_blocks.0.bias"] = state_dict["backbone.fpn.inner_blocks.0.0.bias"]
    with pytest.raises(WeightsError, match=r"inner_blocks\.0\.bias is there under its newer name"):
        from_torchvision(state_dict)


def test_detectron2_names_mean_the_same_layers():
    state_dict = torchvision(V1)
    renamed = state_dicts.detectron2(state_dict)
    assert {
        "backbone.bottom_up.stem.conv1.norm.running_mean", "backbone.bottom_up.res2.0.shortcut.weight",
        "backbone.bottom_up.res5.2.conv3.norm.bias", "backbone.fpn_lateral3.weight", "backbone.fpn_output5.bias",
        "backbone.top_block.p6.weight", "head.cls_subnet.6.weight", "head.bbox_subnet.0.bias", "head.cls_score.bias",
        "head.bbox_pred.weight",
    } < renamed.keys()  # fmt: skip
    settings = {"pixel_mean": np.zeros((3, 1, 1)), "anchor_generator.cell_anchors.0": np.zeros((9, 4))}
    variables = from_detectron2(renamed | settings)
    assert variables.pop("extra").keys() == settings.keys()
    ours = flatten_variables(from_torchvision(state_dict))
    assert same(flatten_variables(variables), ours)


def test_detectron2_backbone_alone_needs_no_prefix():
    body = {k: v for k, v in state_dicts.detectron2(torchvision(V1)).items() if ".bottom_up." in k}
    bare = {name.removeprefix("backbone.bottom_up."): array for name, array in body.items()}
    bare["stem.fc.weight"] = np.zeros((1000, 2048), np.float32)
    variables = from_detectron2(bare)
    assert infer_model(variables) == {"backbone": "resnet50", "norm": "frozen_batch_norm"}
    assert same(flatten_variables(from_detectron2(body)), flatten_variables(variables | {"extra": {}}))


def test_every_fault_is_in_one_error_with_the_nearest_name():
    state_dict = torchvision(V1)
    state_dict["backbone.body.layer2.0.bn1.weigth"] = state_dict.pop("backbone.body.layer2.0.bn1.weight")
    del state_dict["head.regression_head.bbox_reg.bias"]
    state_dict["backbone.fpn.extra_blocks.p6.bias"] = np.zeros(7, np.float32)
    state_dict["backbone.body.conv1.weight"] = np.zeros((64, 147), np.float32)
    state_dict["backbone.body.bn1.bias"] = np.zeros(64, np.int64)
    state_dict["optimizer.step"] = np.zeros((), np.int64)
    with pytest.raises(WeightsError) as caught:
        from_torchvision(state_dict)
    message = str(caught.value)
    for words in (
        "2 without a place, 2 missing, 3 of a wrong shape",
        "layer2.0.bn1.weigth has no place (did you mean 'backbone.body.layer2.0.bn1.weight'?)",
        "optimizer.step has no place;",
        "backbone.body.layer2.0.bn1.weight is missing",
        "head.regression_head.bbox_reg.bias is missing",
        "backbone.fpn.extra_blocks.p6.bias has shape (7,), expected (256,)",
        "backbone.body.conv1.weight has shape (64, 147), expected (out, in, height, width)",
        "backbone.body.bn1.bias has dtype int64, expected floating point",
    ):
        assert words in message, words


def test_a_flood_of_faults_is_cut_with_its_count():
    state_dict = {f"layer1.{i}.conv9.weight": np.zeros(1) for i in range(30)}
    with pytest.raises(WeightsError) as caught:
        from_torchvision(state_dict)
    assert "30 without a place" in str(caught.value)
    assert "and 10 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 50


def test_a_missing_block_in_the_middle_and_a_surplus_one_at_the_end_are_found():
    state_dict = {k: v for k, v in torchvision(V1).items() if ".layer3.2." not in k}
    with pytest.raises(WeightsError, match=r"15 missing:\s+backbone\.body\.layer3\.2\.conv1\.weight is missing"):
        from_torchvision(state_dict)
    state_dict = torchvision(V1)
    state_dict |= {k.replace(".layer4.2.", ".layer4.3."): v for k, v in state_dict.items() if ".layer4.2." in k}
    with pytest.raises(WeightsError, match=r"15 without a place:\s+params/backbone/layer4_3/conv1/kernel"):
        check_variables(from_torchvision(state_dict), shapes_of(**V1_MODEL))


def test_a_number_of_many_digits_makes_no_table_of_that_length():
    with pytest.raises(WeightsError, match=r"layer1\.999999999\.conv1\.weight has no place"):
        from_torchvision({"layer1.999999999.conv1.weight": np.zeros((1, 1, 1, 1))})


def test_check_reports_missing_surplus_and_misshapen_and_passes_over_other_collections():
    shapes = shapes_of(**V1_MODEL)
    variables = from_torchvision(torchvision(V1))
    check_variables(variables | {"extra": {"anything": np.zeros(1)}}, shapes)
    flat = flatten_variables(variables)
    del flat["params/fpn/p6/bias"]
    flat["params/fpn/p8/bias"] = np.zeros(256)
    flat["params/class_head/output/bias"] = np.zeros(9 * 80)
    with pytest.raises(WeightsError) as caught:
        check_variables(unflatten_variables(flat), shapes)
    for words in (
        "1 without a place, 1 missing, 1 of a wrong shape",
        "params/fpn/p8/bias has no place (did you mean 'params/fpn/p6/bias'?)",
        "params/fpn/p6/bias is missing",
        "params/class_head/output/bias has shape (720,), expected (819,)",
    ):
        assert words in str(caught.value), words


@pytest.mark.parametrize("model", [V2_MODEL, {"num_classes": 3, "backbone": "resnet_tiny", "levels": (3, 4)}])
def test_a_whole_detector_tells_its_model_and_one_with_a_fault_does_not_pass(model):
    flat = flatten_dict(shapes_of(**model), sep="/")
    found = check_complete(unflatten_variables(flat))
    assert found == infer_model(shapes_of(**model))
    assert found.items() >= model.items()
    del flat["params/box_head/conv2/bias" if "head_norm" not in model else "params/box_head/conv2/kernel"]
    flat["params/fpn/output4/scale"] = flat["params/fpn/output4/bias"]
    with pytest.raises(WeightsError, match=r"1 without a place, 1 missing:\s.*output4/scale has no place"):
        check_complete(unflatten_variables(flat))


def test_a_backbone_of_no_known_shape_is_refused():
    variables = from_torchvision(torchvision("resnet18"))
    variables["params"] = jax.tree.map(lambda leaf: leaf[..., :3], variables["params"])
    with pytest.raises(WeightsError, match="shapes of none of focaljax.models.resnet.RESNETS"):
        check_complete(variables)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"backbone": "resnet_tiny"}, "its stem has a kernel of"),
        ({"backbone": "resnet18", "norm": "group_norm"}, "its backbone has group normalisation"),
        ({"backbone": "resnet18", "head_depth": 2}, "its heads have 2 hidden layers, torchvision's 4"),
        ({"backbone": "resnet18", "head_norm": "group_norm", "head_channels": 64}, "groups of 4 channels"),
        ({"backbone": "resnet18", "head_norm": "batch_norm"}, "another normalisation than by groups"),
        # A tower of torchvision leads from the pyramid's channels to as many.
        ({"backbone": "resnet18", "head_channels": 64}, "its heads have 64 channels.*as the pyramid, here 256"),
    ],
)
def test_model_without_counterpart_in_torchvision_is_refused_with_the_reason(model, words):
    shapes = shapes_of(num_classes=3, **model)
    variables = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    with pytest.raises(WeightsError, match=words):
        to_torchvision(variables)


@pytest.mark.parametrize("backbone", ["resnet34", "resnet101", "resnext101_64x4d"])
def test_other_backbones_and_levels_go_out_and_come_back(backbone):
    model = {
        "num_classes": 7,
        "anchors_per_position": 3,
        "backbone": backbone,
        "levels": (2, 3, 4, 5),
        "head_norm": None,
    }
    shapes = shapes_of(**model)
    variables = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    state_dict = to_torchvision(variables)
    assert state_dict["backbone.fpn.inner_blocks.3.0.weight"].shape[0] == 256
    back = from_torchvision(state_dict)
    check_variables(back, shapes)
    assert infer_model(back).items() >= model.items()


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (lambda: torchvision(V1), "torchvision"),
        (lambda: state_dicts.with_old_names(torchvision(V1)), "torchvision"),
        (lambda: torchvision("resnext50_32x4d"), "torchvision_classifier"),
        (lambda: state_dicts.detectron2(torchvision(V1)), "detectron2"),
        (lambda: flatten_variables(from_torchvision(torchvision(V1))), "focaljax"),
    ],
)
def test_source_shows_in_the_names(make, source):
    assert detect_source(make()) == source
    loaded = import_weights(make())
    assert isinstance(loaded, LoadedWeights)
    assert loaded.source == source
    assert loaded.variables.keys() == {"params", "batch_stats"}


def test_unknown_names_are_an_error_that_shows_some():
    with pytest.raises(WeightsError, match=r"the first of 2: conv1_w, res2_0_branch2a_w"):
        detect_source({"conv1_w": 0, "res2_0_branch2a_w": 0})
    with pytest.raises(WeightsError, match=r"the first of 0: none"):
        detect_source({})


def test_file_with_our_own_names_keeps_what_has_no_place(tmp_path):
    state_dict = torchvision("resnet18")
    path = tmp_path / "weights.npz"
    write_weights(path, flatten_variables(from_torchvision(state_dict)))
    loaded = load_variables(path)
    assert same(to_torchvision({**loaded.variables, "extra": loaded.extra}), state_dict)
    with pytest.raises(WeightsError, match=r"weights\.npz: .*norm='batch_norm', not 'frozen_batch_norm'"):
        load_variables(path, norm="frozen_batch_norm")


def test_error_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "weights.npz"
    write_weights(path, {"layer1.0.conv1.weight": np.zeros((4, 4, 3, 3))})
    with pytest.raises(WeightsError, match=r"weights\.npz: torchvision weights: "):
        load_variables(path)


def test_flat_names_that_cross_are_refused():
    with pytest.raises(WeightsError, match="lies below an array"):
        unflatten_variables({"params/a": 0.0, "params/a/b": 0.0})
    with pytest.raises(WeightsError, match="both an array and a group"):
        unflatten_variables({"params/a/b": 0.0, "params/a": 0.0})
