"""A variant by name: what it sets in a config, and what wins over it."""

import pathlib

import pytest

from focaljax.cli import build
from focaljax.cli.config import apply_variant, default_config, flatten, load_config, load_saved_config, save_config
from focaljax.cli.main import UsageError, main
from focaljax.models.retinanet import PIXEL_MEAN, PIXEL_STD
from focaljax.models.variants import VARIANTS
from focaljax.training import mesh as meshes
from tests.cli.conftest import TINY

ROOT = pathlib.Path(__file__).parents[2]
FILE = """
from focaljax.cli.config import apply_variant, default_config

def get_config():
    config = default_config()
    {line}
    config.model.head_depth = 2
    config.model.norm = "batch_norm"
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    def write(line):
        (tmp_path / "config.py").write_text(FILE.format(line=line))
        return f"--config={tmp_path / 'config.py'}"

    return write


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_of_a_variant_arrives_where_a_run_reads_it(name):
    config, variant = default_config(), VARIANTS[name]
    types = {key: type(value) for key, value in flatten(config)}
    apply_variant(config, name)
    # Of the same types, or an override on the command line could not be checked.
    assert {key: type(value) for key, value in flatten(config)} == types
    model = build.make_model(config, variant.num_classes)
    for attribute, value in variant.model.items():
        assert getattr(model, attribute) == value, attribute
    assert model.anchors_per_position == variant.anchors_per_position
    anchors = build.anchor_settings(config)
    assert anchors == {"levels": variant.model["levels"], **variant.anchors}
    assert build.pixel_settings(config) == {
        "mean": variant.preprocessing.pixel_mean,
        "std": variant.preprocessing.pixel_std,
        "channel_order": variant.preprocessing.channel_order,
    }
    # The published MLPerf model sees every image in one shape; of the others the data set's own stays.
    image_size = (800, 800) if name == "mlperf" else default_config().data.image_size
    assert config.data.image_size == image_size
    for group, settings in (("loss", variant.loss), ("matching", variant.matching), ("eval", variant.thresholds)):
        assert {key: config[group][key] for key in settings} == settings


@pytest.mark.parametrize(("name", "backbone"), [("torchvision_v2", "resnet18"), ("detectron2_r50", "resnet50")])
def test_a_variant_makes_a_step_that_traces(name, backbone):
    config = default_config()
    apply_variant(config, name)
    config.model.backbone = backbone
    config.data.image_size = (64, 64)
    build.check_config(config, meshes.make_mesh())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_no_data_set_and_no_optimiser(name):
    config = default_config()
    apply_variant(config, name)
    before = dict(flatten(default_config()))
    changed = {key for key, value in flatten(config) if value != before[key]}
    pixels = {"data.pixel_mean", "data.pixel_std", "data.channel_order", "data.image_size"}
    assert {key.split(".")[0] for key in changed - pixels} <= {"model", "anchors", "matching", "loss", "eval"}


def test_variants_match_at_an_overlap_of_zero_as_torchvision_and_detectron2_do():
    matches_at_zero = {}
    for name in VARIANTS:
        config = default_config()
        apply_variant(config, name)
        matches_at_zero[name] = config.matching.low_quality_at_zero
    assert matches_at_zero == {
        "paper": False,
        "torchvision_v1": True,
        "torchvision_v2": True,
        "mlperf": True,
        "detectron2_r50": True,
        "detectron2_r101": True,
    }


def test_example_of_fine_tuning_is_torchvisions_first_version():
    config = load_config([f"--config={ROOT}/configs/bccd_finetune.py"])
    assert config.model.variant == "torchvision_v1"
    assert build.make_model(config, num_classes=3).freeze_at == 2
    assert config.init.weights.endswith(".pth")


def test_settings_after_the_variant_in_a_file_win_even_if_they_are_the_defaults(config_file):
    config = load_config([config_file('apply_variant(config, "torchvision_v1")')])
    assert (config.model.variant, config.model.head_depth) == ("torchvision_v1", 2)
    assert config.model.norm == default_config().model.norm == "batch_norm"
    assert config.model.norm_epsilon == 0.0


def test_variant_on_the_command_line_comes_before_the_other_overrides_wherever_it_stands():
    overrides = ["--config.model.norm=batch_norm", "--config.model.variant=torchvision_v1"]
    for arguments in (overrides, overrides[::-1]):
        config = load_config([f"--config={TINY}", *arguments])
        assert (config.model.variant, config.model.norm) == ("torchvision_v1", "batch_norm")
        # ... and after the file, whose backbone is another.
        assert (config.model.backbone, config.anchors.layout) == ("resnet50", "torchvision")
        assert config.data.source == "shapes"


def test_a_name_without_its_settings_is_an_error(config_file, capsys):
    with pytest.raises(UsageError, match=r"write apply_variant\(config, 'torchvision_v1'\)"):
        load_config([config_file('config.model.variant = "torchvision_v1"')])


def test_unknown_variant_names_the_nearest(config_file, capsys):
    with pytest.raises(UsageError, match="did you mean 'torchvision_v2'"):
        load_config([f"--config={TINY}", "--config.model.variant=torchvision_v3"])
    with pytest.raises(UsageError, match="line 6: UsageError: unknown variant 'mlprf' .did you mean 'mlperf'"):
        load_config([config_file('apply_variant(config, "mlprf")')])
    assert main(["train", f"--config={TINY}", "--config.model.variant", "v2", "--workdir=w"]) == 2
    assert "unknown variant 'v2'" in capsys.readouterr().err


def test_default_pixels_are_those_of_the_model():
    assert build.pixel_settings(default_config()) == {"mean": PIXEL_MEAN, "std": PIXEL_STD, "channel_order": "rgb"}


def test_saved_config_of_an_older_version_gets_the_newer_settings(tmp_path):
    config = default_config()
    config.model.head_depth = 2
    del config.model.freeze_at, config.model.norm_epsilon, config.init, config.data.pixel_mean, config.data.train.limit
    save_config(config, tmp_path)
    loaded = load_saved_config(tmp_path)
    expected = default_config()
    expected.model.head_depth = 2
    assert dict(flatten(loaded)) == dict(flatten(expected))


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.freeze_at=6", "freeze_at must be"),
        ("model.norm_epsilon=-1.0", "epsilon of a norm must be at least 0"),
        ("anchors.layout=central", "'central'"),
        ("data.channel_order=rbg", "rgb, bgr"),
        ("data.pixel_std=(0.0, 1.0, 1.0)", "data.pixel_std must be three numbers"),
        ("data.pixel_mean=(0.0, 1.0)", "data.pixel_mean must be three numbers"),
        ("optim.norm_weight_decay=-2.0", "weight decay must be at least 0"),
        ("loss.box=iuo", "giou"),
    ],
)
def test_impossible_value_is_one_line(setting, word, capsys):
    assert main(["train", f"--config={TINY}", f"--config.{setting}", "--workdir=unused"]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1


def test_minus_one_means_the_decay_of_the_kernels():
    import jax
    import jax.numpy as jnp

    config = default_config()
    config.optim.update(weight_decay=0.5, norm_weight_decay=-1.0, bias_weight_decay=-1.0)
    config.optim.update(learning_rate=1.0, warmup_steps=0, momentum=0.0)
    optimizer, _ = build.make_optimizer_and_schedule(config)
    params = {"conv": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}, "bn": {"scale": jnp.ones(1)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert [float(leaf.squeeze()) for leaf in jax.tree.leaves(updates)] == [-0.5, -0.5, -0.5]
