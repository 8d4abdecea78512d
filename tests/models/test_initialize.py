"""Filling a model's initial variables from other weights: what may differ, and that all else is one error."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.models.initialize import describe_filled, fill_variables
from focaljax.models.pretrained import LoadedWeights, import_weights, to_torchvision
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variables import flatten_variables, leaves_by_path
from focaljax.models.weight_names import WeightsError
from tests.models.conftest import fill


@functools.cache
def shapes(num_classes=3, **attributes):
    model = RetinaNet(
        num_classes=num_classes,
        **{
            "backbone": "resnet_tiny", "norm": "batch_norm", "fpn_channels": 8, "head_channels": 8, "head_depth": 1,
            **attributes,
        },
    )  # fmt: skip
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def arrays(variables):
    return {path: np.asarray(leaf) for path, (_, leaf) in leaves_by_path(variables).items()}


def check_taken(filled, loaded, initial):
    """Every named array is that of its origin, and each of the model's is named once."""
    values, from_loaded, from_initial = arrays(filled.variables), arrays(loaded), arrays(initial)
    assert sorted(filled.loaded + filled.fresh) == sorted(from_initial)
    for path in filled.loaded:
        np.testing.assert_array_equal(values[path], from_loaded[path], err_msg=path)
    for path in filled.fresh:
        np.testing.assert_array_equal(values[path], from_initial[path], err_msg=path)
    assert jax.tree.structure(filled.variables) == jax.tree.structure(dict(initial))


def test_same_model_takes_everything():
    initial, loaded = fill(shapes(), seed=0), fill(shapes(), seed=1)
    filled = fill_variables(initial, loaded)
    check_taken(filled, loaded, initial)
    assert (filled.fresh, filled.unused) == ((), ())


def test_class_output_stays_initial_where_the_number_of_classes_differs():
    initial, loaded = fill(shapes(num_classes=3), seed=0), fill(shapes(num_classes=5), seed=1)
    filled = fill_variables(initial, loaded)
    check_taken(filled, loaded, initial)
    assert set(filled.fresh) == {"class_head/output/kernel", "class_head/output/bias"}


@pytest.mark.parametrize(("model", "file"), [("batch_norm", "frozen_batch_norm"), ("frozen_batch_norm", "batch_norm")])
def test_normalisation_goes_where_the_model_has_it(model, file):
    initial, loaded = fill(shapes(norm=model), seed=0), fill(shapes(norm=file), seed=1)
    filled = fill_variables(initial, loaded)
    check_taken(filled, loaded, initial)
    assert filled.fresh == ()
    # scale and bias are parameters of a live normalisation, constants of a frozen one.
    assert ("scale" in filled.variables["params"]["backbone"].get("bn1", {})) == (model == "batch_norm")


def test_backbone_alone_leaves_pyramid_and_heads_initial():
    initial, loaded = fill(shapes(), seed=0), fill(shapes(), seed=1)
    loaded = {collection: {"backbone": rooms["backbone"]} for collection, rooms in loaded.items()}
    filled = fill_variables(initial, loaded)
    check_taken(filled, loaded, initial)
    assert {path.split("/")[0] for path in filled.loaded} == {"backbone"}
    assert {path.split("/")[0] for path in filled.fresh} == {"fpn", "class_head", "box_head"}


def test_pyramid_levels_that_the_model_has_not_are_left_out_and_named():
    initial, loaded = fill(shapes(levels=(3, 4, 5)), seed=0), fill(shapes(), seed=1)
    filled = fill_variables(initial, loaded)
    check_taken(filled, loaded, initial)
    assert sorted(filled.unused) == ["fpn/p6/bias", "fpn/p6/kernel", "fpn/p7/bias", "fpn/p7/kernel"]


def test_shapes_alone_tell_whether_weights_fit():
    filled = fill_variables(shapes(num_classes=3), fill(shapes(num_classes=5)))
    assert len(filled.fresh) == 2
    with pytest.raises(WeightsError):
        fill_variables(shapes(), fill(shapes(fpn_channels=16)))


def test_arrays_get_the_dtype_of_the_model():
    half = jax.tree.map(lambda x: x.astype(np.float16), fill(shapes(), seed=1))
    filled = fill_variables(fill(shapes()), half)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(filled.variables)} == {"float32"}


def test_arrays_of_that_dtype_are_taken_without_a_copy():
    loaded = fill(shapes(), seed=1)
    filled = fill_variables(shapes(), loaded)
    for ours, theirs in zip(jax.tree.leaves(filled.variables), jax.tree.leaves(loaded), strict=True):
        assert ours is theirs


@pytest.mark.parametrize(
    ("attributes", "names"),
    [
        # Of other widths: the head's first layer, and the class output with it although the classes differ too.
        ({"head_channels": 16}, ("class_head/conv0/kernel", "class_head/output/kernel", "box_head/output/kernel")),
        ({"anchors_per_position": 3}, ("box_head/output/kernel has shape (3, 3, 8, 12), the model's is",)),
        ({"p6_from": "p5"}, ("fpn/p6/kernel has shape",)),
        ({"head_norm": "group_norm"}, ("norm0/group_norm/scale has no place", "class_head/conv0/bias is missing")),
        ({"levels": (3, 4, 5)}, ("fpn/p6/kernel is missing",)),
        # The blocks that a larger backbone has besides are no reason to fill a smaller one with half of it.
        ({"backbone": "resnet18"}, ("backbone/layer1_1/conv1/kernel has no place", "backbone/conv1/kernel has shape")),
    ],
)  # fmt: skip
def test_anything_else_is_one_error_that_names_all_of_it(attributes, names):
    with pytest.raises(WeightsError) as error:
        fill_variables(shapes(num_classes=3), fill(shapes(num_classes=5, **attributes)))
    for name in names:
        assert name in str(error.value)
    assert "settings of the model" in str(error.value)


def test_weights_without_a_class_output_are_incomplete():
    loaded = fill(shapes(), seed=1)
    del loaded["params"]["class_head"]["output"]["bias"]
    with pytest.raises(WeightsError, match="class_head/output/bias is missing"):
        fill_variables(fill(shapes()), loaded)


def test_log_line_of_a_torchvision_detector_with_other_classes():
    file = dict(to_torchvision(fill(shapes(num_classes=91, backbone="resnet18", head_depth=4))))
    weights = import_weights(file)
    filled = fill_variables(shapes(num_classes=4, backbone="resnet18", head_depth=4), weights.variables)
    total = len(leaves_by_path(filled.variables))
    counters = sum(name.endswith("num_batches_tracked") for name in file)
    assert counters == 20
    assert describe_filled(filled, weights, "w.npz") == (
        f"loaded {total - 2} of the model's {total} arrays from w.npz (torchvision detector, 91 classes); "
        "made anew: class_head/output, for 4 classes; not used of the file: 20 x num_batches_tracked"
    )


def test_log_line_of_a_classifier_names_the_rooms_that_are_new_and_the_layer_that_is_dropped():
    detector = fill(shapes(backbone="resnet18", norm="frozen_batch_norm"))
    file = to_torchvision({collection: {"backbone": rooms["backbone"]} for collection, rooms in detector.items()})
    weights = import_weights({**file, "fc.weight": np.zeros((10, 512)), "fc.bias": np.zeros(10)})
    filled = fill_variables(shapes(backbone="resnet18", norm="batch_norm", levels=(3, 4, 5)), weights.variables)
    line = describe_filled(filled, weights, "w.npz")
    # Three lateral and three output convolutions; in each head one hidden layer and the output; kernel and bias each.
    for room in ("torchvision classifier", "fpn (12)", "class_head (4)", "box_head (4)"):
        assert room in line
    assert line.endswith("not used of the file: fc.weight, fc.bias")


def test_log_line_without_anything_left_says_only_what_was_loaded():
    loaded = fill(shapes())
    filled = fill_variables(shapes(), loaded)
    line = describe_filled(filled, LoadedWeights(loaded, "focaljax", {}), "w.npz")
    total = len(flatten_variables(loaded))
    assert line == f"loaded {total} of the model's {total} arrays from w.npz (focaljax, 3 classes)"
