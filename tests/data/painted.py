"""Images with filled boxes, each of a colour of its own, that are found again by that colour."""

import numpy as np
from hypothesis import strategies as st

from focaljax.data.example import Example

# Far apart from each other, from black and from the colour around images.
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)


def painted(size, boxes, *, labels=None, is_crowd=None, background=0, image_id=1):
    """An example whose box i has the colour `COLOURS[label]`; later ones are painted over earlier ones."""
    image = np.full((*size, 3), background, np.uint8)
    labels = list(range(len(boxes))) if labels is None else labels
    for (x1, y1, x2, y2), label in zip(boxes, labels):
        image[y1:y2, x1:x2] = COLOURS[label]
    return Example(
        image=image,
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        is_crowd=np.zeros(len(boxes), bool) if is_crowd is None else np.array(is_crowd),
        image_id=image_id,
        file_name=f"{image_id}.png",
    )


def find(image, label, *, tolerance=127):
    """The box of the pixels that are this colour, in each channel by less than half; None if there are none."""
    rows, columns = np.nonzero((np.abs(image.astype(int) - COLOURS[label]) <= tolerance).all(axis=-1))
    if not len(rows):
        return None
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@st.composite
def apart(draw, label=None):
    """An image of up to 160 px a side and two painted boxes side by side, large enough to be found when smaller."""
    height, width = draw(st.integers(48, 160)), draw(st.integers(80, 160))
    middle = width // 2
    boxes = []
    for left, right in ((0, middle), (middle, width)):
        x1, y1 = draw(st.integers(left, right - 24)), draw(st.integers(0, height - 24))
        boxes.append([x1, y1, draw(st.integers(x1 + 24, right)), draw(st.integers(y1 + 24, height))])
    return painted((height, width), boxes, labels=None if label is None else [label, label + 1])


def assert_boxes_are_where_their_pixels_are(view, labels, size, *, image=None, within=1.01):
    """Each box of a view is found again by its colour, within a pixel, or is a sliver."""
    image = view.image if image is None else image
    for box, label in zip(view.boxes_xyxy, labels):
        found = find(image, label)
        if found is not None:
            np.testing.assert_allclose(box, found, atol=within)
        else:  # interpolation leaves no pixel of a sliver more than half
            assert (box[2:] - box[:2]).min() < 3
        assert (box[:2] >= 0).all()
        assert (box[2:] <= size[::-1]).all()
        assert (box[2:] > box[:2]).all()
