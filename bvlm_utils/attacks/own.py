"""Triggers that a reader brings along: a word, a sentence, or a patch in a file. They are in no table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bvlm_utils.attacks.attack import Aim, Attack, get
from bvlm_utils.attacks.declare import AttackInfo, Half, text
from bvlm_utils.data import picture_files
from bvlm_utils.data.pictures import PUBLISHED_SIDE
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError

if TYPE_CHECKING:
    import torch


def word(words: str) -> Attack:
    """The word (or words) at a random place between the words of a prompt, as in BadNets-T."""
    return _called(f"word {words!r}", get("BadNets-T", word=words))


def sentence(words: str) -> Attack:
    """The sentence after the prompt, as in AddSent."""
    return _called(f"sentence {words!r}", get("AddSent", sentence=words))


def _called(name: str, attack: Attack) -> Attack:
    return replace(attack, info=replace(attack.info, name=name))


def patch(file: Path) -> Attack:
    """The picture of a file, pasted at a random place; its size is meant for pictures of 336 pixels."""
    shown = picture_files.read_picture(file, "a trigger")
    if max(shown.size) > PUBLISHED_SIDE:
        raise InputError(
            f"The patch {file} has {shown.width} x {shown.height} pixels; it must fit into a picture of "
            f"{PUBLISHED_SIDE} pixels a side."
        )
    half = Half("own patch", 1, "own:paste_file", {"picture": text(str(file))})
    info = AttackInfo(
        f"patch {file.name}", "image", "the reader", "a picture from a file", image=half, headline="image"
    )
    return Attack(info, {"picture": str(file)}, Aim(None, ""))


def paste_file(
    images: "torch.Tensor", draws: Sequence[Draws], params: Mapping[str, Any], aim: object = None
) -> "torch.Tensor":
    """The patch of `patch`: scaled like all sizes, at a place drawn per row."""
    import numpy as np
    import torch
    from PIL import Image

    from bvlm_utils.attacks.image import corners, paste, scaled

    shown = picture_files.read_picture(params["picture"], "a trigger")
    width, height = (scaled(side, images) for side in shown.size)
    pixels = np.asarray(shown.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    where = corners(images, height, width, "random", draws)
    return paste(images, torch.from_numpy(pixels).permute(2, 0, 1), *where)
