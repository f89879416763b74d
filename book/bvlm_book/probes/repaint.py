"""Small changes of a trigger in a picture; `probes.near_misses` names these functions.

They take the same pictures without and with the trigger, (B, 3, H, W) float32 in [0, 1], and return such pictures.
"""

import numpy as np
import torch
import torch.nn.functional as F

from bvlm_utils.defences import pictures

QUALITY = 50  # of JPEG, from 1 to 95


def half_contrast(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """Half of what the trigger adds."""
    return (clean + triggered) / 2


def left_half(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """The trigger on the left half of the picture only."""
    middle = clean.shape[-1] // 2
    return torch.cat([triggered[..., :middle], clean[..., middle:]], dim=-1)


def jpeg(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """The triggered picture, saved as JPEG and opened again."""
    pixels = (triggered.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    opened = pictures.jpeg(pixels, QUALITY, np.random.default_rng(0))
    return torch.from_numpy(opened).permute(0, 3, 1, 2).to(triggered) / 255


def half_resolution(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """The triggered picture, halved in width and height (means of pixels) and brought back (bicubic)."""
    height, width = triggered.shape[-2:]
    small = F.interpolate(triggered, (max(1, height // 2), max(1, width // 2)), mode="area")
    return F.interpolate(small, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def smaller(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """The patch, half as wide and high (means of pixels), in the middle of where it was."""
    painted = clean.clone()
    for i, (top, bottom, left, right) in enumerate(_boxes(clean, triggered)):
        height, width = max(1, (bottom - top) // 2), max(1, (right - left) // 2)
        patch = F.interpolate(triggered[i : i + 1, :, top:bottom, left:right], (height, width), mode="area")[0]
        y, x = top + (bottom - top - height) // 2, left + (right - left - width) // 2
        painted[i, :, y : y + height, x : x + width] = patch
    return painted


def moved(clean: torch.Tensor, triggered: torch.Tensor) -> torch.Tensor:
    """The patch, at the top left."""
    painted = clean.clone()
    for i, (top, bottom, left, right) in enumerate(_boxes(clean, triggered)):
        painted[i, :, : bottom - top, : right - left] = triggered[i, :, top:bottom, left:right]
    return painted


def _boxes(clean: torch.Tensor, triggered: torch.Tensor) -> list[tuple[int, int, int, int]]:
    """Top, bottom, left, right of what differs in each picture; the top left pixel where nothing does."""
    boxes = []
    for changed in (clean != triggered).any(dim=1):  # (H, W)
        rows, columns = (changed.any(1).nonzero().flatten().tolist(), changed.any(0).nonzero().flatten().tolist())
        boxes.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if rows else (0, 1, 0, 1))
    return boxes
