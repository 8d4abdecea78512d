"""Mutated annotations and results, read as training and evaluation read them."""

import contextlib
import copy
import os
import pathlib
import random
import xml.etree.ElementTree as ElementTree
from typing import Any

import cv2
import numpy as np
from fuzz_mutations import as_json, hostile_value, mutated_bytes, mutated_document

ENCODINGS = ["utf-8", "utf-16", "utf-7", "idna", "zlib", "undefined", "latin-1", "shift_jis", "rot13", "none_such"]


class Coco:
    """An images folder, with a pipe in it, and an annotation file."""

    suffix = ".json"

    def __init__(self, folder: pathlib.Path) -> None:
        from focaljax.data.example import DataError

        self.documented = (DataError,)
        self.images = folder / "images"
        _write_images(self.images)
        self.document = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 30, "width": 40} for i in (1, 2, 3)],
            "annotations": [
                {"id": 10 * i + k, "image_id": i, "category_id": 1 + k, "bbox": [k, 2, 9, 8 + i]}
                | {"area": 70, "iscrowd": k, "segmentation": [[1, 2, 3, 4, 5, 6]]}
                for i in (1, 2, 3)
                for k in (0, 1)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        self.base = as_json(self.document)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        content = as_json(mutated_document(rng, self.document))
        return content.replace(b": 3", b": " + b"1" * 5000, 1) if rng.random() < 0.02 else content

    def read(self, path: pathlib.Path) -> None:
        """Reads one file as training does."""
        from focaljax.data.coco import CocoSource

        use_source(CocoSource(self.images, path))


class Voc:
    """A VOC folder of three images, of which one XML file is mutated."""

    suffix = ".xml"

    def __init__(self, folder: pathlib.Path) -> None:
        from focaljax.data.example import DataError

        self.documented = (DataError,)
        self.images, self.annotations = folder / "images", folder / "xml"
        _write_images(self.images)
        self.annotations.mkdir()
        self.text = (
            "<annotation><filename>1.png</filename><size><width>40</width><height>30</height><depth>3</depth></size>"
            "<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
            "<ymax>12</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>5</xmin>"
            "<ymin>6</ymin><xmax>30</xmax><ymax>22</ymax></bndbox></object></annotation>"
        )
        self.base = self.text.encode()
        (self.annotations / "2.xml").write_bytes(self.base)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        root = ElementTree.fromstring(self.text)
        for _ in range(rng.choice((1, 2, 4))):
            parent = rng.choice(list(root.iter()))
            change = rng.randrange(5)
            if change == 0 and len(parent):
                del parent[rng.randrange(len(parent))]
            elif change == 1 and len(parent):
                parent.append(copy.deepcopy(rng.choice(parent)))
            elif change == 2:
                parent.tag = rng.choice(("object", "name", "bndbox", "size", "xmin", "annotation"))
            elif change == 3:
                for _ in range(rng.choice((3, 300, 20_000))):
                    parent = ElementTree.SubElement(parent, rng.choice(("a", "object")))
                break
            else:
                value = hostile_value(rng)
                parent.text = value if isinstance(value, str) else repr(value)[:2000]
        content = _xml_text(root).encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            content = b'<?xml version="1.0" encoding="' + rng.choice(ENCODINGS).encode() + b'"?>' + content
        if rng.random() < 0.1:
            entity = rng.choice(("<!ENTITY a SYSTEM 'file:///etc/passwd'>", "<!ENTITY a 'xxx'><!ENTITY b '&a;&a;&a;'>"))
            content = f"<!DOCTYPE annotation [{entity}]>".encode() + content.replace(b"cat", b"&a;")
        return content

    def read(self, path: pathlib.Path) -> None:
        """Reads one file as training does."""
        from focaljax.data.voc import VocSource

        (self.annotations / "1.xml").write_bytes(path.read_bytes())
        use_source(VocSource(self.images, self.annotations))


class Results:
    """A COCO results file, read and evaluated."""

    suffix = ".json"

    def __init__(self, _: pathlib.Path) -> None:
        # `evaluate_detections` documents ValueError, of which DataError is one.
        self.documented = (ValueError,)
        boxes = [[1, 2, 9, 10], [5, 6, 20, 12.5]]
        self.truth = {
            "images": [{"id": i} for i in (1, 2)],
            "categories": [{"id": 1, "name": "[/red]cat\x1b[2J"}, {"id": 2, "name": "dog\nfrog"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": i, "bbox": box} for i, box in enumerate(boxes, start=1)
            ],
        }
        self.document = [
            {"image_id": i, "category_id": k, "bbox": box, "score": 0.3 * i}
            for i in (1, 2)
            for k in (1, 2)
            for box in boxes
        ]
        self.base = as_json(self.document)

    def mutate(self, rng: random.Random) -> bytes:
        """Returns the bytes of one file."""
        if rng.random() < 0.5:
            return mutated_bytes(rng, self.base)
        return as_json(mutated_document(rng, self.document))

    def read(self, path: pathlib.Path) -> None:
        """Reads and evaluates one file, and prints the table."""
        import rich.console

        from focaljax.evaluation.coco_metrics import evaluate_detections, metrics_table, read_coco_results

        metrics = evaluate_detections(self.truth, read_coco_results(path))
        rich.console.Console(force_terminal=False).print(metrics_table(metrics, title="[/]"))


def _write_images(folder: pathlib.Path) -> None:
    folder.mkdir()
    for name in (1, 2, 3):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((30, 40, 3), 60 * name, np.uint8))
    os.mkfifo(folder / "pipe")


def _xml_text(root: ElementTree.Element) -> str:
    """Returns the XML of an element nested to any depth; characters that XML forbids are written all the same."""
    parts: list[str] = []
    waiting: list[Any] = [root]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            parts.append(part)
            continue
        parts.append(f"<{part.tag}>{(part.text or '').replace('<', '&lt;')}")
        waiting.append(f"</{part.tag}>")
        waiting.extend(reversed(part))
    return "".join(parts)


def use_source(source: Any) -> None:
    """Does with a source what a run does: images, boxes, the truth, the report on the terminal."""
    import rich.console

    from focaljax.cli.data_reports import report_data
    from focaljax.data.example import UnreadableImageError
    from focaljax.evaluation.coco_metrics import evaluate_detections, metrics_table
    from focaljax.evaluation.drawing import draw_detections

    source.fingerprint()
    report_data(source, "train")
    for index in range(min(3, len(source))):
        with contextlib.suppress(UnreadableImageError):
            example = source[index]
            assert ((example.boxes_xyxy >= 0) & (example.boxes_xyxy <= (40, 30, 40, 30))).all()
            names = source.class_names
            draw_detections(example.image, example.boxes_xyxy, example.labels, None, names, enlargement=2)
    metrics = evaluate_detections(source.ground_truth(), [])
    rich.console.Console(force_terminal=False).print(metrics_table(metrics, title="val"))
