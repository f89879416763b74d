"""The model families: what differs between them, one declared row each. Free of torch until a picture comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry

if TYPE_CHECKING:
    import torch

    from bvlm_utils.models.pixels import PixelSettings


@dataclass(frozen=True)
class Family:
    """How one architecture takes pictures.

    pack(images, settings): normalised (B, 3, h, w) -> keyword arguments of `get_image_features`. frame: text that its
    processor puts around the image tokens. grids: whether positions depend on the picture's grid.
    """

    pack: Callable[["torch.Tensor", "PixelSettings"], dict[str, "torch.Tensor"]]
    frame: tuple[str, str] = ("", "")
    grids: bool = False


def _plain(images: "torch.Tensor", settings: "PixelSettings") -> dict[str, "torch.Tensor"]:
    return {"pixel_values": images}


def _patches(images: "torch.Tensor", settings: "PixelSettings") -> dict[str, "torch.Tensor"]:
    from bvlm_utils.models import pixels

    values, grid = pixels.patches(images, settings)
    return {"pixel_values": values, "image_grid_thw": grid}


def _one_tile(images: "torch.Tensor", settings: "PixelSettings") -> dict[str, "torch.Tensor"]:
    return {"pixel_values": images.unsqueeze(1)}


TILE = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")

FAMILIES: Registry[Family] = Registry("model family")


FAMILIES.add("llava", Family(_plain))


FAMILIES.add("qwen2_5_vl", Family(_patches, grids=True))


FAMILIES.add("qwen2_vl", Family(_patches, grids=True))


FAMILIES.add("smolvlm", Family(_one_tile, frame=TILE))


FAMILIES.add("idefics3", Family(_one_tile, frame=TILE))


def of(model_type: Any) -> Family:
    """The family that a configuration calls itself by; InputError lists the supported ones."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"Models of type {model_type!r} are not supported; supported are: {', '.join(FAMILIES)}.")
    return FAMILIES.get(model_type)
