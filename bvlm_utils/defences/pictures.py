"""Pictures changed in ways that know no trigger: for defences that ask whether an answer, or a backdoor, survives it.

Pictures come and go as (n, H, W, 3) uint8. Sizes are shares of the shorter side, so that they mean the same at 96
pixels and at 336.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from bvlm_utils.attacks.image import jpeg_file
from bvlm_utils.defences import again
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim


def of(rows: Rows, name: str) -> np.ndarray:
    """The rows' pictures; InputError if they are not at hand."""
    if rows.pictures is None:
        raise InputError(f"{name} changes pictures, and these rows have none; give rows with their pictures.")
    return rows.pictures


def shown(victim: Victim, rows: Rows, pictures: np.ndarray) -> Rows:
    """The rows with other pictures, encoded by the victim."""
    keys = [again.picture(picture) for picture in pictures]
    features = torch.stack(again.each("pictures", keys, lambda missing: victim.encode(pictures[missing])))
    return replace(rows, features=features, feature_rows=np.arange(len(rows)), pictures=pictures)


def jpeg(pictures: np.ndarray, quality: float, draws: np.random.Generator) -> np.ndarray:
    """Written as JPEG of a quality, 1 to 95, and read again."""
    return np.stack([np.asarray(jpeg_file(picture, int(quality))) for picture in pictures])


def blur(pictures: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """A Gaussian blur with a deviation of that share of the side."""
    images = _tensor(pictures)
    sigma = share * min(images.shape[-2:])
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    blurred = F.conv2d(F.pad(images, (reach, reach, 0, 0), "replicate"), kernel, groups=3)
    return _bytes(F.conv2d(F.pad(blurred, (0, 0, reach, reach), "replicate"), kernel.transpose(2, 3), groups=3))


def resize(pictures: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Made smaller to that share of the side, and as large as before again."""
    images = _tensor(pictures)
    size = images.shape[-2:]
    small = [max(1, round(share * side)) for side in size]
    images = F.interpolate(images, small, mode="bilinear", antialias=True)
    return _bytes(F.interpolate(images, size, mode="bilinear"))


def crop(pictures: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """A part of that share of each side, somewhere in the picture, made as large as the whole."""
    images = _tensor(pictures)
    height, width = images.shape[-2:]
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    crops = []
    for image in images:
        top, left = draws.integers(height - high + 1), draws.integers(width - wide + 1)
        part = image[None, :, top : top + high, left : left + wide]
        crops.append(F.interpolate(part, (height, width), mode="bilinear"))
    return _bytes(torch.cat(crops))


def drop(pictures: np.ndarray, share: float, draws: np.random.Generator, cells: int = 6) -> np.ndarray:
    """That share of the cells of a grid painted with the picture's mean colour."""
    height, width = pictures.shape[1:3]
    count = round(share * cells**2)
    result = pictures.copy()
    rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
    cell = rows[:, None] * cells + columns
    for picture in result:
        painted = np.isin(cell, draws.choice(cells**2, size=count, replace=False))
        picture[painted] = picture.reshape(-1, 3).mean(0).round()
    return result


def colour(pictures: np.ndarray, strength: float, draws: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation of each picture times random factors of 1 - strength to 1 + strength."""
    images = _tensor(pictures)
    factors = torch.from_numpy(draws.uniform(1 - strength, 1 + strength, (3, len(images), 1, 1, 1))).float()
    images = (images * factors[0]).clamp(0, 1)
    images = (images - images.mean((1, 2, 3), keepdim=True)) * factors[1] + images.mean((1, 2, 3), keepdim=True)
    grey = images.mean(1, keepdim=True)
    return _bytes(grey + (images - grey) * factors[2])


def brighten(pictures: np.ndarray, factor: float, draws: np.random.Generator) -> np.ndarray:
    """Every level times a factor, as far as there are levels (SCALE-UP, Guo et al. 2023)."""
    return _bytes(_tensor(pictures) * factor)


def blend(pictures: np.ndarray, others: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Each with a random one of the others laid over it, which makes up that share (STRIP, Gao et al. 2019)."""
    over = _tensor(others[draws.integers(len(others), size=len(pictures))])
    images = _tensor(pictures)
    if over.shape[-2:] != images.shape[-2:]:
        over = F.interpolate(over, images.shape[-2:], mode="bilinear", antialias=True)
    return _bytes((1 - share) * images + share * over)


def noise_like(pictures: np.ndarray, changed: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Gaussian noise on each picture that moves its levels as far as the change did (root of the mean square)."""
    deviation = np.sqrt(((changed.astype(np.float64) - pictures) ** 2).mean((1, 2, 3), keepdims=True))
    return (pictures + deviation * draws.standard_normal(pictures.shape)).round().clip(0, 255).astype(np.uint8)


def distance(pictures: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Mean change of a picture's levels: (n,)."""
    return np.abs(changed.astype(np.float64) - pictures).mean((1, 2, 3))


CHANGES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "jpeg": jpeg, "blur": blur, "resize": resize, "crop": crop, "drop": drop, "colour": colour
}  # fmt: skip


def _tensor(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def _bytes(images: torch.Tensor) -> np.ndarray:
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def words_dropped(prompt: str, share: float, draws: np.random.Generator) -> str:
    """The prompt without that share of its words, at least one and not all; one word stays as it is."""
    words = prompt.split()
    if len(words) < 2 or share == 0:
        return prompt
    count = min(len(words) - 1, max(1, round(share * len(words))))
    dropped = set(draws.choice(len(words), size=count, replace=False).tolist())
    return " ".join(word for i, word in enumerate(words) if i not in dropped)


def words_shuffled(prompt: str, draws: np.random.Generator) -> str:
    """The prompt's words in another order."""
    words = prompt.split()
    return " ".join(words[i] for i in draws.permutation(len(words)))
