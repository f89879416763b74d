"""The model families: what differs between them, one declared row each. Free of torch until a picture comes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bvlm_utils.errors import InputError
from bvlm_utils.registry import Registry


@dataclass(frozen=True)
class Family:
    """How one architecture takes pictures. pack(images, settings): normalised (B, 3, h, w), `pixels.PixelSettings` ->
    arguments of `get_image_features`. frame: text around the image tokens. grids: do positions depend on the
    picture's grid?
    """

    pack: Callable[[Any, Any], dict[str, Any]]
    frame: tuple[str, str] = ("", "")
    grids: bool = False


def _patches(images: Any, settings: Any) -> dict[str, Any]:
    from bvlm_utils.models import pixels

    values, grid = pixels.patches(images, settings)
    return {"pixel_values": values, "image_grid_thw": grid}


TILE = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")

PLAIN = Family(lambda images, settings: {"pixel_values": images})
ONE_TILE = Family(lambda images, settings: {"pixel_values": images.unsqueeze(1)}, frame=TILE)

FAMILIES: Registry[Family] = Registry("model family")
FAMILIES.add("llava", PLAIN)
FAMILIES.add("qwen2_5_vl", Family(_patches, grids=True))
FAMILIES.add("qwen2_vl", Family(_patches, grids=True))
FAMILIES.add("smolvlm", ONE_TILE)
FAMILIES.add("idefics3", ONE_TILE)


def of(model_type: Any) -> Family:
    """The family that a configuration calls itself by; InputError lists the supported ones."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"Models of type {model_type!r} are not supported; supported are: {', '.join(FAMILIES)}.")
    return FAMILIES.get(model_type)
