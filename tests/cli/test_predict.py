"""`focaljax predict` with files of weights, and views of images in `predict` and `evaluate`."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from focaljax import Detector
from focaljax.cli.detector_flags import read_class_names
from focaljax.cli.main import main
from focaljax.cli.predict import find_images, image_ids_of, picture_names
from focaljax.detector import TestTimeAugmentation
from focaljax.evaluation.drawing import write_image
from tests import small_detectors
from tests.cli.conftest import devices_of_runs

pytestmark = pytest.mark.usefixtures("one_device", "tiny_variant")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images named as COCO names them, the last in a folder inside, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    names = ("000000000139.jpg", "000000000042.png", "more/000000000285.jpg")
    for name, image in zip(names, small_detectors.images((48, 60), (70, 40), (64, 96)), strict=True):
        write_image(folder / name, image)
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(out, *arguments):
    return main(["predict", "--variant=tiny", "--out", str(out), *map(str, arguments)])


@pytest.fixture(scope="module")
def predicted(weights, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert predict(out, "--weights", weights, "--min_score=0.6", photos, photos / "more" / "*.jpg") == 0
    return out


def test_predictions_are_those_of_the_detector_in_the_order_of_the_files(predicted, weights, photos):
    records = json.loads((predicted / "predictions.json").read_text())
    files = [photos / name for name in ("000000000042.png", "000000000139.jpg", "more/000000000285.jpg")]
    assert [record["file_name"] for record in records] == [str(file) for file in files]
    assert [record["image_id"] for record in records] == [42, 139, 285]
    assert [(record["height"], record["width"]) for record in records] == [(70, 40), (48, 60), (64, 96)]
    detector = Detector.from_weights(weights, variant="tiny")
    for record, found in zip(records, detector(files), strict=True):
        kept = found.above(0.6)
        assert 0 < len(kept) < len(found)
        assert [one["label"] for one in record["detections"]] == [f"class {label}" for label in kept.labels]
        np.testing.assert_allclose([one["score"] for one in record["detections"]], kept.scores, atol=1e-5)
        np.testing.assert_allclose([one["box"] for one in record["detections"]], kept.boxes_xyxy, atol=1e-3)


def test_pictures_are_drawn_on_the_images(predicted, photos):
    assert {path.stem for path in predicted.glob("*.jpg")} == {"000000000139", "000000000042", "000000000285"}
    picture = cv2.imread(str(predicted / "000000000042.jpg"))
    assert picture.shape == (280, 160, 3)  # four times as large, to be read
    plain = cv2.resize(cv2.imread(str(photos / "000000000042.png")), (160, 280), interpolation=cv2.INTER_CUBIC)
    assert np.mean(np.abs(picture.astype(int) - plain) > 40) > 0.02


def test_coco_files_go_together_and_hold_every_detection(predicted, weights, photos):
    from pycocotools.coco import COCO

    document = json.loads((predicted / "coco_images.json").read_text())
    assert [image["id"] for image in document["images"]] == [42, 139, 285]
    # Where nothing else is known, category ids start at 1 as COCO's do.
    assert document["categories"][3] == {"id": 4, "name": "class 3"}
    coco = COCO()
    coco.dataset = {**document, "annotations": []}
    coco.createIndex()
    results = coco.loadRes(str(predicted / "coco_results.json"))
    detector = Detector.from_weights(weights, variant="tiny")
    (found,) = detector(photos / "000000000139.jpg")
    mine = results.loadAnns(results.getAnnIds(imgIds=[139]))
    assert len(mine) == len(found)
    best = max(mine, key=lambda result: result["score"])
    x1, y1, x2, y2 = found.boxes_xyxy[0]
    np.testing.assert_allclose(best["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1e-3)
    assert best["category_id"] == detector.category_ids[found.labels[0]]


def test_views_by_flags_are_those_of_python(weights, photos, tmp_path):
    file = photos / "000000000139.jpg"
    assert predict(tmp_path, "--weights", weights, "--flip", "--scales=1,1.5", "--min_score=0", file) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    tta = TestTimeAugmentation(flip=True, scales=(1.0, 1.5))
    (found,) = Detector.from_weights(weights, variant="tiny", tta=tta)(file)
    np.testing.assert_allclose([one["score"] for one in record["detections"]], found.scores, atol=1e-5)
    (plain,) = Detector.from_weights(weights, variant="tiny")(file)
    assert np.max(np.abs(found.scores - plain.scores)) > 1e-3


def test_class_names_from_a_file(weights, photos, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\n\ndog\neel\nfox\ngnu\n")
    out = tmp_path / "out"
    assert predict(out, "--weights", weights, "--classes", names, "--min_score=0", photos / "000000000139.jpg") == 0
    (record,) = json.loads((out / "predictions.json").read_text())
    assert {one["label"] for one in record["detections"]} <= {"ant", "bee", "cat", "dog", "eel", "fox", "gnu"}
    names.write_text('["ant", "bee"]')
    assert read_class_names(names) == ["ant", "bee"]


def test_unreadable_images_are_left_out_and_named(weights, photos, tmp_path, capsys):
    bad = tmp_path / "7.png"
    bad.write_bytes(b"no image")
    good = photos / "000000000139.jpg"
    assert predict(tmp_path / "out", "--weights", weights, bad, good) == 1
    assert "left out: " in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (record["file_name"], record["image_id"]) == (str(good), 139)


def test_ids_are_places_where_a_name_is_no_number_or_comes_twice():
    ids = lambda *names: image_ids_of([pathlib.Path(name) for name in names])  # noqa: E731
    assert ids("a/000000000139.jpg", "COCO_train2014_000000000009.jpg") == [139, 9]
    assert ids("a/7.jpg", "b/7.jpg") == [1, 2]
    assert ids("5.jpg", "five.jpg") == [1, 2]


def test_patterns_and_folders_give_sorted_images(photos):
    names = lambda *arguments: [path.name for path in find_images([str(photos / name) for name in arguments])]  # noqa: E731
    assert names("") == ["000000000042.png", "000000000139.jpg"]
    assert names("**/*.jpg") == ["000000000139.jpg", "000000000285.jpg"]
    assert names("*9.jpg", "000000000042.png") == ["000000000139.jpg", "000000000042.png"]


def test_every_file_has_a_picture_of_its_own():
    names = lambda *files: picture_names([pathlib.Path(file) for file in files])  # noqa: E731
    assert names("a.png", "b.png") == ["a.jpg", "b.jpg"]
    assert names("x/a.jpg", "y/a.jpg", "z/a_2.jpg") == ["a_1.jpg", "a_2_.jpg", "a_2.jpg"]
    assert names("a_2.jpg", "a_2_.jpg", "x/a.jpg", "y/a.jpg") == ["a_2.jpg", "a_2_.jpg", "a_3.jpg", "a_4.jpg"]
    many = names(*(f"{folder}/{stem}.jpg" for folder in range(100) for stem in range(100)))
    assert len(set(many)) == 10_000


@pytest.mark.parametrize("out", [".", "photos", "elsewhere"])
def test_images_that_are_read_are_never_drawn_over(weights, photos, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "photos"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.jpg").write_bytes((photos / "000000000139.jpg").read_bytes())
    (tmp_path / "elsewhere").symlink_to("photos")
    assert predict(out, "--weights", weights, "photos" if out != "." else "a.jpg") == 2
    assert f"--out={out}: a picture would overwrite an image that is read" in capsys.readouterr().err
    for folder in (".", "photos"):
        assert (tmp_path / folder / "a.jpg").read_bytes() == (photos / "000000000139.jpg").read_bytes()


ONE = ["--weights", "WEIGHTS", "--out", "o", "PHOTO"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "o", "PHOTO"], ("one of --weights=FILE and --workdir=DIR",)),
        ([*ONE, "--workdir", "w"], ("one of --weights=FILE and --workdir=DIR",)),
        (["--weights", "no.npz", "--out", "o", "PHOTO"], ("no.npz does not exist",)),
        (["--weights", "WEIGHTS", "--out", "o", "none*.jpg"], ("the pattern none*.jpg fits no image",)),
        (ONE, ("do not say", "torchvision_v1")),
        ([*ONE, "--variant=torchvisionv1"], ("did you mean 'torchvision_v1'",)),
        ([*ONE, "--variant=torchvision_v1"], ("does not fit the variant torchvision_v1",)),
        ([*ONE, "--config.eval.max_detections=3"], ("settings go with --workdir",)),
        (["--workdir", "w", "--out", "o", "PHOTO", "--norm_epsilon=0"], ("--norm_epsilon goes with --weights",)),
        ([*ONE, "--scales=1,big"], ("--scales=1,big: expected factors",)),
        ([*ONE, "--scales=0"], ("scales must be factors above 0",)),
        ([*ONE, "--batch_size=3"], ("batch size 3", "number of devices, 8")),
        ([*ONE, "--classes=no.txt"], ("--classes=no.txt cannot be read",)),
        ([*ONE, "--variant=tiny", "--classes=TWO"], ("class_names has 2 entries", "7 classes")),
    ],
)
def test_mistakes_are_one_line(weights, photos, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.json").write_text('["a", "b"]')
    given = {"WEIGHTS": weights, "PHOTO": str(photos / "000000000139.jpg"), "--classes=TWO": "--classes=two.json"}
    with devices_of_runs(8):
        assert main(["predict", *(given.get(argument, argument) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "o").exists()


def test_without_out_pictures_go_to_a_folder_of_their_own(weights, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = str(photos / "000000000139.jpg")
    assert main(["predict", "--variant=tiny", "--weights", str(weights), file]) == 0
    assert (tmp_path / "predictions" / "000000000139.jpg").is_file()


def test_workdir_from_python_is_what_predict_writes(finished_run, photos, tmp_path):
    file = photos / "000000000139.jpg"
    arguments = ["predict", "--workdir", str(finished_run), "--out", str(tmp_path), "--min_score=0", str(file)]
    assert main(arguments) == 0
    (record,) = json.loads((tmp_path / "predictions.json").read_text())
    detector = Detector.from_workdir(finished_run)
    (found,) = detector(file)
    assert detector.class_names == ("disc", "rectangle", "triangle")
    assert len(found) > 0
    np.testing.assert_allclose([one["score"] for one in record["detections"]], found.scores, atol=1e-5)


def test_view_flags_add_to_the_settings_of_a_run(finished_run, photos, tmp_path):
    file = photos / "000000000139.jpg"
    arguments = ["predict", "--workdir", str(finished_run), "--min_score=0", str(file)]
    tta = TestTimeAugmentation(flip=True, scales=(1.5,))
    (expected,) = Detector.from_workdir(finished_run, tta=tta)(file)
    for name, flags in (
        ("flip", ["--flip", "--config.eval.tta_scales=(1.5,)"]),
        ("scales", ["--scales=1.5", "--config.eval.tta_flip=true"]),
    ):
        assert main([*arguments, "--out", str(tmp_path / name), *flags]) == 0
        (record,) = json.loads((tmp_path / name / "predictions.json").read_text())
        np.testing.assert_allclose([one["score"] for one in record["detections"]], expected.scores, atol=1e-5)


def test_pixels_that_a_network_was_trained_with_cannot_differ(finished_run, photos, capsys):
    for verb in (["predict", str(photos)], ["evaluate"]):
        for setting in ("channel_order=bgr", "pixel_mean=(0.0, 0.0, 0.0)", "pixel_std=(1.0, 1.0, 1.0)"):
            assert main([*verb, "--workdir", str(finished_run), f"--config.data.{setting}"]) == 2
            assert f"the run's own data.{setting.split('=')[0]}" in capsys.readouterr().err


def test_evaluation_with_views_equals_the_detector_with_views(finished_run, tiny, tmp_path):
    settings = ["--config.eval.tta_flip=true", "--config.eval.tta_scales=(1.0, 1.5)"]
    assert main(["evaluate", "--workdir", str(finished_run), "--split=test", "--sheets=0", *settings]) == 0
    written = json.loads((finished_run / "detections_test.json").read_text())
    samples = ["samples", *tiny, "--split=test", "--out", str(tmp_path), "--count=8"]
    assert main(samples) == 0
    annotations = json.loads((tmp_path / "annotations.json").read_text())
    tta = TestTimeAugmentation(flip=True, scales=(1.0, 1.5))
    detector = Detector.from_workdir(finished_run, tta=tta)
    found = detector([tmp_path / "images" / image["file_name"] for image in annotations["images"]])
    for image, one in zip(annotations["images"], found, strict=True):
        scores = [result["score"] for result in written if result["image_id"] == image["id"]]
        assert len(scores) == len(one) > 0
        np.testing.assert_allclose(sorted(scores), sorted(one.scores.tolist()), atol=1e-5)


def test_impossible_scales_of_a_config_are_one_line(finished_run, capsys):
    assert main(["evaluate", "--workdir", str(finished_run), "--config.eval.tta_scales=(0.0,)"]) == 2
    assert "tta_scales" in capsys.readouterr().err


def test_soft_suppression_by_a_setting_keeps_more_detections(finished_run, photos, tmp_path):
    found = {}
    for suppression in ("hard", "linear", "gaussian"):
        arguments = ["predict", "--workdir", str(finished_run), "--out", str(tmp_path / suppression)]
        settings = [f"--config.eval.suppression={suppression}", "--config.eval.score_threshold=0.001"]
        settings += ["--config.eval.max_detections=300", "--config.eval.nms_iou=0.1"]
        assert main([*arguments, "--min_score=0", *settings, str(photos / "000000000139.jpg")]) == 0
        (record,) = json.loads((tmp_path / suppression / "predictions.json").read_text())
        found[suppression] = [detection["score"] for detection in record["detections"]]
    assert len(found["hard"]) > 0
    for suppression in ("linear", "gaussian"):
        # Overlapping boxes stay with a lower score; the best score is nobody's to lower.
        assert len(found[suppression]) >= len(found["hard"])
        assert found[suppression] != found["hard"]
        np.testing.assert_allclose(max(found[suppression]), max(found["hard"]), rtol=1e-6)
