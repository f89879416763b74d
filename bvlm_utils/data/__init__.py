"""Samples: drawn scenes, or files in published formats."""

from bvlm_utils.doors import door

__getattr__ = door(
    __name__, {"data.samples": ("beyond", "digest", "further", "images", "load", "names", "sized_images")}
)
