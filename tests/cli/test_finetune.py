"""Fine-tuning from a file in torchvision's form: what is taken, what is frozen, and that the run goes on exactly."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from focaljax.cli.main import main
from focaljax.models.pretrained import to_torchvision
from focaljax.models.retinanet import RetinaNet
from focaljax.models.variables import leaves_by_path
from focaljax.models.weight_files import read_weights, write_weights
from tests.models.conftest import fill
from tests.models.state_dicts import same

pytestmark = pytest.mark.usefixtures("one_device")

CLASSES_THERE, CLASSES_HERE = 5, 3
SETTINGS = [
    "--config.model.backbone=resnet18", "--config.model.head_depth=4", "--config.model.head_channels=8",
    "--config.model.levels=(3, 4, 5)", "--config.anchors.sizes=(16.0, 32.0, 64.0)", "--config.model.freeze_at=2",
    "--config.optim.steps=4", "--config.optim.batch_size=2", "--config.eval.batch_size=2",
    "--config.optim.weight_decay=0.1", "--config.optim.norm_weight_decay=-1.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def published():
    """The variables of a small detector of torchvision's form."""
    model = RetinaNet(
        num_classes=CLASSES_THERE, anchors_per_position=3, backbone="resnet18", norm="batch_norm", fpn_channels=8,
        levels=(3, 4, 5), head_channels=8,
    )  # fmt: skip
    return fill(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))), seed=5, biases=0.01)


@pytest.fixture(scope="module")
def finetune(published, tiny, tmp_path_factory):
    """The command, without its workdir, and the file of weights."""
    file = tmp_path_factory.mktemp("weights") / "published.npz"
    write_weights(file, to_torchvision(published))
    return ["train", *tiny, *SETTINGS, f"--config.init.weights={file}"], file


@pytest.fixture(scope="module")
def tuned(finetune, tmp_path_factory):
    """A finished run, and what it said."""
    command, _ = finetune
    workdir, said = tmp_path_factory.mktemp("tuned"), io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*command, "--workdir", str(workdir)]) == 0
    return workdir, said.getvalue()


def checkpoint(workdir, step):
    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        assert manager.latest_step() == step
        return manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]


@pytest.fixture(scope="module")
def tuned_state(tuned):
    return checkpoint(tuned[0], 4)


def arrays(state, params="params"):
    both = {"params": state[params], "batch_stats": state["batch_stats"]}
    return {path: np.asarray(leaf) for path, (_, leaf) in leaves_by_path(both).items()}


def is_frozen(path):
    return path.startswith(("backbone/conv1/", "backbone/bn1/", "backbone/layer1_"))


@pytest.mark.parametrize("params", ["params", "ema_params"])
def test_frozen_parts_keep_the_files_weights_to_the_bit_and_the_others_learn(tuned_state, published, params):
    before = {path: leaf for path, (_, leaf) in leaves_by_path(published).items()}
    after = arrays(tuned_state, params)
    assert sum(map(is_frozen, after)) == 5 + 2 * 10  # the stem, and two blocks of two convolutions
    for path, value in after.items():
        if is_frozen(path):
            assert value.tobytes() == before[path].tobytes(), path
        elif not path.startswith("class_head/output/"):
            assert (value != before[path]).any(), path
            # Few steps with a small learning rate: these are the file's weights still, not random ones.
            if path.endswith("kernel"):
                np.testing.assert_allclose(value, before[path], atol=0.01, err_msg=path)


def test_class_head_is_new_and_has_the_classes_of_the_data(tuned_state):
    after = arrays(tuned_state)
    assert after["class_head/output/kernel"].shape == (3, 3, 8, 3 * CLASSES_HERE)
    # Normal with standard deviation 0.01, as every new head; and the bias of the prior 0.01, -4.6.
    assert after["class_head/output/kernel"].std() == pytest.approx(0.01, rel=0.3)
    np.testing.assert_allclose(after["class_head/output/bias"], -4.595, atol=0.02)


def test_optimiser_keeps_nothing_for_frozen_parameters(tuned_state):
    trained = [
        path for path, (kind, _) in leaves_by_path({"params": tuned_state["params"]}).items() if not is_frozen(path)
    ]
    moments = [leaf for leaf in jax.tree.leaves(tuned_state["opt_state"]) if np.ndim(leaf) > 0]
    assert len(moments) == 2 * len(trained)


def test_run_that_goes_on_is_the_same_to_the_bit_and_needs_the_file_no_more(
    tuned, tuned_state, finetune, tmp_path, capsys
):
    command, file = finetune
    workdir = tmp_path / "interrupted"
    shutil.copytree(tuned[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    moved = file.rename(file.with_name("elsewhere.npz"))
    try:
        assert main([*command, "--workdir", str(workdir)]) == 0
    finally:
        moved.rename(file)
    output = capsys.readouterr().out
    assert "after step 2 of 4" in output
    assert "loaded" not in output
    first, second = (jax.tree.leaves(state) for state in (tuned_state, checkpoint(workdir, 4)))
    assert [np.asarray(leaf).tobytes() for leaf in first] == [np.asarray(leaf).tobytes() for leaf in second]


def test_log_says_what_was_loaded_what_is_new_and_what_was_not_used(tuned, finetune):
    lines = [line for line in tuned[1].splitlines() if line.startswith("loaded ")]
    assert lines == [
        f"loaded 130 of the model's 132 arrays from {finetune[1]} (torchvision detector, 5 classes); "
        "made anew: class_head/output, for 3 classes; not used of the file: 20 x num_batches_tracked"
    ]


def test_run_with_torchvisions_anchors_goes_back_under_its_names_and_with_its_epsilon(
    tuned, tuned_state, tmp_path, capsys
):
    workdir, path = tmp_path / "run", tmp_path / "back.npz"
    shutil.copytree(tuned[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["anchors"]["layout"] = "torchvision"
    config["model"]["norm_epsilon"] = 0.001
    (workdir / "config.json").write_text(json.dumps(config))
    assert main(["convert", str(workdir), str(path), "--to=torchvision"]) == 0
    assert "norm_epsilon=0.001 (`focaljax predict --norm_epsilon`" in capsys.readouterr().out
    averaged = {"params": tuned_state["ema_params"], "batch_stats": tuned_state["batch_stats"]}
    assert same(read_weights(path), to_torchvision(averaged))


def test_tuned_run_is_evaluated(tuned):
    assert json.loads((tuned[0] / "evaluation_val.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--config.init.weights=none.npz"], ("init.weights", "none.npz", "does not exist")),
        (["--config.init.weights=weights.txt"], ("weights.txt", ".safetensors")),
        (["--config.model.fpn_channels=16"], ("fpn/lateral3/kernel has shape (1, 1, 128, 8)", "(1, 1, 128, 16)")),
    ],
)
def test_weights_that_do_not_fit_are_one_line_and_leave_no_run_behind(finetune, tmp_path, capsys, settings, words):
    workdir = tmp_path / "run"
    assert main([*finetune[0], *settings, "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not workdir.exists()
