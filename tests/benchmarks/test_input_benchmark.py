"""The benchmark of the input pipeline, run once on few small images, and the parts that judge what it measures."""

import json
import pathlib
import sys

import cv2
import numpy as np
import pytest

from focaljax.data.images import decode_image
from focaljax.data.transforms import resize_and_pad
from tests.benchmarks.scripts import finished_script, imported, not_installed


@pytest.fixture(scope="module")
def modules():
    """The benchmark's modules, which find each other as a script's do."""
    with imported("input", "input_files", "report", "interleaved") as result:
        yield result


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run on three small images, where torch is not installed."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(noise, (150 - 10 * index, 112), interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / "images" / f"{index}.JPG"), image)
    flags = ["--images", str(folder / "images"), "--files", "64", "--threads", "1", "--rounds", "1", "--seed", "5"]
    return finished_script("input", folder, *flags, stand_ins={"torch": not_installed("torch")})


def test_every_contestant_that_is_installed_has_images_a_second(small_run, modules):
    rows = json.loads(small_run[1])["contestants"]
    assert [row["key"] for row in rows] == [one.key for one in modules["input"].CONTESTANTS]
    for row in rows:
        if row["key"].startswith("torch/"):
            assert row["status"] == "not installed (torch)"
            assert "images_per_second" not in row
        else:
            assert row["status"] == "ok"
            # A call is 8 batches of 16 images.
            assert row["images_per_second"] == pytest.approx(128 / (row["median_ms"] / 1e3), rel=0.01)
    assert small_run[0].stdout.count("not installed (torch)\n") == 4


def test_result_says_where_and_on_what_it_was_measured(small_run):
    result = json.loads(small_run[1])
    work = result["work"]
    assert (work["images"], work["distinct"], work["files"]) == ("given", 3, 64)
    assert (work["threads"], work["seed"], work["rounds"]) == ([1], 5, 1)
    assert result["machine"]["cpu"]
    assert {"python", "focaljax", "simplejpeg", "Pillow"} <= set(result["versions"])
    assert {"commit", "date"} <= set(result)
    # A result is published; the paths of who measured are nobody's business.
    assert str(pathlib.Path(sys.executable).parent) not in small_run[1]
    assert "/images" not in small_run[1]


def test_estimate_for_a_host_is_marked_as_such(small_run):
    (flips, all_steps) = json.loads(small_run[1])["host"]
    assert flips["is_estimate"]
    assert (flips["host_cores"], flips["target"], flips["from_threads"]) == (16, 400, 1)
    assert "estimated from 1 threads, linear in cores" in small_run[0].stdout
    assert (flips["key"], all_steps["key"]) == ("focaljax/flips/800", "focaljax/all steps/800")


def test_host_keeps_up_by_what_was_measured_with_the_most_threads(modules):
    def host(rates, cores=16):
        rows = [
            {"key": key, "threads": threads, "images_per_second": rate * factor}
            for key, factor in ((modules["input"].LARGE, 1.0), (modules["input"].LARGE_ALL_STEPS, 0.5))
            for threads, rate in rates.items()
        ]
        keys = ("images_per_second", "is_estimate", "times_target")
        return [tuple(one[key] for key in keys) for one in modules["input"].host_estimate(rows, cores, 400)]

    # 90 images/s on two threads are 720 on 16; half of that is below 400.
    assert host({1: 50.0, 2: 90.0}) == [(720.0, True, 1.8), (360.0, True, 0.9)]
    assert host({1: 50.0, 16: 480.0}) == [(480.0, False, 1.2), (240.0, False, 0.6)]
    assert host({1: 50.0, 16: 480.0}, cores=4) == [(200.0, True, 0.5), (100.0, True, 0.25)]


def test_contestants_that_give_other_images_end_the_benchmark(modules):
    def reports(sizes, means):
        ours = {"status": "ok", "answer": {"sizes": [[480, 640], [640, 427]], "means": [100.0, 90.0]}}
        theirs = {"status": "ok", "answer": {"sizes": sizes, "means": means}}
        return {"focaljax/evaluation/640/2": ours, "pil/plain/640/2": theirs}

    check = modules["input"].check_agreement
    check(reports([[480, 640], [640, 427]], [100.4, 89.7]))
    check(
        {"focaljax/evaluation/640/1": {"status": "ok"}, "torch/PIL, plain/640/1": {"status": "not installed (torch)"}}
    )
    for sizes, means, message in (
        ([[480, 640], [640, 426]], [100.0, 90.0], "pil/plain/640/2: sizes are"),
        ([[480, 640], [640, 427]], [100.0, 92.0], "image 1 has the mean 92.0, that of focaljax 90.0"),
        ([[480, 640], [640, 427]], [float("nan"), 90.0], "image 0 has the mean nan"),
    ):
        with pytest.raises(modules["report"].DisagreementError, match=message):
            check(reports(sizes, means))
    with pytest.raises(modules["interleaved"].WorkerError, match="focaljax/flips/640/1 does not run: failed: Oops"):
        check({"focaljax/flips/640/1": {"status": "failed: Oops"}})


def test_made_pictures_are_given_by_their_seed_and_no_two_are_alike(modules, tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    contents = []
    for folder, seed in zip(folders, (0, 0, 1)):
        folder.mkdir()
        contents.append([path.read_bytes() for path in modules["input"].make_pictures(folder, 2, seed)])
    assert contents[0] == contents[1]
    assert len({*contents[0], *contents[2]}) == 4
    image = decode_image(contents[0][0], file_name="a", image_id=0)
    assert image.shape == (480, 640, 3)
    assert image.std() > 20
    # Photographs of this quality take about 2 bits a pixel; a smooth picture would be decoded sooner.
    assert 1.0 < 8 * len(contents[0][0]) / (480 * 640) < 4.0


def test_files_are_links_to_the_images_in_turn(modules, tmp_path):
    paths = [tmp_path / "x.jpg", tmp_path / "y.JPEG"]
    for path in paths:
        path.write_text(path.name)
    folder = modules["input"].link_files(paths, tmp_path / "files", 5)
    files = modules["input_files"].list_images(str(folder))
    assert [pathlib.Path(path).read_text() for path in files] == ["x.jpg", "y.JPEG", "x.jpg", "y.JPEG", "x.jpg"]


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (333, 500), (3, 900), (100, 100)])
def test_peers_resize_to_the_size_of_ours(modules, height, width):
    _, size = resize_and_pad(np.zeros((height, width, 3), np.uint8), height=640, width=640)
    assert modules["input_files"].fitted_size(height, width, 640) == size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "1,0"], "'0' is no whole number of at least 1"),
        (["--files", "many"], "'many' is no whole number of at least 1"),
        (["--images", "no/such/folder"], "no JPEGs in no/such/folder"),
    ],
)
def test_wrong_flag_is_named(modules, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        modules["input"].main(flags)
    assert message in capsys.readouterr().err + str(ended.value)
