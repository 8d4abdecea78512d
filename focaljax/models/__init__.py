"""Models: the only room that knows Flax. ResNet, feature pyramid, RetinaNet.

A model is a Linen module; its variables are plain pytrees, `{'params': ..., 'batch_stats': ...}`.
"""
