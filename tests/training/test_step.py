"""The train step: pure, compiled once, the same on one device and on eight; and it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.training import mesh as meshes
from focaljax.training.programs import jit_for_one_run
from focaljax.training.state import update_ema
from focaljax.training.step import make_train_step
from tests.training.conftest import ANCHORS, SIDE, SmallDetector, make_batch
from tests.users_programs import jit_as_users


def jit_over(mesh, step, jit=jax.jit):
    replicated = meshes.replicated(mesh)
    return jit(step, in_shardings=(replicated, meshes.split_batch(mesh)), out_shardings=replicated)


@pytest.fixture(scope="module")
def one_step(small_detector):
    return jit_over(meshes.make_mesh(jax.devices()[:1]), small_detector.train_step, jit_as_users)


def test_loss_falls_and_objects_are_found(small_detector, one_step, batch):
    state = small_detector.initial_state()
    losses = []
    for _ in range(100):
        state, metrics = one_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 * losses[0]
    detections = jax.jit(small_detector.predict_step)(state.variables(), batch)
    best = detections.labels[:, 0] == batch["labels"][:, 0]
    assert best[:-2].all()
    # The two images without objects: nothing above a score of one half.
    assert (detections.scores[-2:] < 0.5).all()


def test_step_is_a_pure_function_that_compiles_once():
    detector = SmallDetector()  # of its own: jit shares its cache among all uses of one function
    mesh = meshes.make_mesh(jax.devices()[:1])
    state = jax.device_put(detector.initial_state(), meshes.replicated(mesh))
    on_device = [meshes.put_batch(make_batch(seed), mesh) for seed in range(3)]
    step = jit_over(mesh, detector.train_step)
    first, _ = step(state, on_device[0])
    again, _ = step(state, on_device[0])
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for batch in on_device[1:]:
        again, _ = step(again, batch)
    assert step._cache_size() == 1


def test_network_is_given_pixels_as_the_settings_say(small_detector, batch):
    class SeenError(Exception):
        pass

    class Spy:
        def apply(self, variables, images, **_):
            raise SeenError(np.asarray(images))

    pixels = {"mean": (10.0, 20.0, 30.0), "std": (1.0, 2.0, 4.0), "channel_order": "bgr"}
    image = np.broadcast_to(np.uint8([50, 40, 30]), batch["image"].shape)
    step = make_train_step(
        Spy(), small_detector.optimizer, lambda step: 0.1, loss=None, anchors=ANCHORS, matching={}, pixels=pixels
    )
    with pytest.raises(SeenError) as seen:
        step(small_detector.initial_state(), {**batch, "image": image})
    # Blue first: (30 - 10) / 1, (40 - 20) / 2, (50 - 30) / 4.
    np.testing.assert_allclose(seen.value.args[0], np.broadcast_to([20.0, 10.0, 5.0], image.shape))


def test_metrics_are_scalars_of_known_names(small_detector, one_step, batch):
    _, metrics = one_step(small_detector.initial_state(), batch)
    assert set(metrics) == {
        "loss", "classification_loss", "box_loss", "positives", "positive_share", "gradient_norm", "learning_rate",
        "skipped",
    }  # fmt: skip
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    assert float(metrics["loss"]) == pytest.approx(float(metrics["classification_loss"] + metrics["box_loss"]))
    assert 0.0 < float(metrics["positive_share"]) < 1.0


def test_batch_without_objects_has_no_share_of_assigned_anchors(small_detector, one_step, batch):
    empty = {**batch, "is_box": np.zeros_like(batch["is_box"])}
    _, metrics = one_step(small_detector.initial_state(), empty)
    assert (float(metrics["positives"]), float(metrics["positive_share"])) == (0.0, 0.0)
    assert float(metrics["classification_loss"]) > 0.0


@pytest.mark.parametrize("normalizer", ["image", "batch", "ema"])
def test_accumulated_gradients_are_those_of_the_whole_batch(normalizer):
    detector = SmallDetector(normalizer=normalizer)
    mesh = meshes.make_mesh(jax.devices()[:2])
    state = jax.device_put(detector.initial_state(), meshes.replicated(mesh))
    batch = meshes.put_batch(make_batch(), mesh)
    (whole, metrics), (parts, part_metrics) = (
        jit_over(mesh, step, jit_for_one_run)(state, batch)
        for step in (detector.train_step, detector.make_step(accumulate=4))
    )
    for name, value in metrics.items():
        np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5, err_msg=name)
    # Adam's second moment is the square of the gradient.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-9), parts.opt_state, whole.opt_state)


def test_accumulation_needs_less_memory(small_detector, one_step, batch):
    in_parts = jit_over(meshes.make_mesh(jax.devices()[:1]), small_detector.make_step(accumulate=8), jit_as_users)
    whole_bytes, part_bytes = (
        step.lower(small_detector.initial_state(), batch).compile().memory_analysis().temp_size_in_bytes
        for step in (one_step, in_parts)
    )
    assert part_bytes < 0.5 * whole_bytes


def test_accumulation_moves_batch_statistics_once_a_part(batch):
    detector = SmallDetector(norm="batch_norm")
    state = detector.initial_state()
    after, _ = jit_for_one_run(detector.make_step(accumulate=2))(state, batch)
    step = jit_for_one_run(detector.train_step)
    by_hand = state
    for part in range(2):
        half = {name: rows[part::2] for name, rows in batch.items()}
        moved, _ = step(by_hand, half)
        by_hand = dataclasses.replace(state, batch_stats=moved.batch_stats)  # the weights of before
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.batch_stats, by_hand.batch_stats
    )


def test_batch_that_cannot_be_split_is_refused(small_detector, batch):
    with pytest.raises(ValueError, match="a batch of 8 images cannot be split into 3 equal parts"):
        jax.eval_shape(small_detector.make_step(accumulate=3), small_detector.initial_state(), batch)
    with pytest.raises(ValueError, match="accumulate is the number of parts of a batch, at least 1, got 0"):
        small_detector.make_step(accumulate=0)


def test_batch_statistics_move_and_averaged_parameters_follow(batch):
    detector = SmallDetector(norm="batch_norm")
    before = detector.initial_state()
    after, _ = jit_for_one_run(detector.train_step)(before, batch)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), before.batch_stats, after.batch_stats)
    assert all(jax.tree.leaves(moved))
    assert int(after.step) == 1
    expected = jit_for_one_run(functools.partial(update_ema, decay=0.9))(before.params, after.params, jnp.int32(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after.ema_params, expected)


def test_moving_average_normalizer_divides_the_sum_of_the_whole_batch(batch):
    by_batch, by_average = (SmallDetector(normalizer=name, ema_decay=0.0) for name in ("batch", "ema"))
    _, of_batch = jit_for_one_run(by_batch.train_step)(by_batch.initial_state(), batch)
    state, of_average = jit_for_one_run(by_average.train_step)(by_average.initial_state(), batch)
    positives = float(of_batch["positives"]) * len(batch["image"])
    expected = 0.9 * 40.0 + 0.1 * positives
    assert float(state.normalizer) == pytest.approx(expected)
    assert float(of_average["loss"]) == pytest.approx(float(of_batch["loss"]) * positives / expected, rel=1e-5)
    with pytest.raises(ValueError, match="'ema' divides by num_positives"):
        jax.eval_shape(by_average.train_step, dataclasses.replace(state, normalizer=None), batch)


def test_ghm_keeps_the_moving_average_of_its_counts(batch):
    detector = SmallDetector(ghm_bins=5)
    step = jit_for_one_run(detector.train_step)
    once, of_once = step(detector.initial_state(), batch)
    twice, of_twice = step(once, batch)
    for metrics in (of_once, of_twice):
        assert 0.0 < float(metrics["classification_loss"]) < np.inf
    outputs = float(once.ghm_counts.sum()) / 0.25  # all that are not ignored, alike in both steps
    assert outputs == round(outputs)
    np.testing.assert_allclose(twice.ghm_counts.sum(), (0.75 * 0.25 + 0.25) * outputs, rtol=1e-6)
    assert (np.asarray(once.ghm_counts) != np.asarray(twice.ghm_counts)).any()


@pytest.fixture(scope="module")
def broken(small_detector):
    """A state whose loss is not finite."""
    state = small_detector.initial_state()
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    return dataclasses.replace(state, params=broken, step=jnp.int32(5))


def test_step_that_is_not_finite_changes_nothing_and_nor_does_any_after_it(small_detector, one_step, broken, batch):
    after, metrics = one_step(broken, batch)
    assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]))
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (5, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(after, skipped=broken.skipped), broken)
    # The next step would be a good one.
    good = dataclasses.replace(small_detector.initial_state(), skipped=jnp.int32(1))
    kept, metrics = one_step(good, batch)
    assert np.isfinite(metrics["loss"])
    assert int(metrics["skipped"]) == 2
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(kept, skipped=good.skipped), good)


def test_step_that_is_not_finite_is_left_out_and_training_goes_on(small_detector, one_step, broken, batch):
    step = jit_over(meshes.make_mesh(jax.devices()[:1]), small_detector.make_step(on_nonfinite="skip"), jit_as_users)
    after, _ = step(broken, batch)
    assert (int(after.step), int(after.skipped)) == (6, 1)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (broken.params, broken.opt_state))
    good = small_detector.initial_state()
    skipped_before, _ = step(dataclasses.replace(good, skipped=jnp.int32(1)), batch)
    undisturbed, _ = one_step(good, batch)
    assert int(skipped_before.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, skipped_before.params, undisturbed.params)
    # The rate that is logged is that of the optimiser, which has taken one step fewer.
    _, of_third = step(dataclasses.replace(good, step=jnp.int32(3)), batch)
    _, after_one_skipped = step(dataclasses.replace(good, step=jnp.int32(4), skipped=jnp.int32(1)), batch)
    assert float(after_one_skipped["learning_rate"]) == float(of_third["learning_rate"]) > 0.0


def test_unknown_way_to_meet_a_step_that_is_not_finite_is_refused(small_detector):
    with pytest.raises(ValueError, match="on_nonfinite must be one of stop, skip, got 'halt'"):
        small_detector.make_step(on_nonfinite="halt")


def test_averaging_starts_fast_and_ends_at_its_decay():
    average, new = {"w": jnp.float32(0.0)}, {"w": jnp.float32(1.0)}
    assert float(update_ema(average, new, jnp.int32(0), decay=0.99)["w"]) == pytest.approx(0.9)
    assert float(update_ema(average, new, jnp.int32(10**6), decay=0.99)["w"]) == pytest.approx(0.01, rel=1e-4)


def test_evaluation_uses_the_averaged_parameters(small_detector):
    state = small_detector.initial_state()
    assert state.evaluation_variables()["params"] is state.ema_params
    assert state.variables()["params"] is state.params


def test_detections_stay_inside_the_image_not_its_padding(small_detector, batch):
    sizes = np.full_like(batch["size"], SIDE // 2)
    detections = jax.jit(small_detector.predict_step)(
        small_detector.initial_state().variables(), {"image": batch["image"], "size": sizes}
    )
    assert detections.boxes_xyxy.max() <= SIDE // 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", np.zeros((8, SIDE, SIDE, 3), np.float32)),
        ("boxes", np.zeros((8, 5, 4), np.float32)),
        ("labels", np.zeros((8, 3), np.float32)),
    ],
)
def test_batch_of_a_wrong_shape_or_type_is_refused(small_detector, batch, name, value):
    with pytest.raises(AssertionError):
        jax.eval_shape(small_detector.train_step, small_detector.initial_state(), {**batch, name: value})
