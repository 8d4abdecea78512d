"""focaljax: object detection with focal loss in JAX.

`focaljax.losses` and `focaljax.detection` need nothing but jax; the other rooms need `pip install focaljax[train]`.
"""

__version__ = "0.1.0"
