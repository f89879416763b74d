"""Pictures (B, 3, H, W) in [0, 1] as a model's input, differentiable, within 2/255 of the checkpoint's processor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isclose
from typing import Any

import numpy as np
import torch

from bvlm_utils.checks import brief, is_number
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
LARGEST_SIDE, LARGEST_LEVEL = 10**5, 10**9
# What is read of an image processor.
ASKED = ("size", "max_image_size", "crop_size", "resample", "do_resize", "do_center_crop", "do_pad", "do_rescale",
         "rescale_factor", "do_normalize", "image_mean", "image_std", "patch_size", "merge_size",
         "temporal_patch_size")  # fmt: skip


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


def settings(processor: Any, owner: str = "The image processor") -> PixelSettings:
    """The settings of a transformers image processor; InputError for what is not done here. owner: whose it is."""

    def refuse(name: str, value: Any, rule: str) -> None:
        raise InputError(f"{owner} has {name} {brief(value)}; it must be {rule}.")

    def whole(name: str, value: Any, most: int = LARGEST_SIDE) -> int:
        if not is_number(value, 1, most, whole=True):
            refuse(name, value, f"a whole number from 1 to {most}")
        return value

    def sides(name: str, needed: tuple[str, ...], most: int = LARGEST_SIDE) -> tuple[int, ...]:
        if not all(side in tables[name] for side in needed):
            refuse(name, tables[name], f"a table with {' and '.join(needed)}")
        return tuple(whole(f"{name}, {side},", tables[name][side], most) for side in needed)

    options = {name: getattr(processor, name, None) for name in ASKED}
    tables = {name: _table(options[name]) for name in ("size", "max_image_size", "crop_size")}
    for name in [name for name, table in tables.items() if table is None]:
        refuse(name, options[name], "a table of sides in pixels")
    if not is_number(options["resample"], min(FILTERS), max(FILTERS), whole=True):
        refuse("resample", options["resample"], "a filter of PIL's: 1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
    if not _flag(options, "do_resize", owner, usual=True):
        refuse("do_resize", False, "true: pictures of any size are brought to one")
    merges, limited = bool(options["merge_size"]), "longest_edge" in tables["max_image_size"]
    if _flag(options, "do_pad", owner) and not limited:  # Idefics3 pads several to one size, which they have here
        refuse("do_pad", True, "false: pictures are not padded")
    mean, std = normalisation(options, owner)
    common = {"mean": mean, "std": std, "filter": int(options["resample"])}
    if merges:
        patch, merge = (whole(name, options[name]) for name in ("patch_size", "merge_size"))
        edges = sides("size", ("shortest_edge", "longest_edge"), LARGEST_SIDE**2)
        if edges[0] > edges[1]:
            refuse("size", tables["size"], "a table whose shortest_edge is not above its longest_edge")
        frames = whole("temporal_patch_size", options["temporal_patch_size"])
        return PixelSettings(**common, patch=patch, merge=merge, pixel_range=edges, frames=frames)
    if limited:  # Idefics3 and SmolVLM, without image splitting: one square of this side
        longest = sides("size", ("longest_edge",))[0] if tables["size"] else None
        return PixelSettings(**common, longest_edge=longest, fixed=sides("max_image_size", ("longest_edge",)) * 2)
    shortest = "shortest_edge" in tables["size"]
    size = sides("size", ("shortest_edge",)) * 2 if shortest else sides("size", ("height", "width"))
    cut = sides("crop_size", ("height", "width")) if _flag(options, "do_center_crop", owner) else None
    if cut and any(side > whole_side for side, whole_side in zip(cut, size, strict=True)):
        refuse("crop_size", tables["crop_size"], f"no larger than its size {brief(tables['size'])}")
    return PixelSettings(**common, crop=cut, **({"shortest_edge": size[0]} if shortest else {"fixed": size}))


def normalisation(options: Mapping[str, Any], owner: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, which pixels in [0, 1] are normalised by. options: the settings of an image
    processor, which may scale levels by another factor than 1/255. InputError names a bad one.
    """
    mean, std = (0.0,) * 3, (1.0,) * 3
    if _flag(options, "do_normalize", owner, usual=True):
        mean, std = (options.get(name) for name in ("image_mean", "image_std"))
        for name, values, low in (("image_mean", mean, -LARGEST_LEVEL), ("image_std", std, 1 / LARGEST_LEVEL)):
            listed = isinstance(values, list | tuple) and len(values) == 3
            if not listed or not all(is_number(value, low, LARGEST_LEVEL) for value in values):
                above = " above 0" if low > 0 else ""
                raise InputError(f"{owner} has {name} {brief(values)}; it must be a list of three numbers{above}.")
    factor = options.get("rescale_factor") if _flag(options, "do_rescale", owner, usual=True) else 1.0
    factor = 1 / 255 if factor is None else factor
    if not is_number(factor, 1 / LARGEST_LEVEL, LARGEST_LEVEL):
        raise InputError(f"{owner} has rescale_factor {brief(factor)}; it must be a number above 0, usually 1/255.")
    scale = 1.0 if isclose(factor * 255, 1) else factor * 255  # 1, as checkpoints have it, changes no bit
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _flag(options: Mapping[str, Any], name: str, owner: str, usual: bool = False) -> bool:
    """A setting that is true or false, `usual` where it is not given."""
    value = options.get(name)
    if not isinstance(value, bool | None):
        raise InputError(f"{owner} has {name} {brief(value)}; it must be true or false.")
    return usual if value is None else value


def _table(value: Any) -> dict[str, Any] | None:
    """The sides that a size says, those that are None left out; None for what is no size."""
    try:
        return {side: length for side, length in dict(value or {}).items() if length is not None}
    except (TypeError, ValueError):
        return None


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
        longest, ratio = s.longest_edge, width / height
        shorter = int(longest / ratio) if width >= height else int(longest * ratio)
        shorter = max(shorter + shorter % 2, 1)
        steps.insert(0, (shorter, longest) if width >= height else (longest, shorter))
    return steps


def resize(images: torch.Tensor, height: int, width: int, filter: int) -> torch.Tensor:
    """images (B, 3, H, W) in [0, 1] -> (B, 3, height, width): rows, then columns, cut off after each, as PIL does."""
    if images.shape[-1] != width:
        images = (images @ _weights(images.shape[-1], width, filter).to(images).T).clamp(0, 1)
    if images.shape[-2] != height:
        images = (_weights(images.shape[-2], height, filter).to(images) @ images).clamp(0, 1)
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
    batch, m, p = len(images), s.merge, s.patch
    rows, columns = (side // p for side in images.shape[-2:])
    blocks = images.reshape(batch, 3, rows // m, m, p, columns // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
    # a still picture is a film of equal frames
    blocks = blocks.unsqueeze(6).expand(*blocks.shape[:6], s.frames, p, p)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(batch, 3)
    return blocks.reshape(batch * rows * columns, -1), grid
