"""Samples: drawn scenes, or files in published formats."""

from bvlm_utils.doors import door

NAMES = ("beyond", "digest", "further", "images", "load", "names", "sized_images")
__getattr__ = door(__name__, {"data.samples": NAMES})
