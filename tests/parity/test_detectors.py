"""Whole detectors against torchvision's, on two images of different sizes; see tests/golden/README.md."""

import jax
import numpy as np
import pytest

from focaljax.data.resize import padded_size, restore_boxes, shortest_edge_size
from focaljax.models.pretrained import from_torchvision, to_torchvision
from tests.golden import fill
from tests.parity.detectors import Detector, everything64, features32, golden, network_input, state_dict

CASES = tuple(fill.CASES)
LIVE = tuple(name for name, case in fill.CASES.items() if not case.is_frozen)


def assert_features_equal(values, name, mode, tolerance):
    reference = {key.removeprefix(f"{mode}/"): value for key, value in golden(name).items() if key.startswith(mode)}
    assert reference.keys() == values.keys() | {"input"}
    for key, value in values.items():
        samples, expected = fill.sample(value), reference[key]
        # The last value is the norm of the whole.
        np.testing.assert_allclose(
            samples[:-1], expected[:-1], rtol=0, atol=tolerance * abs(expected[:-1]).max(), err_msg=f"{name} {key}"
        )
        np.testing.assert_allclose(samples[-1], expected[-1], rtol=tolerance, err_msg=f"{name} {key}, the norm")


@pytest.mark.parametrize("name", CASES)
def test_network_sees_the_image_that_torchvision_makes(name):
    case, reference = fill.CASES[name], golden(name)
    sizes = [shortest_edge_size(*size, min_size=case.min_size, max_size=case.max_size) for size in case.image_sizes]
    np.testing.assert_array_equal(sizes, reference["image_sizes"])
    assert padded_size(sizes, multiple=case.multiple) == tuple(reference["batch_shape"][2:])
    batch = network_input(name).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(fill.sample(batch), reference["eval/input"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_weights_go_in_and_out_bit_for_bit(name):
    there_and_back = to_torchvision(from_torchvision(state_dict(name)))
    assert list(there_and_back) == list(state_dict(name))
    for entry, value in state_dict(name).items():
        np.testing.assert_array_equal(there_and_back[entry], value, err_msg=entry)
        assert there_and_back[entry].dtype == value.dtype


@pytest.mark.parametrize("name", CASES)
def test_weights_fit_the_model_of_the_variant(name):
    detector = Detector(name, "float32")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    expected = jax.eval_shape(lambda images: detector.model.init(jax.random.key(0), images), images)
    shapes = jax.tree.map(lambda x: x.shape, detector.variables())
    assert shapes == jax.tree.map(lambda x: x.shape, dict(expected))


@pytest.mark.parametrize("name", CASES)
def test_features_and_heads_in_float32(name):
    for mode, values in features32(name).items():
        assert_features_equal(values, name, mode, 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_features_and_heads_in_float64(name):
    assert_features_equal(everything64(name)["eval"], name, "eval", 1e-10)


@pytest.mark.parametrize("name", LIVE)
def test_features_and_heads_with_the_statistics_of_the_batch_in_float64(name):
    assert_features_equal(everything64(name)["train"], name, "train", 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_losses(name):
    losses, reference = everything64(name)["losses"], golden(name)
    assert losses.classification == pytest.approx(reference["classification"].item(), rel=1e-9)
    assert losses.box == pytest.approx(reference["bbox_regression"].item(), rel=1e-9)
    assert losses.total == pytest.approx((reference["classification"] + reference["bbox_regression"]).item(), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradient_norm_of_every_parameter_and_six_whole_gradients(name):
    gradients, reference = everything64(name)["gradients"], golden(name)
    names = [str(entry) for entry in reference["gradient_names"]]
    norms = [np.linalg.norm(gradients[entry]) for entry in names]
    np.testing.assert_allclose(norms, reference["gradient_norms"], rtol=1e-8)
    # All but constants and counters are parameters.
    frozen = ("running_mean", "running_var", "num_batches_tracked")
    trained = [entry for entry in gradients if not entry.endswith(frozen) and not (
        fill.CASES[name].is_frozen and (".bn" in entry or "downsample.1" in entry)
    )]  # fmt: skip
    assert sorted(names) == sorted(trained)
    for entry in fill.whole_gradients(fill.CASES[name]):
        expected = reference[f"gradient/{entry}"]
        np.testing.assert_allclose(
            gradients[entry], expected, rtol=0, atol=1e-8 * abs(expected).max(), err_msg=f"{name} {entry}"
        )


@pytest.mark.parametrize("name", CASES)
def test_weights_and_statistics_after_a_step_of_sgd(name):
    after, initial = everything64(name)["after"], state_dict(name)
    has_moved = False
    for entry, value in after.items():
        if entry.endswith("num_batches_tracked"):
            continue
        expected = golden(name)[f"after/{entry}"]
        # What the step changed, as the weights themselves hardly change.
        step = abs(expected - fill.sample(initial[entry], 16))[:-1].max()
        difference = abs(fill.sample(value, 16) - expected)
        assert difference[:-1].max() <= 1e-8 * step + 1e-15, entry
        assert difference[-1] <= 1e-11 * expected[-1], entry
        has_moved |= step > 1e-6
    assert has_moved


@pytest.mark.parametrize("name", CASES)
def test_detections(name):
    detections, reference = everything64(name)["detections"], golden(name)
    for index, original_size in enumerate(fill.CASES[name].image_sizes):
        expected = {key: reference[f"detections{index}/{key}"] for key in ("boxes", "scores", "labels")}
        count = int(detections.is_detection[index].sum())
        assert count == len(expected["scores"]) > 100
        np.testing.assert_array_equal(detections.labels[index, :count], expected["labels"])
        np.testing.assert_allclose(detections.scores[index, :count], expected["scores"], rtol=1e-10)
        boxes = detections.boxes_xyxy[index, :count]
        np.testing.assert_allclose(boxes, expected["boxes"], rtol=0, atol=1e-6)
        size = tuple(reference["image_sizes"][index])
        restored = restore_boxes(boxes, size, original_size)
        np.testing.assert_allclose(restored, reference[f"detections{index}/original_boxes"], rtol=0, atol=1e-6)
