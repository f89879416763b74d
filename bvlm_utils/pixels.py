"""How does a picture become a model's input? Batched, on the device and differentiable, from the processor's settings.

Triggers and PGD act on pictures (B, 3, H, W) in [0, 1]; this module does to them what the checkpoint's own image
processor does to files. A test holds both within 2/255. Called by `victim`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; Lanczos (1) is done as bicubic


@dataclass(frozen=True)
class PixelSettings:
    """What the image processor of a checkpoint says. Sizes are in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: str
    shortest_edge: int | None = None  # CLIP: resize the shorter side, then cut out the middle
    crop: tuple[int, int] | None = None
    fixed: tuple[int, int] | None = None  # both sides set
    pixel_range: tuple[int, int] | None = None  # Qwen: least and most pixels in all
    patch: int = 0
    merge: int = 1
    frames: int = 1


def settings(processor: Any) -> PixelSettings:
    """Read a transformers image processor."""
    size = {k: v for k, v in dict(processor.size or {}).items() if v is not None}
    common = dict(
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        mode=INTERPOLATION.get(int(processor.resample), "bicubic"),
    )
    if getattr(processor, "merge_size", None):
        return PixelSettings(
            **common, pixel_range=(size["shortest_edge"], size["longest_edge"]), patch=processor.patch_size,
            merge=processor.merge_size, frames=processor.temporal_patch_size,
        )  # fmt: skip
    limit = {k: v for k, v in dict(getattr(processor, "max_image_size", None) or {}).items() if v is not None}
    if limit:  # Idefics3 and SmolVLM, without image splitting: one square of this side
        return PixelSettings(**common, fixed=(limit["longest_edge"],) * 2)
    if "shortest_edge" in size:
        crop = {k: v for k, v in dict(processor.crop_size or {}).items() if v is not None}
        cut = (crop["height"], crop["width"]) if processor.do_center_crop else None
        return PixelSettings(**common, shortest_edge=size["shortest_edge"], crop=cut)
    return PixelSettings(**common, fixed=(size["height"], size["width"]))


def resize(images: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    if images.shape[-2:] == (height, width):
        return images
    options = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
    return F.interpolate(images, (height, width), mode=mode, **options).clamp(0, 1)


def normalised(images: torch.Tensor, s: PixelSettings) -> torch.Tensor:
    """images: (B, 3, H, W) float32 in [0, 1] -> resized, cut and normalised (B, 3, h, w)."""
    height, width = images.shape[-2:]
    if s.shortest_edge:
        scale = s.shortest_edge / min(height, width)
        images = resize(images, max(s.shortest_edge, int(height * scale)), max(s.shortest_edge, int(width * scale)), s.mode)
        if s.crop:
            images = _centre(images, *s.crop)
    elif s.pixel_range:
        images = resize(images, *smart_size(height, width, s.patch * s.merge, *s.pixel_range), s.mode)
    else:
        images = resize(images, *s.fixed, s.mode)
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (s.mean, s.std))
    return (images - mean) / std


def _centre(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def smart_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Qwen2-VL's size rule (arXiv 2409.12191, sec. 2.1): multiples of `factor`, pixels in [least, most], shape kept."""
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > most:
        shrink = math.sqrt(height * width / most)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < least:
        grow = math.sqrt(least / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return h, w


def patches(images: torch.Tensor, s: PixelSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised (B, 3, h, w) -> Qwen's rows of patches (B * n, 3 * frames * patch²) and the grids (B, 3) int64."""
    batch, channels, height, width = images.shape
    rows, columns = height // s.patch, width // s.patch
    m, p = s.merge, s.patch
    blocks = images.reshape(batch, channels, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], s.frames, p, p)  # a still picture is two equal frames
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(batch, 3)
    return blocks.reshape(batch * rows * columns, -1), grid
