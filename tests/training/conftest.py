"""A detector small enough to train in a test, and its compiled steps, shared by the tests of this room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focaljax.evaluation.inference import make_predict_step
from focaljax.models.retinanet import RetinaNet
from focaljax.training.classification import make_classification_loss
from focaljax.training.objective import detection_loss, make_box_loss
from focaljax.training.optimizer import make_optimizer, make_schedule
from focaljax.training.programs import jit_for_one_run
from focaljax.training.state import create_state
from focaljax.training.step import make_train_step

SIDE, B, N, K = 32, 8, 3, 2
ANCHORS = {"levels": (3, 4), "sizes": (8.0, 16.0), "scales": (1.0, 1.5), "ratios": (1.0,)}


class SmallDetector:
    """A model with its optimiser, initial state and steps."""

    def __init__(
        self,
        norm="group_norm",
        ema_decay=0.9,
        normalizer="image",
        optimizer="adamw",
        learning_rate=3e-3,
        ghm_bins=0,
        **step,
    ):
        self.model = RetinaNet(
            num_classes=K,
            anchors_per_position=2,
            backbone="resnet_tiny",
            norm=norm,
            levels=ANCHORS["levels"],
            fpn_channels=8,
            head_depth=1,
            head_channels=8,
        )
        schedule = make_schedule("cosine", learning_rate=learning_rate, steps=100, warmup_steps=5)
        self.optimizer = make_optimizer(optimizer, schedule)
        self.normalizer = 40.0 if normalizer == "ema" else None
        self.ghm_bins = ghm_bins
        classification_loss = (
            make_classification_loss("ghm", ghm_bins=ghm_bins) if ghm_bins else make_classification_loss("focal")
        )
        loss = functools.partial(
            detection_loss,
            classification_loss=classification_loss,
            divisor="outputs" if ghm_bins else "positives",
            box_loss=make_box_loss("smooth_l1"),
            normalizer=normalizer,
        )
        self.make_step = functools.partial(
            make_train_step,
            self.model,
            self.optimizer,
            schedule,
            loss=loss,
            anchors=ANCHORS,
            matching={},
            ema_decay=ema_decay,
            **step,
        )
        self.train_step = self.make_step()
        thresholds = {"score_threshold": 0.05, "pre_nms_top_k": 50, "nms_iou": 0.5, "max_detections": 10}
        self.predict_step = make_predict_step(self.model, anchors=ANCHORS, thresholds=thresholds)

    def initial_state(self):
        kept = {"normalizer": self.normalizer, "ghm_bins": self.ghm_bins}
        return create_state(initial_variables(self.model), self.optimizer, has_ema=True, **kept)


@functools.cache
def initial_variables(model):
    init = functools.partial(model.init, train=False)
    return jit_for_one_run(init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))


def make_batch(seed=0):
    """Noise with one or two bright squares an image; the class is whether a square is large; some images empty."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (B, SIDE, SIDE, 3)).astype(np.uint8)
    boxes, labels = np.zeros((B, N, 4), np.float32), np.full((B, N), -1, np.int32)
    for row in range(B - 2):
        for index in range(1 + row % 2):
            label = int(rng.integers(K))
            side = (8, 14)[label]
            x, y = rng.integers(0, SIDE - side, 2)
            image[row, y : y + side, x : x + side] = (230, 120)[label]
            boxes[row, index], labels[row, index] = (x, y, x + side, y + side), label
    return {
        "image": image,
        "size": np.full((B, 2), SIDE, np.int32),
        "boxes": boxes,
        "labels": labels,
        "is_crowd": np.zeros((B, N), bool),
        "is_box": labels >= 0,
    }


@pytest.fixture(scope="session")
def small_detector():
    return SmallDetector()


@pytest.fixture(scope="session")
def batch():
    return make_batch()
