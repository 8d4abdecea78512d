"""Draws the images of the embedded data set `shapes`: filled shapes on textured backgrounds, with exact boxes.

Everything is a pure function of a NumPy generator, and the pixels are made with integer arithmetic (bytes, fixed point,
supersampled masks whose averages are exact), so that a seed gives the same image on every machine.
"""

import dataclasses
import math

import cv2
import numpy as np

from focaljax.data.shapes_textures import colour_unlike, degrade, draw_background, draw_clutter, ramp, stripes, tint

CLASS_NAMES = ("disc", "rectangle", "triangle", "star", "cross")
SPLITS = ("train", "val", "test")

MIN_SIDE = 12  # pixels: the shortest side of a box, after clipping to the image
MAX_SIDE_FRACTION = 0.55  # the longest side, as a fraction of the image's shorter side
MIN_INSIDE = 0.7  # a shape that reaches over the image's edge keeps this fraction of its area inside
MAX_TURN = math.radians(20)  # shapes stand upright but for this
MIN_VISIBLE = 0.6  # shapes in front leave at least this fraction of a shape to be seen
EMPTY_PROBABILITY = 0.08
PLACEMENT_TRIES = 12

# 4x4 subpixels of 8 units each: a mask's average over them is a whole number, and blending is a shift by 7 bits.
_SUBPIXELS = 4
_OPAQUE = 128
_CIRCLE = tuple((math.cos(math.tau * i / 64), math.sin(math.tau * i / 64)) for i in range(64))


@dataclasses.dataclass(frozen=True)
class Mask:
    """A rasterised shape, cut to the image.

    Attributes:
        coverage: uint8 `[h, w]`, how much of each pixel the shape covers, 0..128.
        is_covered: bool `[h, w]`, pixels of which the shape covers more than half.
        edge: uint8 `[h, w]`, how much of each pixel the shape's outline covers, 0..128; None without an outline.
        x: column of the image under `coverage[:, 0]`.
        y: row of the image under `coverage[0]`.
        box_xyxy: the tight box of the shape's part in the image, in pixels, to a quarter of a pixel.
        inside: the fraction of the shape's area that lies in the image, 0..1.
    """

    coverage: np.ndarray
    is_covered: np.ndarray
    edge: np.ndarray | None
    x: int
    y: int
    box_xyxy: tuple[float, float, float, float]
    inside: float

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the image that the mask lies on."""
        height, width = self.coverage.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)


def example_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """Returns the generator of one image; no two of (seed, split, index) share a stream.

    Args:
        seed: 0..2**64 - 1.
        split: 'train', 'val' or 'test'.
        index: the image's index in its split, 0..2**48 - 1.

    Raises:
        ValueError: if an argument is outside of these.

    Example:
        >>> int(example_rng(0, "train", 7).integers(1000)) == int(example_rng(0, "train", 7).integers(1000))
        True
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 0 <= seed < 2**64 or not 0 <= index < 2**48:
        raise ValueError(f"seed must be in 0..2**64 - 1 and index in 0..2**48 - 1, got seed {seed} and index {index}")
    # A Philox key selects a stream by itself: no hashing that could differ between versions of NumPy.
    return np.random.Generator(np.random.Philox(key=(seed << 64) | (SPLITS.index(split) << 48) | index))


def draw_example(
    rng: np.random.Generator,
    *,
    height: int = 160,
    width: int = 160,
    num_classes: int = 5,
    max_objects: int = 12,
    typical_colour: float = 0.97,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns one image with the boxes and labels of its shapes.

    The background mixes gradients, noise at several scales and stripes; thin lines, arcs and specks are clutter, behind
    the shapes and sometimes before them. Every filled shape that is drawn is annotated: a place that would hide more
    than `1 - MIN_VISIBLE` of another shape is not taken. About one image in twelve has no shapes.

    Args:
        rng: the source of every random choice; see `example_rng`.
        height: of the image in pixels, at least 32.
        width: of the image in pixels, at least 32.
        num_classes: 1..5, the first so many of `CLASS_NAMES` are drawn.
        max_objects: the largest number of shapes, 0..100.
        typical_colour: the share of shapes, 0..1, whose hue is that of their class; the others have any. At 0 only the
            form tells the classes apart, which takes a detector far longer to learn.

    Returns:
        image: uint8 `[height, width, 3]`, RGB.
        boxes_xyxy: float32 `[N, 4]`, tight boxes of the shapes' parts in the image, those hidden by others included;
            edges in steps of a quarter of a pixel, sides at least `MIN_SIDE`.
        labels: int32 `[N]`, indices into `CLASS_NAMES`.

    Raises:
        ValueError: if a size or count is outside its range.

    Example:
        >>> image, boxes, labels = draw_example(example_rng(0, "train", 0), height=96, width=128)
        >>> image.shape, boxes.shape[1], len(boxes) == len(labels)
        ((96, 128, 3), 4, True)
    """
    if min(height, width) < 32:
        raise ValueError(f"height and width must be at least 32 pixels, got {height}x{width}")
    if not 1 <= num_classes <= len(CLASS_NAMES):
        raise ValueError(f"num_classes must be in 1..{len(CLASS_NAMES)}, got {num_classes}")
    if not 0 <= max_objects <= 100:
        raise ValueError(f"max_objects must be in 0..100, got {max_objects}")
    if not 0.0 <= typical_colour <= 1.0:
        raise ValueError(f"typical_colour must be in 0..1, got {typical_colour}")

    image = draw_background(rng, height, width)
    draw_clutter(rng, image, count=int(rng.integers(0, 9)))
    wanted = 0 if rng.random() < EMPTY_PROBABILITY or max_objects == 0 else int(rng.integers(1, max_objects + 1))
    scene = _Scene(height, width)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(wanted):
        label = int(rng.integers(num_classes))
        mask = _place(rng, label, scene)
        if mask is not None:
            hue = label / len(CLASS_NAMES) if rng.random() < typical_colour else None
            paint(rng, image, mask, hue=hue)
            scene.add(mask)
            boxes.append(mask.box_xyxy)
            labels.append(label)
    if rng.random() < 0.3:
        draw_clutter(rng, image, count=int(rng.integers(1, 3)), lines_only=True)
    image = degrade(rng, image)
    return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32)


def shape_polygon(rng: np.random.Generator, label: int, side: float) -> np.ndarray:
    """Returns a shape's corners, float64 `[V, 2]` xy in pixels, turned a little, with its box centred at (0, 0).

    Args:
        rng: chooses proportions and rotation.
        label: index into `CLASS_NAMES`.
        side: the longest side of the shape's box in pixels; shapes whose shortest side would then be under `MIN_SIDE`
            are enlarged until it is not.
    """
    name = CLASS_NAMES[label]
    if name == "disc":
        flat = 0.75 + 0.25 * rng.random()
        corners = [(x, flat * y) for x, y in _CIRCLE]
    elif name == "rectangle":
        flat = 0.55 + 0.45 * rng.random()
        corners = [(-1.0, -flat), (1.0, -flat), (1.0, flat), (-1.0, flat)]
    elif name == "triangle":
        half, top = 0.75 + 0.35 * rng.random(), 0.5 * (rng.random() - 0.5)
        corners = [(-half, 0.6), (half, 0.6), (top, -1.0)]
    elif name == "star":
        inner = 0.38 + 0.1 * rng.random()
        radii = ((1.0 if i % 2 == 0 else inner, math.tau * i / 10) for i in range(10))
        corners = [(radius * math.cos(t), radius * math.sin(t)) for radius, t in radii]
    else:
        arm = 0.26 + 0.12 * rng.random()
        quarter = [(arm, 1.0), (arm, arm), (1.0, arm)]
        corners = []
        for _ in range(4):
            corners += quarter
            quarter = [(y, -x) for x, y in quarter]
    turn = MAX_TURN * (2.0 * rng.random() - 1.0)
    cos, sin = math.cos(turn), math.sin(turn)
    polygon = np.array([(cos * x - sin * y, sin * x + cos * y) for x, y in corners])
    low, high = polygon.min(0), polygon.max(0)
    # One subpixel more than MIN_SIDE, because rasterising rounds to subpixels.
    scale = max(side / (high - low).max(), (MIN_SIDE + 1 / _SUBPIXELS) / (high - low).min())
    return (polygon - (low + high) / 2) * scale


def rasterise(polygon: np.ndarray, *, height: int, width: int, edge_width: float = 0.0) -> Mask | None:
    """Returns the mask of a polygon in an image, or None if it does not touch the image.

    Args:
        polygon: float `[V, 2]`, xy in pixels of the image; corners may lie outside. It is convex, or all of it can be
            seen from the mean of its corners.
        height: of the image.
        width: of the image.
        edge_width: thickness in pixels of the outline, drawn on the shape's inner side.
    """
    (low_x, low_y), (high_x, high_y) = polygon.min(0).tolist(), polygon.max(0).tolist()
    x, y = math.floor(low_x) - 1, math.floor(low_y) - 1
    columns, rows = math.ceil(high_x) + 2 - x, math.ceil(high_y) + 2 - y
    if x + columns <= 0 or y + rows <= 0 or x >= width or y >= height:
        return None
    corners = np.floor((polygon - (x, y)) * _SUBPIXELS).astype(np.int32)
    fine = np.zeros((rows * _SUBPIXELS, columns * _SUBPIXELS), np.uint8)
    _fill(fine, polygon, corners)
    rows_in, columns_in = slice(max(0, -y), min(rows, height - y)), slice(max(0, -x), min(columns, width - x))
    # The box is that of the part inside the image, where a corner outside says nothing about the other axis.
    fine_inside = fine[_finer(rows_in), _finer(columns_in)]
    left, top, box_width, box_height = cv2.boundingRect(fine_inside)
    if box_width == 0:
        return None
    x1, y1 = x + columns_in.start + left / _SUBPIXELS, y + rows_in.start + top / _SUBPIXELS
    box = (x1, y1, x1 + box_width / _SUBPIXELS, y1 + box_height / _SUBPIXELS)
    window = rows_in, columns_in
    whole = cv2.resize(fine, (columns, rows), interpolation=cv2.INTER_AREA)
    coverage = whole[window]
    inside = 1.0 if coverage.size == whole.size else int(coverage.sum()) / int(whole.sum())
    edge = None
    if edge_width > 0:
        fine_edge = np.zeros_like(fine)
        cv2.polylines(fine_edge, [corners], True, _OPAQUE, max(1, round(2 * edge_width * _SUBPIXELS)))
        edge = cv2.resize(cv2.bitwise_and(fine_edge, fine), (columns, rows), interpolation=cv2.INTER_AREA)[window]
    return Mask(coverage, coverage > _OPAQUE // 2, edge, max(0, x), max(0, y), box, inside)


def _fill(fine: np.ndarray, polygon: np.ndarray, corners: np.ndarray) -> None:
    """Fills a polygon that is convex, or all of which is seen from its middle, into a mask of subpixels."""
    # Not cv2.fillPoly, which gives other pixels in OpenCV 4 than in OpenCV 5.
    if cv2.isContourConvex(polygon.astype(np.float32)):
        cv2.fillConvexPoly(fine, corners, _OPAQUE)
        return
    middle = (corners.sum(0) // len(corners)).tolist()
    points = corners.tolist()
    for first, second in zip(points, points[1:] + points[:1]):
        cv2.fillConvexPoly(fine, np.array([middle, first, second], np.int32), _OPAQUE)


def _finer(pixels: slice) -> slice:
    return slice(pixels.start * _SUBPIXELS, pixels.stop * _SUBPIXELS)


def paint(rng: np.random.Generator, image: np.ndarray, mask: Mask, *, hue: float | None = None) -> None:
    """Paints a shape into `image`, in place: a flat, graded or striped fill that differs from what is behind it.

    Args:
        rng: the source of every random choice.
        image: uint8 `[H, W, 3]`, RGB.
        mask: where the shape is.
        hue: of its main colour, 0..1; None for any.
    """
    target = image[mask.window]
    behind = [int(value) // target[..., 0].size for value in cv2.sumElems(target)[:3]]
    # One shape in six is allowed a low contrast.
    contrast = 26 if rng.random() < 1 / 6 else 60
    main = colour_unlike(rng, behind, contrast, hue=hue)
    style = int(rng.integers(5))
    if style < 2:
        fill = np.full(target.shape, main, np.uint8)
    else:
        other = colour_unlike(rng, behind, contrast, near=main)
        tone = ramp(rng, *mask.coverage.shape)
        if style == 4:
            tone = stripes(rng, *mask.coverage.shape, period=int(rng.integers(4, 13)))
        fill = tint(tone, [main, other])
    if mask.edge is not None:
        # An outline that is the shape's own colour, darker: one of any colour could look like the background.
        _blend(fill, np.array([value // 2 for value in main], np.uint8), mask.edge)
    _blend(target, fill, mask.coverage)


class _Scene:
    """Which shape is in front at each pixel, and how much of each shape is seen."""

    def __init__(self, height: int, width: int) -> None:
        self.height = height
        self.width = width
        self.front = np.zeros((height, width), np.uint8)  # 1 + the index of the shape in front; 0 is background
        self.total: list[int] = []
        self.visible: list[int] = []

    def hidden_by(self, mask: Mask) -> list[int]:
        """Returns for each shape how many of its visible pixels `mask` would cover."""
        covered = self.front[mask.window][mask.is_covered]
        if not covered.any():
            return [0] * len(self.total)
        return np.bincount(covered, minlength=len(self.total) + 1)[1:].tolist()

    def has_room(self, mask: Mask, least: float) -> bool:
        """Tells whether every shape that `mask` would hide a part of keeps the fraction `least` of itself."""
        return all(
            hidden == 0 or visible - hidden >= least * total
            for hidden, visible, total in zip(self.hidden_by(mask), self.visible, self.total)
        )

    def add(self, mask: Mask) -> None:
        """Puts `mask` in front of everything."""
        self.visible = [visible - hidden for visible, hidden in zip(self.visible, self.hidden_by(mask))]
        self.total.append(int(np.count_nonzero(mask.is_covered)))
        self.visible.append(self.total[-1])
        self.front[mask.window][mask.is_covered] = len(self.total)


def _place(rng: np.random.Generator, label: int, scene: _Scene) -> Mask | None:
    """Returns the mask of a new shape at a place that hides no earlier shape too much; None if none was found."""
    largest = MAX_SIDE_FRACTION * min(scene.height, scene.width)
    for attempt in range(PLACEMENT_TRIES):
        # Large shapes are tried more often than small ones, on a logarithmic scale; later attempts are smaller.
        side = MIN_SIDE * (largest / MIN_SIDE) ** (math.sqrt(rng.random()) * (1 - attempt / PLACEMENT_TRIES))
        polygon = shape_polygon(rng, label, side) + (scene.width * rng.random(), scene.height * rng.random())
        edge_width = max(1.0, 0.06 * side) if rng.random() < 0.35 else 0.0
        # Mostly apart; one shape in eight may lie over others.
        least = MIN_VISIBLE if rng.random() < 0.125 else 0.97
        mask = rasterise(polygon, height=scene.height, width=scene.width, edge_width=edge_width)
        if mask is None or mask.inside < MIN_INSIDE:
            continue
        x1, y1, x2, y2 = mask.box_xyxy
        if min(x2 - x1, y2 - y1) >= MIN_SIDE and scene.has_room(mask, least):
            return mask
    return None


def _blend(target: np.ndarray, colour: np.ndarray, coverage: np.ndarray) -> None:
    """Mixes `colour` (`[3]` or `[h, w, 3]`) into uint8 `target`, in place, by coverage 0..128."""
    weight = coverage.astype(np.int16)[..., None]
    # background + (colour - background) * coverage stays below 2**15, so that two bytes do.
    mixed = np.subtract(colour, target, dtype=np.int16)
    mixed *= weight
    mixed += _OPAQUE // 2
    mixed >>= 7
    mixed += target
    target[...] = mixed
