import html.parser

import numpy as np
import pytest
from matplotlib.figure import Figure

from focaljax.evaluation.page import Page

HOSTILE = '<script>alert("1")</script>'


class Parsed(html.parser.HTMLParser):
    """The tags of a page that are opened, with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_page_holds_everything_and_loads_nothing(tmp_path):
    page = Page("A run")
    page.section("Curves")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2], label="loss")
    page.plot(figure, "the loss")
    page.picture(np.full((8, 12, 3), 200, np.uint8), "a picture")
    page.table(("class", "AP"), [("disk", 0.5), ("ring", 0.25)])
    page.write(tmp_path / "page.html")

    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert [attributes["href"] for attributes in parsed.named("a")] == ["#section1"]
    assert parsed.named("h2") == [{"id": "section1"}]
    assert len(parsed.named("svg")) == 1
    (picture,) = parsed.named("img")
    assert picture["src"].startswith("data:image/jpeg;base64,/9j/")
    assert {"disk", "0.5", "ring", "0.25"} <= set(parsed.words)
    for attributes in (attributes for _, attributes in parsed.tags):
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not parsed.named("link") + parsed.named("script")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_characters_that_no_encoding_knows_are_escaped(tmp_path):
    page = Page("a\ud800b")
    page.write(tmp_path / "page.html")
    assert "<h1>a\\ud800b</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="exists|Not a directory") as caught:
        Page("a page").write(tmp_path / "file" / "page.html")
    assert caught.value.filename == str(tmp_path / "file" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_table_without_header_has_no_row_for_one():
    page = Page("a page")
    page.table(("", ""), [("a", 1)])
    assert len(Parsed(page.html()).named("tr")) == 1


def test_two_plots_do_not_share_names():
    """Identifiers of an SVG hold for the whole page: those of one plot must not change the other."""
    page = Page("plots")
    for count in (1, 2):
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        for index in range(count):
            axes.plot([0, index + 1])
        page.plot(figure)
    parsed = Parsed(page.html())
    clips = [attributes["id"] for attributes in parsed.named("clippath")]
    assert len(clips) == len(set(clips)) == 2


def test_texts_of_others_are_no_markup():
    page = Page(HOSTILE)
    page.section(HOSTILE)
    page.text(HOSTILE)
    page.code(HOSTILE)
    page.table((HOSTILE,), [(HOSTILE,)])
    page.picture(np.zeros((4, 4, 3), np.uint8), HOSTILE)
    parsed = Parsed(page.html())
    assert not parsed.named("script")
    assert parsed.words.count(HOSTILE) == 9  # title, h1, link, h2, text, code, head, cell, caption
