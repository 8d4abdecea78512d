"""Evaluation: COCO metrics, prediction over a data set, and drawing.

Everything here runs on the host, on numpy arrays.
"""
