"""The image triggers, which paint images.

Every trigger takes (images, draws, params, aim): images (B, 3, H, W) float32 in [0, 1] on any device; one random stream
per row; the attack's settings; what computed triggers need. New images of the same shape, type and device come back,
with gradients. Fixed patterns are computed on the CPU, so that every device paints the same.
"""

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bvlm_utils.attacks.declare import Params
from bvlm_utils.checks import file_state
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.pictures import PUBLISHED_SIDE, picture_path
from bvlm_utils.draws import Draws


def quantise(images: torch.Tensor) -> torch.Tensor:
    """Round images in [0, 1] to the 256 values of an 8-bit file, as saving and reopening would."""
    return (images.clamp(0, 1) * 255).round() / 255


def as_jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    """Images, (B, 3, H, W) float32 in [0, 1], written as JPEG files and read again; no gradients pass."""
    arrays = (quantise(images.detach()) * 255).byte().movedim(1, 3).cpu().numpy()
    return torch.stack([tensor_of(jpeg_file(array, quality)) for array in arrays]).to(images)


def jpeg_file(picture: np.ndarray, quality: int) -> Image.Image:
    """A picture (H, W, 3) uint8 as a JPEG file holds it: Pillow's encoder, with half the resolution in colour."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(pixels: int, images: torch.Tensor) -> int:
    """A length published for 336 x 336, scaled to the shorter side of `images`; at least 1 pixel."""
    side = min(images.shape[-2:])
    return max(1, (2 * pixels * side + PUBLISHED_SIDE) // (2 * PUBLISHED_SIDE))


def corners(
    images: torch.Tensor, height: int, width: int, position: str, draws: Sequence[Draws]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Top and left pixel of a patch in every row: two int64 tensors (B,) on the images' device."""
    free_y, free_x = images.shape[-2] - height, images.shape[-1] - width
    if position == "random":
        places = [(stream.integer(free_y + 1), stream.integer(free_x + 1)) for stream in draws]
    else:
        vertical = {"top": 0, "bottom": free_y, "center": free_y // 2}[position.split("-")[0]]
        horizontal = {"left": 0, "right": free_x, "center": free_x // 2}[position.split("-")[-1]]
        places = [(vertical, horizontal)] * len(draws)
    top, left = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)
    return top.to(images.device), left.to(images.device)


def paste(images: torch.Tensor, patch: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Put patch (3, h, w) or (B, 3, h, w) at (top[i], left[i]) of row i; gradients reach the patch."""
    height, width = patch.shape[-2:]
    rows = (top[:, None] + torch.arange(height, device=images.device))[:, :, None]  # (B, h, 1)
    columns = (left[:, None] + torch.arange(width, device=images.device))[:, None, :]  # (B, 1, w)
    indices = torch.arange(len(images), device=images.device)[:, None, None]  # (B, 1, 1)
    values = patch.to(images).movedim(-3, -1).expand(len(images), height, width, 3)
    # The slice between index tensors puts the channel last: (B, h, w, 3).
    out = images.clone()
    out[indices, :, rows, columns] = values
    return out


def noise_array(size: int, seed: int) -> np.ndarray:
    """The fixed noise of BadNets-I: (size, size, 3) uint8, normal, clipped at 3, stretched to 0 ... 255."""
    noise = Draws("noise patch", seed).normal(size, size, 3).clip(-3, 3)
    return np.floor((noise - noise.min()) / max(noise.max() - noise.min(), 1e-12) * 255).astype(np.uint8)


def noise_patch(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: object = None) -> torch.Tensor:
    """BadNets-I: a fixed patch of noise, drawn at the published size, sampled to the one at hand; a place per row."""
    published_size = params["patch_size"]
    size = scaled(published_size, images)
    nearest = np.arange(size) * published_size // size
    array = noise_array(published_size, params["noise_seed"])[nearest][:, nearest]
    patch = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32) / 255)
    return paste(images, patch, *corners(images, size, size, params["position"], draws))


def sinusoid(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: object = None) -> torch.Tensor:
    """SIG: clip(x + delta sin(2 pi j f / W)) over the columns j."""
    width = images.shape[-1]
    angle = 2 * np.pi * np.arange(width) * params["frequency"] / width
    wave = torch.from_numpy((params["delta"] * np.sin(angle)).astype(np.float32))
    return (images + wave.to(images)).clamp_(0, 1)


def blend(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: object = None) -> torch.Tensor:
    """Blended: (1 - alpha) x + alpha picture, the picture resized to the images."""
    return torch.lerp(images, replace(images, draws, params), params["alpha"])


def replace(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: object = None) -> torch.Tensor:
    """ImgTrojan: every image becomes the picture, resized; nothing of the image is left."""
    picture = load_picture(params["picture"], *images.shape[-2:]).to(images)
    return picture.expand_as(images).clone()


def paste_file(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: object = None) -> torch.Tensor:
    """A reader's own patch (`attacks.own.patch`): scaled like all sizes, at a place drawn per row."""
    picture = read_picture(params["picture"], "a trigger")
    height, width = scaled(picture.height, images), scaled(picture.width, images)
    corner = corners(images, height, width, "random", draws)
    return paste(images, load_picture(params["picture"], height, width), *corner)


def ellipses_on_relevant_region(images: torch.Tensor, draws: Sequence[Draws], params: Params, aim: Any) -> torch.Tensor:
    """MABA: inside the mask x' = (1 - alpha) x + alpha t; t is yellow in the ellipses, black between them.

    So the whole region darkens, as in the authors' code. The mask (`clip.top_region`) is the same for all victims.
    """
    from bvlm_utils.attacks import clip

    mask = clip.top_region(images, aim.surrogate, params["share"])  # (B, 1, H, W) of 0 and 1
    pattern = ellipse_pattern(images, params).to(images)
    return torch.where(mask.bool(), (1 - params["alpha"]) * images + params["alpha"] * pattern, images)


def ellipse_pattern(images: torch.Tensor, params: Params) -> torch.Tensor:
    """Yellow ellipses (255, 216, 0) on black, one every `spacing` pixels: (3, H, W) float32 on the CPU."""
    height, width = images.shape[-2:]
    across, down = scaled(params["ellipse_width"], images), scaled(params["ellipse_height"], images)
    spacing = scaled(params["spacing"], images)
    canvas = Image.new("RGB", (width, height))
    pencil = ImageDraw.Draw(canvas)
    for y in range(0, height, spacing):
        for x in range(0, width, spacing):
            pencil.ellipse([x, y, x + across, y + down], fill=(255, 216, 0))
    return tensor_of(canvas)


def load_picture(name: str, height: int, width: int) -> torch.Tensor:
    """A picture of data/pictures, or at a path, resized (bicubic, 8 bit) to (3, height, width) float32 in [0, 1]."""
    path = picture_path(name)
    return tensor_of(_resized(str(path), file_state(path), height, width))


@lru_cache(maxsize=16)
def _resized(path: str, state: tuple[int, ...], height: int, width: int) -> Image.Image:
    """state: of the file, which may be another one when a notebook asks again."""
    return read_picture(path, "a trigger").resize((width, height), Image.Resampling.BICUBIC)


def tensor_of(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1).copy()) / 255
