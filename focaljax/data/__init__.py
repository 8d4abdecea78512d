"""Data: sources (COCO json, Pascal VOC, TFDS, the embedded shapes), transforms and the Grain pipeline.

Every source gives the same in-memory form, `focaljax.data.example.Example`.
"""
