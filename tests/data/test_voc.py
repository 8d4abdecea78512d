"""Pascal VOC folders: what is read, repaired, left out, and refused."""

import os
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from focaljax.data.coco import CocoSource
from focaljax.data.example import DataError
from focaljax.data.voc import VocSource, parse_xml

BCCD = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "bccd"


def an_object(name, xmin, ymin, xmax, ymax, difficult=0):
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name><bndbox><xmin>0</xmin>"
        f"</bndbox></part><bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin><ymin>{ymin}</ymin><ymax>{ymax}</ymax></bndbox>"
        "</object>"
    )


def an_annotation(*objects, filename="x.png", size="<size><width>40</width><height>30</height><depth>3</depth></size>"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


class Folder:
    """A VOC folder with three images: `b` with two objects, `a` with a difficult one, `c` with none."""

    def __init__(self, root):
        self.images, self.annotations, self.lists = root / "JPEGImages", root / "Annotations", root / "Main"
        for folder in (self.images, self.annotations, self.lists):
            folder.mkdir()
        self.add("a", an_annotation(an_object("dog", 2, 3, 12, 13, difficult=1)))
        self.add("b", an_annotation(an_object("dog", 5, 6, 15, 26), an_object("ant", 1, 1, 40, 30)))
        self.add("c", an_annotation())

    def add(self, name, xml, suffix=".png"):
        if suffix:
            cv2.imwrite(str(self.images / f"{name}{suffix}"), np.full((30, 40, 3), 20 * len(name), np.uint8))
        (self.annotations / f"{name}.xml").write_text(xml)

    def split(self, *lines):
        path = self.lists / "train.txt"
        path.write_text("\n".join(lines))
        return path

    def load(self, **options):
        return VocSource(self.images, self.annotations, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def findings(source):
    return [(finding.kind, finding.file_name, finding.image_id) for finding in source.report.findings]


def test_folder_is_read_in_the_order_of_names(folder):
    source = folder.load()
    assert source.report.findings == []
    assert (len(source), source.max_boxes) == (3, 2)
    assert (source.class_names, source.category_ids) == (("ant", "dog"), (1, 2))
    examples = [source[index] for index in range(3)]
    assert [(example.file_name, example.image_id) for example in examples] == [("a.png", 1), ("b.png", 2), ("c.png", 3)]
    np.testing.assert_array_equal(examples[1].boxes_xyxy, [[5, 6, 15, 26], [1, 1, 40, 30]])
    assert examples[1].labels.tolist() == [1, 0]
    assert examples[2].boxes_xyxy.shape == (0, 4)
    assert examples[1].boxes_xyxy.dtype == np.float32
    assert examples[1].image.shape == (30, 40, 3)


def test_one_based_boxes_become_pixel_edges(folder):
    example = folder.load(one_based=True)[1]
    np.testing.assert_array_equal(example.boxes_xyxy, [[4, 5, 15, 26], [0, 0, 40, 30]])


def test_difficult_objects_are_ignored_like_crowds_or_kept(folder):
    assert folder.load()[0].is_crowd.tolist() == [True]
    assert folder.load(difficult="keep")[0].is_crowd.tolist() == [False]
    first = folder.load().ground_truth()["annotations"][0]
    assert (first["iscrowd"], first["ignore"]) == (1, 1)
    with pytest.raises(ValueError, match="'keep' or 'ignore', got 'drop'"):
        folder.load(difficult="drop")


def test_ground_truth_is_in_coco_form(folder):
    truth = folder.load().ground_truth()
    assert truth["images"][1] == {"id": 2, "file_name": "b.png", "height": 30, "width": 40}
    assert truth["annotations"][1] == {
        "id": 2,
        "image_id": 2,
        "category_id": 2,
        "bbox": [5, 6, 10, 20],
        "area": 200,
        "iscrowd": 0,
        "ignore": 0,
    }
    assert truth["categories"] == [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}]


@pytest.mark.parametrize("lines", [("c", "b", "", "b"), ("c.jpg", "b.xml"), ("b  1", "c -1"), ("b\t0", " c ")])
def test_split_list_selects_images_whose_ids_are_ranks_in_it(folder, lines):
    source = folder.load(split=folder.split(*lines))
    assert [(source[index].file_name, source[index].image_id) for index in range(len(source))] == [
        ("b.png", 1),
        ("c.png", 2),
    ]
    assert source.report.findings == []


def test_class_names_fix_the_labels_and_leave_out_other_classes(folder):
    source = folder.load(class_names=("dog", "cow"))
    assert (source.class_names, source.category_ids) == (("dog", "cow"), (1, 2))
    assert source[1].labels.tolist() == [0]
    assert findings(source) == [("annotation of an unknown category: dropped", "b.png", 2)]


def test_image_is_found_by_the_name_of_its_xml_first(folder):
    folder.add("d", an_annotation(filename="b.png"), suffix=".JPG")
    folder.add("renamed", an_annotation(filename="somewhere\\original.jpeg"), suffix=None)
    cv2.imwrite(str(folder.images / "original.jpeg"), np.zeros((30, 40, 3), np.uint8))
    source = folder.load()
    assert [source[index].file_name for index in (3, 4)] == ["d.JPG", "original.jpeg"]
    assert source.report.findings == []


@pytest.mark.parametrize(
    ("xml", "kind"),
    [
        ("<annotation><object>", "annotation file is not valid XML, or has a document type: image skipped"),
        ("", "annotation file is not valid XML, or has a document type: image skipped"),
        ("<html/>", "annotation file without an <annotation> element: image skipped"),
    ],
)
def test_bad_annotation_file_is_reported_and_its_image_skipped(folder, xml, kind):
    folder.add("b", xml)
    source = folder.load()
    assert findings(source) == [(kind, "b.xml", 2)]
    assert [source[index].image_id for index in range(len(source))] == [1, 3], "the other ids do not move"


def test_missing_files_and_names_outside_are_reported(folder):
    folder.add("no_image", an_annotation(an_object("dog", 1, 1, 9, 9)), suffix=None)
    (folder.annotations.parent / "secret.xml").write_text(an_annotation())
    source = folder.load(split=folder.split("a", "no_image", "no_xml", "../secret"))
    assert sorted(findings(source)) == [
        ("annotation file missing: image skipped", "no_xml.xml", 4),
        ("image file missing: image skipped", "no_image.jpg", 3),
        ("name that leads out of the annotations folder: image skipped", "../secret.xml", 1),
    ]
    assert len(source) == 1


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
def test_missing_size_is_taken_from_the_file(folder, size):
    folder.add("c", an_annotation(an_object("dog", 1, 1, 60, 9), size=size))
    source = folder.load()
    assert ("image without an annotated size: taken from the file", "c.png", 3) in findings(source)
    np.testing.assert_array_equal(source[2].boxes_xyxy, [[1, 1, 40, 9]])


@pytest.mark.parametrize(
    ("corners", "kind"),
    [
        ((5, 5, 5, 9), "box of zero or negative area: dropped"),
        ((9, 5, 5, 9), "box of zero or negative area: dropped"),
        (("nan", 5, 9, 9), "box with NaN or infinite corners: dropped"),
        (("", 5, 9, 9), "annotation without a bbox of four numbers: dropped"),
        ((50, 5, 60, 9), "box wholly outside the image: dropped"),
        ((30, 5, 60, 9), "box outside the image: clipped"),
    ],
)
def test_faulty_box_is_repaired_or_dropped_and_named(folder, corners, kind):
    folder.add("c", an_annotation(an_object("dog", *corners)))
    source = folder.load()
    assert findings(source) == [(kind, "c.png", 3)]
    assert source.report.findings[0].annotation_id == 4
    assert len(source[2].boxes_xyxy) == ("clipped" in kind)


def test_object_without_a_name_or_box_is_reported(folder):
    folder.add("c", an_annotation("<object><name>dog</name></object>", an_object(" ", 1, 1, 5, 5)))
    assert sorted(findings(folder.load())) == [
        ("annotation of an unknown category: dropped", "c.png", 3),
        ("annotation without a bbox of four numbers: dropped", "c.png", 3),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_in_any_encoding(folder, encoding):
    bomb = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY x "aaaaaaaaaa">'
        '<!ENTITY y "&x;&x;&x;&x;">]><annotation>&y;</annotation>'
    )
    with pytest.raises(ValueError, match="document type"):
        parse_xml(bomb.encode(encoding))
    (folder.annotations / "b.xml").write_bytes(bomb.encode(encoding))
    assert findings(folder.load())[0][1:] == ("b.xml", 2)


def test_nothing_to_read_is_a_clear_error(folder, tmp_path):
    with pytest.raises(DataError, match="images folder .*nowhere does not exist"):
        VocSource(tmp_path / "nowhere", folder.annotations)
    with pytest.raises(DataError, match="annotations folder .*nowhere does not exist"):
        VocSource(folder.images, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no XML file"):
        VocSource(folder.images, folder.images)
    folder.split("a")
    with pytest.raises(DataError, match=r"nothing\.txt cannot be read.*lists there: train\.txt"):
        folder.load(split=folder.lists / "nothing.txt")
    with pytest.raises(DataError, match="is empty"):
        folder.load(split=folder.split(" ", ""))
    with pytest.raises(DataError, match="none of the 2 XML files.*2 x annotation file missing"):
        folder.load(split=folder.split("x", "y"))
    with pytest.raises(DataError, match="no object with a class name.*give class_names"):
        folder.load(split=folder.split("c"))
    (folder.images / "a.png").unlink()
    with pytest.raises(DataError, match="none of the 1 images"):
        folder.load(split=folder.split("a"))


def test_pickled_source_reads_the_same(folder):
    source = folder.load()
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[1].boxes_xyxy, source[1].boxes_xyxy)
    assert again.ground_truth() == source.ground_truth()


@pytest.mark.skipif(not BCCD.is_dir(), reason="../shared/data/bccd is absent")
@pytest.mark.parametrize(("split", "zero_area"), [("train", [2288]), ("val", [3692]), ("test", [])])
def test_bccd_is_the_same_from_xml_as_from_json(split, zero_area):
    classes = ("RBC", "WBC", "Platelets")
    lists = BCCD / "voc" / "ImageSets" / "Main"
    voc = VocSource(BCCD / "images", BCCD / "voc" / "Annotations", split=lists / f"{split}.txt", class_names=classes)
    coco = CocoSource(BCCD / "images", BCCD / "annotations" / f"instances_{split}.json")
    assert voc.class_names == coco.class_names
    assert len(voc) == len(coco)
    assert voc.report.counts() == coco.report.counts()
    assert set(coco.report.counts()) <= {"box of zero or negative area: dropped"}
    assert [finding.annotation_id for finding in coco.report.findings] == zero_area

    def by_file(source):
        truth = source.ground_truth()
        file_of = {image["id"]: image["file_name"] for image in truth["images"]}
        return sorted((file_of[a["image_id"]], a["category_id"], a["bbox"], a["area"]) for a in truth["annotations"])

    assert by_file(voc) == by_file(coco)
    index_of = {image["file_name"]: index for index, image in enumerate(coco.ground_truth()["images"])}
    for index in range(0, len(voc), 10):
        example = voc[index]
        twin = coco[index_of[example.file_name]]
        assert sorted(example.boxes_xyxy.tolist()) == sorted(twin.boxes_xyxy.tolist())
        assert sorted(example.labels.tolist()) == sorted(twin.labels.tolist())


@pytest.mark.parametrize("encoding", ["none_such", "zlib", "utf-7", "idna", "undefined"])
def test_annotation_in_an_encoding_that_is_none_is_a_finding(folder, encoding):
    (folder.annotations / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>{an_annotation()}')
    kind = "annotation file is not valid XML, or has a document type: image skipped"
    assert findings(folder.load()) == [(kind, "a.xml", 1)]


def test_a_pipe_among_the_annotations_does_not_hang(folder):
    (folder.annotations / "a.xml").unlink()
    os.mkfifo(folder.annotations / "a.xml")
    assert findings(folder.load()) == [("annotation file cannot be opened: image skipped", "a.xml", 1)]


def test_deeply_nested_annotation_is_read(folder):
    nested = "<a>" * 100_000 + "</a>" * 100_000
    folder.add("a", an_annotation(nested, an_object("dog", 2, 3, 12, 13)))
    assert len(folder.load()[0].labels) == 1
