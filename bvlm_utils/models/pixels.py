"""Pictures (B, 3, H, W) in [0, 1] as a model's input, differentiable, within 2/255 of the checkpoint's processor."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from bvlm_utils.errors import InputError


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution (IEEE Trans. ASSP 29, 1981) with a = -0.5, as PIL has it."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# The filters that image processors ask for, by PIL's numbers: Lanczos, bilinear, bicubic.
FILTERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0),
    2: lambda x: np.clip(1 - np.abs(x), 0, None),
    3: _bicubic,
}

# Pictures brought to the longest edge together: SmolVLM makes 2048 pixels of any side, 50 MB a picture.
LARGE_AT_ONCE = 8


@dataclass(frozen=True)
class PixelSettings:
    """What the image processor of a checkpoint says. Sizes are in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: int
    shortest_edge: int | None = None  # CLIP: resize the shorter side, then cut out the middle
    crop: tuple[int, int] | None = None
    longest_edge: int | None = None  # Idefics3: resize the longer side before both sides are set
    fixed: tuple[int, int] | None = None  # both sides set
    pixel_range: tuple[int, int] | None = None  # Qwen: least and most pixels in all
    patch: int = 0
    merge: int = 1
    frames: int = 1


def settings(processor: Any) -> PixelSettings:
    """Read a transformers image processor; InputError where it asks for a filter that is not offered here."""
    size, limit, crop = (dict(getattr(processor, name, None) or {}) for name in ("size", "max_image_size", "crop_size"))
    size = {side: length for side, length in size.items() if length is not None}
    filter = int(processor.resample)
    if filter not in FILTERS:
        raise InputError(
            f"The image processor resizes with PIL's filter {filter}; 1 (Lanczos), 2 (bilinear), 3 (bicubic) are known."
        )
    common = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std), "filter": filter}
    if getattr(processor, "merge_size", None):
        common |= {"patch": processor.patch_size, "merge": processor.merge_size}
        edges = (size["shortest_edge"], size["longest_edge"])
        return PixelSettings(**common, pixel_range=edges, frames=processor.temporal_patch_size)
    if limit.get("longest_edge"):  # Idefics3 and SmolVLM, without image splitting: one square of this side
        return PixelSettings(**common, longest_edge=size.get("longest_edge"), fixed=(limit["longest_edge"],) * 2)
    if "shortest_edge" in size:
        cut = (crop["height"], crop["width"]) if processor.do_center_crop else None
        return PixelSettings(**common, shortest_edge=size["shortest_edge"], crop=cut)
    return PixelSettings(**common, fixed=(size["height"], size["width"]))


def normalised(images: torch.Tensor, s: PixelSettings) -> torch.Tensor:
    """images: (B, 3, H, W) float32 in [0, 1] -> resized, cut and normalised (B, 3, h, w)."""
    parts = []
    for part in images.split(LARGE_AT_ONCE if s.longest_edge else len(images)):
        for height, width in sizes(*images.shape[-2:], s):
            part = resize(part, height, width, s.filter)
        parts.append(part)
    images = torch.cat(parts)
    if s.crop:
        top, left = ((side - cut) // 2 for side, cut in zip(images.shape[-2:], s.crop, strict=True))
        images = images[..., top : top + s.crop[0], left : left + s.crop[1]]
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (s.mean, s.std))
    return (images - mean) / std


def sizes(height: int, width: int, s: PixelSettings) -> list[tuple[int, int]]:
    """The sizes that a picture is brought to, one after the other."""
    if s.shortest_edge:
        short, long = sorted((height, width))
        long = s.shortest_edge * long // short
        return [(s.shortest_edge, long) if height <= width else (long, s.shortest_edge)]
    if s.pixel_range:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        return [smart_resize(height, width, s.patch * s.merge, *s.pixel_range)]
    steps = [s.fixed]
    if s.longest_edge:  # transformers' rule: the shorter side follows, and is made even
        most, ratio = s.longest_edge, width / height
        follows = int(most / ratio) if width >= height else int(most * ratio)
        follows = max(follows + follows % 2, 1)
        steps.insert(0, (follows, most) if width >= height else (most, follows))
    return steps


def resize(images: torch.Tensor, height: int, width: int, filter: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (B, 3, height, width): rows, then columns, cut off after each, as PIL does."""
    if images.shape[-1] != width:
        weights = _weights(images.shape[-1], width, filter).to(images)
        images = (images @ weights.T).clamp(0, 1)
    if images.shape[-2] != height:
        weights = _weights(images.shape[-2], height, filter).to(images)
        images = (weights @ images).clamp(0, 1)
    return images


@lru_cache(maxsize=32)
def _weights(old: int, new: int, filter: int) -> torch.Tensor:
    """What each of `old` pixels adds to each of `new` ones: (new, old) float64, rows sum to 1."""
    scale = old / new
    width = max(scale, 1.0)  # a smaller picture averages over what it leaves out
    centres = (np.arange(new)[:, None] + 0.5) * scale
    weights = FILTERS[filter]((np.arange(old)[None] + 0.5 - centres) / width)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


def patches(images: torch.Tensor, s: PixelSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised (B, 3, h, w) -> Qwen's rows of patches (B * n, 3 * frames * patch²), grids (B, 3) int64."""
    batch, _, height, width = images.shape
    rows, columns = height // s.patch, width // s.patch
    m, p = s.merge, s.patch
    blocks = images.reshape(batch, 3, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    # a still picture is a film of equal frames
    blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], s.frames, p, p)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(batch, 3)
    return blocks.reshape(batch * rows * columns, -1), grid
