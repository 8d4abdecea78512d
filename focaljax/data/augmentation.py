"""The settings of augmentation: how a training image may be changed."""

import dataclasses
from collections.abc import Sequence

from focaljax.data.checks import checked_scale_range, is_number

_SHARES = ("horizontal_flip", "vertical_flip", "min_visible", "brightness", "contrast", "saturation", "hue")
_PROBABILITIES = ("ssd_expand", "ssd_crop", "mosaic", "mixup")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a training image may be changed; every random choice is made afresh each time that an image is read.

    The defaults flip half of the images left to right and change nothing else.

    Attributes:
        horizontal_flip: probability of a left-right flip, in 0..1.
        vertical_flip: probability of an upside-down flip, in 0..1.
        scale: smallest and largest scale relative to the size that just fits the output, `0 < smallest <= largest`;
            (0.1, 2.0) is large-scale jitter (Ghiasi et al. 2021).
        min_visible: the share of a box's area, in 0..1, that a crop must leave for the box to stay.
        brightness, contrast, saturation: each factor is drawn from `1 - value .. 1 + value`, value in 0..1.
        hue: the hue is turned by a share of the full circle drawn from `-hue .. hue`, hue in 0..0.5.
        short_sides: lengths in pixels, rising, of which the shorter side gets one at random (multi-scale training);
            less where the image would not fit the output. Empty: `scale` decides.
        longest_side: with `short_sides`, the most pixels of the longer side.
        ssd_expand: probability of SSD's zoom-out, in 0..1; see `focaljax.data.crops.expanded_window`.
        ssd_expand_max: its largest factor on both sides, at least 1.
        ssd_crop: probability of SSD's random crop, in 0..1; see `focaljax.data.crops.cropped_window`.
        mosaic: probability that an image becomes one of four in a mosaic, in 0..1; see `focaljax.data.mixing`.
        mosaic_scale: as `scale`, of the images in a mosaic; 1 is the size that just fits the whole output.
        mixup: probability that an image is blended with another, in 0..1.
        mixup_alpha: above 0; the weights of the two are drawn from Beta(alpha, alpha): large values blend evenly.

    Raises:
        ValueError: a value is not a number in its range, or `scale` is set beside `short_sides`.

    Example:
        >>> Augmentation(scale=(0.8, 1.25), brightness=0.2).horizontal_flip
        0.5
        >>> Augmentation(hue=2)
        Traceback (most recent call last):
        ...
        ValueError: augmentation: hue must be a number in 0..0.5, got 2.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    min_visible: float = 0.25
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    short_sides: tuple[int, ...] = ()
    longest_side: int = 1333
    ssd_expand: float = 0.0
    ssd_expand_max: float = 4.0
    ssd_crop: float = 0.0
    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    mixup: float = 0.0
    mixup_alpha: float = 32.0

    @property
    def flips_only(self) -> bool:
        """Whether the image that just fits is all that is needed of an image: no other scale, no other colours."""
        others = ("short_sides", "ssd_expand", "ssd_crop", "mosaic", "brightness", "contrast", "saturation", "hue")
        return self.scale == (1.0, 1.0) and not any(getattr(self, name) for name in others)

    @property
    def largest_sides(self) -> tuple[int, int] | None:
        """The longest that the shorter and the longer side of an image become under `short_sides`; None without."""
        return (self.short_sides[-1], self.longest_side) if self.short_sides else None

    @property
    def images_in_view(self) -> int:
        """How many images one training image may be made of."""
        return (4 if self.mosaic else 1) * (2 if self.mixup else 1)

    def __post_init__(self) -> None:
        for name in (*_SHARES, *_PROBABILITIES):
            value, upper = getattr(self, name), 0.5 if name == "hue" else 1.0
            if not is_number(value) or not 0 <= value <= upper:
                raise ValueError(f"augmentation: {name} must be a number in 0..{upper:g}, got {value!r}.")
        for name in ("scale", "mosaic_scale"):
            object.__setattr__(self, name, checked_scale_range(f"augmentation: {name}", getattr(self, name)))
        for name, is_in_range, expected in (
            ("ssd_expand_max", lambda value: 1 <= value <= 100, "in 1..100"),
            ("mixup_alpha", lambda value: 0 < value <= 1e6, "above 0"),
        ):
            value = getattr(self, name)
            if not is_number(value) or not is_in_range(value):
                raise ValueError(f"augmentation: {name} must be a number {expected}, got {value!r}.")
        self._check_short_sides()

    def _check_short_sides(self) -> None:
        sides, longest = self.short_sides, self.longest_side
        is_rising = isinstance(sides, Sequence) and all(map(_is_length, sides)) and list(sides) == sorted(set(sides))
        if not is_rising:
            raise ValueError(f"augmentation: short_sides must be rising pixels such as (640, 800), got {sides!r}.")
        object.__setattr__(self, "short_sides", tuple(sides))
        if not _is_length(longest) or longest < max(sides, default=1):
            raise ValueError(f"augmentation: longest_side must be pixels, at least short_sides, got {longest!r}.")
        if sides and self.scale != (1.0, 1.0):
            raise ValueError(
                f"augmentation: short_sides {tuple(sides)} and scale {self.scale} both choose the size of an image: "
                "leave one at its default, () or (1.0, 1.0)."
            )


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
