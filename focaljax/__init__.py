"""focaljax: object detection with focal loss in JAX.

`focaljax.losses` and `focaljax.detection` need nothing but jax; the other rooms need `pip install focaljax[train]`.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from focaljax.detector import Detector as Detector
    from focaljax.detector import TestTimeAugmentation as TestTimeAugmentation

__version__ = "0.1.0"

# Read by OpenCV when it is first imported: see `focaljax.data.images.MAX_PIXELS`. Formats that are not measured there
# could otherwise have four times as many.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**28))

_OF_DETECTOR = ("Detector", "TestTimeAugmentation")


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the losses alone need not Flax and OpenCV.
    if name in _OF_DETECTOR:
        import focaljax.detector

        return getattr(focaljax.detector, name)
    raise AttributeError(f"module 'focaljax' has no attribute {name!r}")
