import numpy as np
import pytest
from matplotlib.figure import Figure

from focaljax.evaluation.page import Page
from tests.browser import assert_fit_to_be_read, look_at, needs_chromium

pytestmark = needs_chromium


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)], ids=["desk", "narrow and dark"])
def test_page_is_drawn_readable_and_within_the_window(tmp_path, width, dark):
    page = Page("/a/very/long/path/without/any/place/to/break/" * 4)
    page.section("Curves")
    figure = Figure(figsize=(12, 4))
    figure.subplots().plot([1, 2])
    page.plot(figure, "the loss")
    page.picture(np.full((400, 1600, 3), 200, np.uint8), "a picture")
    page.section("Numbers")
    page.text("<script>document.title = 'taken over'</script>")
    page.code("focaljax train " + "--config.loss.gamma=2.0 " * 30)
    page.table([f"column {index}" for index in range(40)], [["class", *range(39)] for _ in range(200)])
    page.write(tmp_path / "page.html")

    seen = look_at(tmp_path / "page.html", tmp_path, width=width, dark=dark)
    assert_fit_to_be_read(seen)
    assert seen.dark == dark
    assert (seen.picture.mean() < 128) == dark
    assert seen.links == [["#section1", True], ["#section2", True]]
    assert "<script>document.title" in seen.text
    assert len(seen.images) == len(seen.plots) == len(seen.tables) == 1
