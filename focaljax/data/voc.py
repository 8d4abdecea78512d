"""Detection data in Pascal VOC's layout: a folder of images, one of XML files, and lists of names for the splits."""

import functools
import os
import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any, Literal
from xml.parsers import expat

from focaljax.data.coco import AnnotatedImages, require_folder
from focaljax.data.deadline import DATA_TIMEOUT, in_time, with_deadline
from focaljax.data.example import DataError
from focaljax.data.files import read_regular_file
from focaljax.data.repair import leaves_folder
from focaljax.data.report import DataReport

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Lists of one class (`cat_train.txt`) mark each image: object present, absent, or only difficult ones.
_CLASS_LIST_MARKS = ("1", "-1", "0")


class VocSource(AnnotatedImages):
    """A source that reads Pascal VOC's layout: `JPEGImages`, `Annotations` and `ImageSets/Main`.

    Image ids are 1-based ranks over the sorted names of the split, category ids are label + 1. The image of
    `Annotations/NAME.xml` is `NAME` with any usual suffix, else the `<filename>` in it. Faults are repaired or left
    out and reported as by `focaljax.data.coco.CocoSource`; so are XML files that are missing or invalid.

    Args:
        images: the folder of images (`JPEGImages`).
        annotations: the folder of XML files (`Annotations`).
        split: a list of names, one a line (`ImageSets/Main/train.txt`); None for every XML file in the folder.
        class_names: the class of every label; objects of other classes are left out and reported. Empty: all classes
            found in the split, sorted; give the training split's classes to every other split.
        one_based: whether pixels count from 1, as in the original VOC: 1 is subtracted from xmin and ymin, so that
            boxes are pixel edges. Most tools that write this format write edges, hence the default.
        difficult: what becomes of objects marked `difficult`: 'ignore' treats them as crowds, neither target nor
            background, and not counted in the evaluation; 'keep' takes them as objects like others.
        check_images: as for `focaljax.data.coco.CocoSource`.
        timeout: the longest wait, in seconds, for a list or an XML file, and as for `CocoSource`.

    Raises:
        DataError: if a folder or the split is missing or empty, no class is found, or no readable image remains.
        StalledError: a disk or network folder hangs.
        ValueError: if `difficult` is none of the two.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: str | os.PathLike[str],
        *,
        split: str | os.PathLike[str] | None = None,
        class_names: Sequence[str] = (),
        one_based: bool = False,
        difficult: Literal["keep", "ignore"] = "ignore",
        check_images: bool = True,
        timeout: float = DATA_TIMEOUT,
    ) -> None:
        if difficult not in ("keep", "ignore"):
            raise ValueError(f"difficult must be 'keep' or 'ignore', got {difficult!r}")
        require_folder(images, "images folder", timeout=timeout)
        require_folder(annotations, "annotations folder", timeout=timeout)
        where = os.fspath(annotations)
        listed_in = where if split is None else os.fspath(split)
        list_names = functools.partial(_all_names, where) if split is None else functools.partial(_read_split, split)
        names = in_time(list_names, timeout, what=f"list of names from {listed_in}")
        report = DataReport()
        list_images = functools.partial(_image_files, os.fspath(images))
        files = in_time(list_images, timeout, what=f"list of the files in {os.fspath(images)}")
        image_entries: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        roots = (_read_xml(where, name, image_id, report) for image_id, name in enumerate(names, start=1))
        roots = with_deadline(roots, timeout, what=f"annotation file from {where}")
        for image_id, (name, root) in enumerate(zip(names, roots, strict=True), start=1):
            if root is None:
                continue
            image_entries.append(_image_entry(root, name, image_id, files))
            objects += [_annotation(element, image_id, one_based, difficult) for element in root.findall("object")]

        found = {entry["category_id"] for entry in objects if entry["category_id"]}
        classes = tuple(class_names) or tuple(sorted(found))
        if not image_entries:
            raise DataError(
                f"none of the {len(names)} XML files named by {listed_in} can be "
                f"read; check the annotations folder {where}. Found: {'; '.join(report.lines(examples=1))}"
            )
        if not classes:
            raise DataError(f"no object with a class name in {len(names)} XML files of {where}; give class_names")
        category_id_of = {name: label + 1 for label, name in enumerate(classes)}
        for annotation_id, entry in enumerate(objects, start=1):
            entry["id"] = annotation_id
            entry["category_id"] = category_id_of.get(entry["category_id"])
        super().__init__(
            images,
            {"images": image_entries, "annotations": objects, "categories": []},
            where=where,
            class_names=classes,
            category_ids=range(1, len(classes) + 1),
            check_images=check_images,
            timeout=timeout,
            report=report,
        )


def _all_names(folder: str) -> list[str]:
    names = sorted(entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".xml"))
    if not names:
        raise DataError(f"annotations folder {folder} holds no XML file; give the folder named Annotations")
    return names


def _read_split(path: str | os.PathLike[str]) -> list[str]:
    """Returns the sorted, distinct names of a split list."""
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        lists = sorted(file.name for file in pathlib.Path(path).parent.glob("*.txt"))
        beside = f"; lists there: {', '.join(lists[:20])}" if lists else ""
        raise DataError(f"split list {os.fspath(path)} cannot be read ({reason}){beside}") from None
    names = {_name_in_line(line) for line in lines if line.strip()}
    if not names:
        raise DataError(f"split list {os.fspath(path)} is empty; expected one image name a line")
    return sorted(names)


def _name_in_line(line: str) -> str:
    """Returns the name without a class list's mark and without a file suffix."""
    parts = line.strip().rsplit(maxsplit=1)
    name = parts[0] if parts[-1] in _CLASS_LIST_MARKS and len(parts) == 2 else line.strip()
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (*_IMAGE_SUFFIXES, ".xml") else name


def _image_files(folder: str) -> dict[str, list[str]]:
    """Returns the sorted image files of a folder by their name without suffix."""
    files: dict[str, list[str]] = {}
    for file_name in sorted(entry.name for entry in os.scandir(folder)):
        stem, suffix = os.path.splitext(file_name)
        if suffix.lower() in _IMAGE_SUFFIXES:
            files.setdefault(stem, []).append(file_name)
    return files


def _read_xml(folder: str, name: str, image_id: int, report: DataReport) -> ElementTree.Element | None:
    """Returns the root element of one annotation file; None, and a finding, if it cannot be used."""
    file_name = f"{name}.xml"
    if leaves_folder(file_name):
        report.add("name that leads out of the annotations folder: image skipped", file_name, image_id=image_id)
        return None
    try:
        content = read_regular_file(os.path.join(folder, file_name))
    except FileNotFoundError:
        report.add("annotation file missing: image skipped", file_name, image_id=image_id)
        return None
    except OSError:
        report.add("annotation file cannot be opened: image skipped", file_name, image_id=image_id)
        return None
    try:
        root = parse_xml(content)
    except (expat.ExpatError, ValueError, LookupError):
        report.add(
            "annotation file is not valid XML, or has a document type: image skipped", file_name, image_id=image_id
        )
        return None
    if root.tag != "annotation":
        report.add("annotation file without an <annotation> element: image skipped", file_name, image_id=image_id)
        return None
    return root


def parse_xml(content: bytes) -> ElementTree.Element:
    """Returns the root element of an XML document without a document type.

    A document type is where entities are declared, which can make a small file grow without bounds or read other
    files; annotations have no use for one.

    Args:
        content: the file's bytes.

    Raises:
        xml.parsers.expat.ExpatError: if the document is not well-formed.
        ValueError: if it declares a document type, or an encoding of several bytes a character other than UTF-8 and
            UTF-16.
        LookupError: if it declares an encoding that is none.

    Example:
        >>> parse_xml(b"<annotation><folder>a</folder></annotation>").findtext("folder")
        'a'
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.Parse(content, True)
    return builder.close()


def _refuse_doctype(*_: object) -> None:
    raise ValueError("the document declares a document type")


def _image_entry(root: ElementTree.Element, name: str, image_id: int, files: dict[str, list[str]]) -> dict[str, Any]:
    """Returns one image in COCO's form; without a size if the XML states none."""
    written = os.path.basename((root.findtext("filename") or "").strip().replace("\\", "/"))
    # Files are often renamed without their XML, so what is written inside counts last.
    candidates = files.get(name) or files.get(os.path.splitext(written)[0]) or [f"{name}.jpg"]
    return {
        "id": image_id,
        "file_name": written if written in candidates else candidates[0],
        "height": _number(root.findtext("size/height")),
        "width": _number(root.findtext("size/width")),
    }


def _annotation(
    element: ElementTree.Element, image_id: int, one_based: bool, difficult: Literal["keep", "ignore"]
) -> dict[str, Any]:
    """Returns one object in COCO's form, with the class name in place of its category id."""
    corners = [_number(element.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")]
    bbox: list[float] | None = None
    if all(corner is not None for corner in corners):
        x1, y1, x2, y2 = (float(corner or 0.0) for corner in corners)
        if one_based:
            x1, y1 = x1 - 1.0, y1 - 1.0
        bbox = [x1, y1, x2 - x1, y2 - y1]
    is_difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return {
        "image_id": image_id,
        "category_id": (element.findtext("name") or "").strip() or None,
        "bbox": bbox,
        "iscrowd": int(is_difficult and difficult == "ignore"),
    }


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
