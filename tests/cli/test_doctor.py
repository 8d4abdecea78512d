"""The data doctor: planted faults are found, promised coverage is what the pasted overrides give, the page is whole."""

import pathlib
import re
import shlex
import subprocess
import sys

import cv2
import pytest

from focaljax.cli import doctor, doctor_anchors
from focaljax.cli.config import load_config
from focaljax.cli.doctor_anchors import examine_anchors
from focaljax.cli.main import main
from focaljax.data.coco import CocoSource
from focaljax.data.statistics import read_split_boxes, resized
from tests.browser import assert_fit_to_be_read, look_at, needs_chromium
from tests.cli.test_usage import fails
from tests.data.coco_folders import noise, write_coco
from tests.evaluation.test_page import Parsed

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ["--config", str(ROOT / "tests/cli/tiny.py"), "--config.data.source=coco"]
NAMES = ("cat", "dog", "<b>newt</b>")


def tall(image, label, x):
    """A box of 8 x 40 pixels, which anchors of ratios up to 2 do not meet."""
    return image, label, (x, 4, 8, 40)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Arguments that name a data set with one fault of each kind."""
    root = tmp_path_factory.mktemp("faulty")
    images = [noise(seed) for seed in range(20)]
    images[4] = images[3]
    boxes = [tall(image, 0, 10) for image in range(19)]  # the last image has none
    boxes += [tall(image, 0, 30) for image in range(19)] + [tall(10, 0, 50), tall(11, 0, 50)]
    boxes += [(2, 1, (30, 20, 20, 20)), (2, 1, (30, 20, 20, 20.2)), (5, 0, (9, 9, 0, 4)), (6, 1, (60, 40, 9, 4))]
    boxes += [(7, 1, (30, 20, 0.5, 20))]
    write_coco(root / "train", images, boxes, NAMES)
    smaller = cv2.resize(noise(9), (48, 36), interpolation=cv2.INTER_AREA)
    write_coco(root / "val", [noise(40), noise(8), smaller], [tall(0, 1, 10), tall(1, 0, 5)], NAMES)
    folders = [
        f"--config.data.{split}.{key}={root}/{split}/{name}"
        for split in ("train", "val")
        for key, name in (("images", "images"), ("annotations", "annotations.json"))
    ]
    return [*CONFIG, *folders, "--config.data.max_boxes=2"]


@pytest.fixture(scope="module")
def seen(faulty, tmp_path_factory):
    """What the doctor printed of it, and the folder with its page."""
    out = tmp_path_factory.mktemp("out") / "doctor"
    capture = pytest.MonkeyPatch()
    lines = []
    with capture.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr("sys.stdout", type("Written", (), {"write": lines.append, "flush": lambda _: None})())
        assert main(["doctor", *faulty, "--out", str(out), "--samples", "5"]) == 0
    return "".join(map(str, lines)), out


@pytest.mark.parametrize(
    "finding",
    [
        "fault train: 1 x box of zero or negative area: dropped: 5.png (image 5, annotation 43)",
        "fault train: 1 x box outside the image: clipped: 6.png",
        "fault train: 1 x object annotated twice: 2.png",
        "fault train: 1 of 44 boxes have a side below one pixel",
        "fault 1 x image stands twice in train: 3.png = 4.png",
        "fault 1 x image stands in both train and val (leakage): 8.png = 1.png",
        "fault train: 1 of 3 classes have no object: <b>newt</b>",
        "fault train: 4 images have more than data.max_boxes=2 boxes",
        "suspect val: 1 of 3 classes have no object: <b>newt</b>",
        "suspect 1 x group of images that look almost the same, in train and val: 9.png = 2.png",
        "hint train: 1 of 20 images have no object",
        "hint train: classes are out of balance: 40 of cat, 4 of dog, 10 to 1",
        "see the overrides below",
    ],
)
def test_planted_fault_is_found(seen, finding):
    assert finding in re.sub(" +", " ", seen[0])


def test_pasted_overrides_are_accepted_and_give_the_coverage_that_was_promised(seen, faulty, capsys):
    (row,) = (line for line in seen[0].splitlines() if "with an anchor at IoU 0.5" in line)
    before, after = re.findall(r"[\d.]+%", row)
    assert float(before[:-1]) < 20
    assert float(after[:-1]) > 90
    (pasted,) = (line for line in seen[0].splitlines() if line.strip().startswith("--config.anchors"))
    assert main(["doctor", *faulty, *shlex.split(pasted), "--nopixels", "--split", "train"]) == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if "with an anchor at IoU 0.5" in line)
    assert re.findall(r"[\d.]+%", row)[0] == after
    assert "no other anchors are proposed" in shown


def test_images_that_cannot_be_as_large_as_multi_scale_training_asks_are_counted(faulty, capsys):
    # 64 x 48 px fill 64 x 64 with a shorter side of 48.
    for sides, found in (("(32, 60)", True), ("(32, 48)", False)):
        assert main(["doctor", *faulty, f"--config.augment.short_sides={sides}", "--nopixels", "--split=train"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        words = (
            "20 of 20 images do not fit into data.image_size with the shorter side that augment.short_sides asks for: "
        )
        assert (words + "48 px at most instead of 60" in shown) == found
        assert ("augment.short_sides" in shown) == found


def test_page_and_samples_are_whole(seen):
    shown, out = seen
    assert sorted(path.name for path in out.iterdir()) == ["doctor.html", "samples.jpg"]
    text = (out / "doctor.html").read_text()
    parsed = Parsed(text)
    assert len(parsed.named("svg")) == 3
    assert len(parsed.named("img")) == 1
    assert not parsed.named("script") + parsed.named("link") + parsed.named("b")
    assert "<b>newt</b>" in parsed.words
    words = " ".join(parsed.words)
    for line in (line for line in shown.splitlines() if line.startswith("  fault")):
        assert line.removeprefix("  fault").strip() in words
    assert re.search(r"--config.anchors.sizes='.*'", words)
    # Five images of 64 px, enlarged, four in a row: two rows.
    height, width = cv2.imread(str(out / "samples.jpg")).shape[:2]
    assert width > 4 * 64
    assert 64 < height < width


@needs_chromium
def test_page_in_a_browser(seen, tmp_path):
    page = look_at(seen[1] / "doctor.html", tmp_path, width=500)
    assert_fit_to_be_read(page)
    assert len(page.plots) == 3
    assert len(page.images) == 1
    assert "<b>newt</b>" in page.text


def test_without_pixels_no_image_is_decoded(faulty, monkeypatch, capsys):
    monkeypatch.setattr(CocoSource, "__getitem__", lambda *_: pytest.fail("an image was decoded"))
    assert main(["doctor", *faulty, "--nopixels"]) == 0
    shown = capsys.readouterr().out
    assert "duplicate images were not looked for" in shown
    assert "stands" not in shown


def test_damaged_image_is_found(tmp_path, capsys):
    write_coco(tmp_path / "train", [noise(0), noise(1)], [tall(0, 0, 3), tall(1, 0, 3)])
    damaged = tmp_path / "train/images/1.png"
    content = bytearray(damaged.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)  # beginning and end stay whole, so it shows when it is decoded
    damaged.write_bytes(content)
    folders = [f"--config.data.train.images={tmp_path}/train/images"]
    folders += [f"--config.data.train.annotations={tmp_path}/train/annotations.json"]
    assert main(["doctor", *CONFIG, *folders]) == 0
    assert "train: 1 x image cannot be decoded: 1.png" in capsys.readouterr().out


def test_split_without_objects_has_no_anchors_to_fit(tmp_path, capsys):
    write_coco(tmp_path / "train", [noise(0), noise(1)], [])
    folders = [f"--config.data.train.images={tmp_path}/train/images"]
    folders += [f"--config.data.train.annotations={tmp_path}/train/annotations.json"]
    assert main(["doctor", *CONFIG, *folders, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 images have no object" in shown
    assert "--config.anchors" not in shown
    assert (tmp_path / "out/doctor.html").is_file()


def folders_of(root, *splits):
    return [
        f"--config.data.{split}.{key}={root}/{split}/{name}"
        for split in splits
        for key, name in (("images", "images"), ("annotations", "annotations.json"))
    ]


def test_splits_have_the_same_classes_without_the_training_split_too(tmp_path, capsys):
    write_coco(tmp_path / "val", [noise(0), noise(1)], [tall(0, 0, 3), tall(1, 1, 3)])
    write_coco(tmp_path / "test", [noise(2)], [tall(0, 0, 3)], names=("cat",))
    assert main(["doctor", *CONFIG, *folders_of(tmp_path, "val", "test"), "--split", "val,test"]) == 0
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(r"^cat 1 \(50.0%\) 1 1 \(100.0%\) 1 *$", shown, re.MULTILINE)
    assert re.search(r"^dog 1 \(50.0%\) 1 0 \(0.0%\) 0 *$", shown, re.MULTILINE)
    # Other classes under the same ids are an error, and no wrong table.
    write_coco(tmp_path / "train", [noise(3)], [tall(0, 0, 3)], names=("dog", "cat"))
    arguments = [*CONFIG, *folders_of(tmp_path, "train", "val")]
    fails(capsys, ["doctor", *arguments], "category id 1 is 'cat'", "whose categories agree", code=1)


def test_rare_objects_are_those_that_anchors_are_measured_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor_anchors, "_MOST_IMAGES", 3)
    write_coco(tmp_path / "train", [noise(seed) for seed in range(12)], [tall(5, 0, 3), tall(6, 0, 30)])
    arguments = [*CONFIG, *folders_of(tmp_path, "train"), "--nopixels", "--out", str(tmp_path / "out")]
    assert main(["doctor", *arguments]) == 0
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert "anchors (train, 2 of 12 images)\n" in shown
    assert "nan" not in shown
    assert (tmp_path / "out/doctor.html").is_file()


def test_class_on_exactly_nine_tenths_of_the_images_is_expected_on_all(tmp_path, capsys):
    write_coco(tmp_path / "train", [noise(seed) for seed in range(10)], [tall(image, 0, 3) for image in range(9)])
    assert main(["doctor", *CONFIG, *folders_of(tmp_path, "train"), "--nopixels"]) == 0
    assert "1 of 10 images have no cat, which is on all others: 1 in train (9.png)" in capsys.readouterr().out


def test_views_of_several_images_may_have_too_many_boxes(tmp_path, capsys):
    write_coco(tmp_path / "train", [noise(0)], [tall(0, 0, 3), tall(0, 0, 30)])
    arguments = [*CONFIG, *folders_of(tmp_path, "train"), "--nopixels", "--config.data.max_boxes=2"]
    assert main(["doctor", *arguments]) == 0
    assert "max_boxes" not in capsys.readouterr().out
    assert main(["doctor", *arguments, "--config.augment.mosaic=1.0"]) == 0
    assert "4 images in one view may have more than data.max_boxes=2 boxes" in (shown := capsys.readouterr().out)
    assert "--config.data.max_boxes=8, or 0, keeps all in a view of 4 of them" in shown


def test_names_that_the_terminal_lacks_are_escaped(tmp_path, users_env):
    write_coco(tmp_path / "train", [noise(0)], [tall(0, 0, 3)], names=("\u732b", "dog"))
    command = [sys.executable, "-m", "focaljax", "doctor", *CONFIG, *folders_of(tmp_path, "train"), "--nopixels"]
    done = subprocess.run(command, env={**users_env, "PYTHONIOENCODING": "latin-1"}, capture_output=True, check=True)
    assert b"\\u732b" in done.stdout


def test_crowd_regions_count_nowhere_in_the_coverage(tmp_path):
    write_coco(tmp_path, [noise(0)], [(0, 0, (8, 8, 16, 16)), (0, 0, (0, 0, 3, 40), True)])
    boxes = read_split_boxes(CocoSource(tmp_path / "images", tmp_path / "annotations.json"))
    config = load_config([CONFIG[0] + "=" + CONFIG[1]])
    fit = examine_anchors(config, "train", resized(boxes, height=64, width=64))
    assert fit.before.is_object.tolist() == [True, False]
    assert not fit.before.is_missed.any()
    assert not fit.before.is_unassigned.any()
    assert fit.before.matched_share == 1.0


def test_objects_too_small_for_the_finest_level_ask_for_a_larger_image(tmp_path, capsys):
    boxes = [(image, 0, (5 + 9 * number, 5 + 7 * image, 4, 4)) for image in range(4) for number in range(5)]
    write_coco(tmp_path / "train", [noise(seed) for seed in range(4)], boxes)
    folders = [f"--config.data.train.images={tmp_path}/train/images"]
    folders += [f"--config.data.train.annotations={tmp_path}/train/annotations.json"]
    assert main(["doctor", *CONFIG, *folders]) == 0
    assert "20 of these 20 are smaller than 16 px, 2 times the finest level's stride" in capsys.readouterr().out
    assert main(["doctor", *CONFIG, *folders, "--config.data.image_size=(512, 512)"]) == 0
    assert "finest level's stride" not in capsys.readouterr().out


def test_shapes_have_no_faults(tiny, capsys):
    assert main(["doctor", *tiny]) == 0
    shown = capsys.readouterr().out
    assert "images: train 16, val 9, test 8" in shown
    assert not re.search(r"^  fault", shown, re.MULTILINE)


def test_blood_cells(shared_data, monkeypatch, capsys):
    """Two boxes without area; 15 images without a red cell; two photographs of one place in two splits."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(doctor_anchors, "_MOST_IMAGES", 20)  # all 205 are for a machine that compiles as users' do
    assert main(["doctor", "--config", str(ROOT / "configs/bccd.py")]) == 0
    shown = re.sub(" +", " ", capsys.readouterr().out)
    for split, image in (("train", 305), ("val", 300)):
        assert re.search(rf"{split}: 1 x box of zero or negative area: dropped: \S+ \(image {image}", shown)
    assert re.search(r"15 of 364 images have no RBC, .*: 8 in train .*; 4 in val .*; 3 in test", shown)
    assert "in train and val: BloodImage_00038.jpg = BloodImage_00037.jpg" in shown
    assert "no other anchors are proposed" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "valid"], ("'valid' is none of train, val, test", "did you mean 'val'")),
        (["--samples", "4"], ("--samples needs --out=DIR",)),
        (["--samples", "-1"], ("samples",)),
        (["--sample", "4"], ("unknown flag --sample", "'samples'")),
        (["--out", "/dev/null/x"], ("--out: the folder /dev/null/x cannot be made: Not a directory",)),
        (["stray"], ("unexpected argument 'stray'",)),
        (["--config.anchors.sizes=(16.0,)"], ("one size a level",)),
        (["--config.matching.positive_iou=0.3"], ("negative_iou 0.4",)),
        (["--config.data.image_size=(64,)"], ("data.image_size must be (height, width)",)),
        (["--config.data.train.images="], ("needs --config.data.train.images",)),
        (["--config.optim.batch_size=0"], ("optim.batch_size must be at least 1, got 0",)),
        (["--config.data.max_boxes=-1"], ("data.max_boxes and seed must be at least 0",)),
    ],
)
def test_mistake_is_one_line(faulty, capsys, arguments, words):
    fails(capsys, ["doctor", *faulty, *arguments], *words)


def test_what_samples_need_and_lack_is_said_before_anything_is_read(faulty, tmp_path, capsys):
    arguments = [*faulty, "--split=val", "--samples=2", f"--out={tmp_path}", "--config.data.train.images="]
    fails(capsys, ["doctor", *arguments], "needs --config.data.train.images")
    assert not capsys.readouterr().out


def test_splits_come_in_their_order_and_default_to_those_named(faulty):
    config = load_config([f"--config={faulty[1]}", *faulty[2:]])
    assert doctor._splits(config, []) == ["train", "val"]
    assert doctor._splits(config, ["test", "train"]) == ["train", "test"]
