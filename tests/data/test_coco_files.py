"""Annotation files and images that cannot be read: refused by name, or left out, and nothing hangs."""

import json
import os
import threading

import pytest

from focaljax.data import images as image_files
from focaljax.data.coco import CocoSource
from focaljax.data.deadline import StalledError
from focaljax.data.example import DataError, UnreadableImageError
from tests.data.conftest import kinds


def test_unchecked_source_names_a_bad_file_when_it_is_read(document, load):
    (load.folder / "c.png").unlink()
    (load.folder / "a.png").write_bytes(b"no image")
    source = load(document, check_images=False)
    assert len(source) == 3
    for index, place in ((0, r"c\.png \(image 50\)"), (1, r"a\.png \(image 9\)")):
        with pytest.raises(UnreadableImageError, match=place):
            source[index]
    document["images"][2]["width"] = 41
    with pytest.raises(UnreadableImageError, match=r"b\.png \(image 700\).*30 x 40.*30 x 41"):
        load(document, check_images=False)[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n  "annotations": [}', r"not valid JSON: .* at line 2, column 19"),
        ('{"images": [', "line 1, column 13"),
        ("", "line 1, column 1"),
        ("[]", "holds a JSON list.*results file"),
        ('{"images": [], "categories": []}', "'annotations' is missing"),
        ('{"images": [], "annotations": {}, "categories": []}', "'annotations' is a dict"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_invalid_annotation_file_is_refused_with_its_name_and_place(load, text, message):
    with pytest.raises(DataError, match=rf"annotations\.json.*{message}|annotations\.json.*({message})"):
        load(text)


def test_byte_order_mark_is_no_fault(document, load):
    load.annotations.write_text("\ufeff" + json.dumps(document))
    assert len(CocoSource(load.folder, load.annotations)) == 3


def test_paths_that_cannot_be_read_are_refused_by_name(document, load):
    with pytest.raises(DataError, match=r"nowhere\.json does not exist"):
        CocoSource(load.folder, load.folder / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        CocoSource(load.folder, load.folder)
    load.annotations.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        CocoSource(load.folder, load.annotations)
    load(document)
    with pytest.raises(DataError, match="images folder .*nowhere does not exist"):
        CocoSource(load.folder / "nowhere", load.annotations)
    with pytest.raises(DataError, match="is not a folder"):
        CocoSource(load.annotations, load.annotations)


def test_nothing_readable_is_an_error_that_says_what_was_found(document, load):
    for path in load.folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 3 images.*3 x image file missing.*c\.png \(image 50\)"):
        load(document)
    document["images"] = []
    with pytest.raises(DataError, match="lists no images"):
        load(document)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"images": [' + "9" * 5000 + "]}", '{"images": [1e999999, -' + "1" * 99_999 + "]}"],
    ids=["deep", "5000 digits", "99999 digits"],
)
def test_deep_nesting_and_endless_numbers_are_one_clear_error(load, text):
    with pytest.raises(DataError, match=r"annotations\.json") as error:
        load(text)
    assert len(str(error.value)) < 1000


def test_a_pipe_among_the_images_neither_hangs_nor_is_read(document, load):
    os.mkfifo(load.folder / "pipe.png")
    document["images"].append({"id": 1, "file_name": "pipe.png", "width": 40, "height": 30})
    assert kinds(load(document)) == ["image file cannot be opened: image skipped"]
    unchecked = load(document, check_images=False)
    with pytest.raises(UnreadableImageError, match=r"pipe\.png \(image 1\): .*"):
        unchecked[3]


def test_a_sparse_file_of_a_terabyte_is_unreadable(document, load):
    with (load.folder / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    document["images"].append({"id": 1, "file_name": "sparse.jpg", "width": 40, "height": 30})
    assert kinds(load(document)) == ["image file longer than is read: image skipped"]
    unchecked = load(document, check_images=False)
    with pytest.raises(UnreadableImageError, match=r"sparse\.jpg \(image 1\): 1099511627776 bytes, the most is"):
        unchecked[3]


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png"])
def test_name_that_no_file_can_have_is_unreadable(document, load, name):
    document["images"][0]["file_name"] = name
    source = load(document, check_images=False)
    with pytest.raises(UnreadableImageError, match="image 50"):
        source[0]
    assert source.fingerprint() != load({**document, "images": document["images"][1:]}).fingerprint()


def test_a_folder_that_hangs_is_an_error_within_the_bound(document, load, monkeypatch):
    forever = threading.Event()
    monkeypatch.setattr(image_files, "check_image_file", lambda *_, **__: forever.wait(60))
    with pytest.raises(StalledError, match=r"no check of 256 images in .* came within 0\.2 s"):
        load(document, timeout=0.2)
    forever.set()


def test_twenty_thousand_classes_are_read_at_once(document, load):
    # Names compared each with each would take minutes.
    document["categories"] += [{"id": 1000 + k, "name": f"class {k}"} for k in range(20_000)]
    assert len(load(document).class_names) == 20_003
