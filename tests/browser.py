"""A page as headless Chromium shows it; tests that need it are skipped where there is none."""

import dataclasses
import html
import json
import pathlib
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

# Run by the browser in a copy of the page: what a person would notice, written down where `--dump-dom` shows it.
_PROBE = """
<script>
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const size = (element) => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const page = document.createElement("div");
  page.style.color = "Canvas";
  document.body.append(page);
  const behind = light(getComputedStyle(page).color);
  page.remove();
  const contrast = (element) => {
    const [low, high] = [light(getComputedStyle(element).color), behind].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const seen = {
    dark,
    width: innerWidth,
    content_width: document.documentElement.scrollWidth,
    images: all("img").map((image) => [image.complete && image.naturalWidth > 0, ...size(image)]),
    plots: all("svg").map(size),
    tables: all("table").map(size),
    links: all("a").map((link) => link.getAttribute("href")).map((to) => [to, document.querySelector(to) !== null]),
    contrast: Math.min(...all("h1, h2, p, a, th, td, pre").map(contrast)),
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !/^data:/.test(name)),
    text: document.body.innerText,
  };
  const element = document.createElement("div");
  element.id = "seen";
  element.textContent = JSON.stringify(seen);
  document.body.append(element);
});
</script>
"""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What the browser shows.

    Attributes:
        width, content_width: of the window and of what is in it, px.
        images: of each whether it was decoded, its width and height, px.
        plots, tables: width and height of each, px.
        links: target of each, and whether it is on the page.
        contrast: the smallest of a text with the page behind it (WCAG 2.2).
        fetched: addresses that were asked for beside the page itself.
        text: as a person would copy it.
        dark: whether the colours are those of a dark screen.
        picture: of the top of the page, uint8 `[H, W, 3]`, in BGR.
    """

    width: int
    content_width: int
    images: list[list[float]]
    plots: list[list[float]]
    tables: list[list[float]]
    links: list[list[object]]
    contrast: float
    fetched: list[str]
    text: str
    dark: bool
    picture: np.ndarray


def look_at(page: pathlib.Path, folder: pathlib.Path, *, width: int = 1200, dark: bool = False) -> Seen:
    """Opens a page in a window of the width, on a screen with dark colours or not; writes to the folder."""
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_PROBE}</body>"), encoding="utf-8")
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1500",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    shot = folder / "page.png"
    assert CHROMIUM is not None
    for extra in ([f"--screenshot={shot}", page.as_uri()], ["--dump-dom", probed.as_uri()]):
        done = subprocess.run([CHROMIUM, *flags, *extra], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<div id="seen">(.*?)</div>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return Seen(**json.loads(html.unescape(found[1])), picture=cv2.imread(str(shot)))


def assert_fit_to_be_read(seen: Seen) -> None:
    """What holds of every page of ours: all of it is drawn, readable, within the window, and from the page itself."""
    assert seen.content_width <= seen.width
    assert all(decoded and width > 20 and height > 20 for decoded, width, height in seen.images)
    assert all(100 < width <= seen.width and height > 50 for width, height in seen.plots)
    assert all(width > 50 and height > 20 for width, height in seen.tables)
    assert all(is_there for _, is_there in seen.links)
    assert seen.contrast > 4.5
    assert not seen.fetched
    assert seen.picture.std() > 5
