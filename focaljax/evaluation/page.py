"""An HTML page in one file: text, tables, plots and pictures, with nothing to load from elsewhere."""

import base64
import html
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from focaljax.evaluation.whole_files import write_whole

if TYPE_CHECKING:  # which would look for fonts whenever a run begins
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --mark: light-dark(#1b5e8c, #7db9e2); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1, h2, p, a, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; }
nav a { margin-right: 1rem; }
a { color: var(--mark); }
figure { margin: 1rem 0; overflow-x: auto; }
figure img, figure svg { max-width: 100%; height: auto; background: #fff; }
figcaption { opacity: .75; }
.scroll { max-height: 32rem; overflow: auto; }
"""


class Page:
    """A page that grows from top to bottom; every text is escaped, wherever it comes from.

    Example:
        >>> page = Page("Cells")
        >>> page.section("Counts")
        >>> page.table(("class", "boxes"), [("<red>", 3)])
        >>> "<td>&lt;red&gt;</td><td>3</td>" in page.html()
        True
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._sections: list[str] = []
        self._parts: list[str] = []

    def section(self, title: str) -> None:
        """Begins a section, which the links at the top lead to."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="section{len(self._sections)}">{html.escape(title)}</h2>')

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """Adds lines to be copied, as they are."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]], *, is_words: bool = False) -> None:
        """Adds a table; a long one scrolls within the page. A header without a word is none.

        All columns but the first hold numbers, or else words.
        """
        kind = ' class="words"' if is_words else ""
        cells = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
        head = f"<thead><tr>{cells}</tr></thead>\n" if any(header) else ""
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>\n" for row in rows)
        self._parts.append(f'<div class="scroll"><table{kind}>{head}<tbody>{body}</tbody></table></div>')

    def plot(self, figure: "Figure", caption: str = "") -> None:
        """Adds a figure of matplotlib, drawn as SVG."""
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        self._figure(text.getvalue().partition("<svg")[2].join(("<svg", "")), caption)

    def picture(self, image: np.ndarray, caption: str = "") -> None:
        """Adds an image, uint8 `[H, W, 3]` in RGB, as JPEG."""
        encoded = base64.b64encode(encode_jpeg(image)).decode()
        self._figure(f'<img alt="{html.escape(caption)}" src="data:image/jpeg;base64,{encoded}">', caption)

    def html(self) -> str:
        """Returns the whole page."""
        links = "".join(
            f'<a href="#section{index}">{html.escape(title)}</a>' for index, title in enumerate(self._sections, start=1)
        )
        title = html.escape(self._title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n<nav>{links}</nav>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the page to a file; an existing one is replaced.

        Raises:
            OSError: it cannot be written.
        """
        # Names from JSON files may have characters that no encoding knows.
        write_whole(path, self.html().encode("utf-8", "backslashreplace").decode())

    def _figure(self, content: str, caption: str) -> None:
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{content}{below}</figure>")


def encode_jpeg(image: np.ndarray) -> bytes:
    """Returns an image, uint8 `[H, W, 3]` in RGB, as the content of a JPEG file.

    Raises:
        ValueError: it is no image.
    """
    import cv2

    written, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    if not written:
        raise ValueError(f"an image of shape {image.shape} and type {image.dtype} cannot be written as JPEG")
    return data.tobytes()
