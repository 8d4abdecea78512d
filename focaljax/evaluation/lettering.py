"""One line of text in a picture, by its height in pixels."""

import cv2
import numpy as np

from focaljax.data.report import printable

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Characters; more would only be measured to be cut off.
_LONGEST_TEXT = 200


def text_width(text: str, text_height: int) -> int:
    """Returns how many pixels wide the line is."""
    return cv2.getTextSize(text, _FONT, _font_scale(text_height), _stroke(text_height))[0][0]


def put_text(
    picture: np.ndarray, text: str, place: tuple[int, int], text_height: int, colour: tuple[int, int, int]
) -> None:
    """Draws one line of text with its top left corner at `place` (x, y)."""
    (_, ascent), descent = cv2.getTextSize("Ag", _FONT, 1.0, 1)
    baseline = place[1] + round(text_height * ascent / (ascent + descent))
    scale = _font_scale(text_height)
    cv2.putText(picture, text, (place[0], baseline), _FONT, scale, colour, _stroke(text_height), cv2.LINE_AA)


def shortened(text: str, width: int, text_height: int) -> str:
    """Returns the text, cut and with dots where it is wider than `width` pixels.

    Names from data are drawn so that OpenCV can: it crashes on a lone surrogate, and takes line breaks as such.
    """
    text = printable(text[:_LONGEST_TEXT])
    if text_width(text, text_height) <= width:
        return text
    while text and text_width(text + "..", text_height) > width:
        text = text[:-1]
    return text + ".." if text else ""


def _font_scale(text_height: int) -> float:
    """Returns OpenCV's font scale at which a line is `text_height` pixels high, descenders included."""
    (_, ascent), descent = cv2.getTextSize("Ag", _FONT, 1.0, 1)
    return text_height / (ascent + descent)


def _stroke(text_height: int) -> int:
    return max(1, round(text_height / 18))
