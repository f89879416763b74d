"""Samples: drawn scenes, or files in published formats."""

from bvlm_utils.doors import door

SAMPLES = ("beyond", "further", "images", "load", "sized_images")
__getattr__ = door(__name__, {"data.samples": SAMPLES, "data.scene_rows": ("digest", "names")})
