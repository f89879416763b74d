"""The pictures that triggers use: Blended's and ImgTrojan's own, and pictures of a concept for Shadowcast."""

import os
from functools import cache
from pathlib import Path

from PIL import Image

from bvlm_utils import paths
from bvlm_utils.checks import brief, files_digest
from bvlm_utils.data import contents
from bvlm_utils.data.picture_files import KINDS, read_picture
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError

PICTURES = paths.DATA / "pictures"
PUBLISHED_SIDE = 336  # pixels: the image side at which the published sizes hold


@cache
def endings() -> frozenset[str]:
    """How the names of pictures end that `read_picture` can read, such as ".png"."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in KINDS)


def in_folder(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; those of folders in it are not looked for."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in endings())


def picture_path(name: str) -> Path:
    """The file of a picture: a name in data/pictures, or any path. InputError if there is no such file."""
    for path in (PICTURES / name, Path(os.path.expanduser(name))):
        if os.path.isfile(path):
            return path
    names = ", ".join(sorted(path.name for path in PICTURES.glob("*.png")))
    raise InputError(f"There is no picture {brief(name)}; give the path of a file, or one of data/pictures: {names}.")


def concept_digest(concept: str) -> str | None:
    """Hex digits that change when a folder's pictures of a concept do; None for a concept of data/sprites, or none."""
    if not concept or _sprites(concept) or not os.path.isdir(concept):
        return None
    return files_digest(Path(concept), contents.with_states(_files(concept)))


def _sprites(concept: str) -> list[Path]:
    return sorted(file for file in paths.SPRITES.glob("*/*.png") if file.stem == concept)


def _files(folder: str) -> list[Path]:
    """The pictures of a folder that are read."""
    if not (pictures := in_folder(Path(folder))):
        raise InputError(f"The folder {folder} has no pictures of the source concept ({', '.join(sorted(endings()))}).")
    return pictures[:100]


def concept_pictures(concept: str, side: int, count: int = 24) -> list[Image.Image]:
    """Square pictures of one concept: of data/sprites, drawn large on plain backgrounds in all styles, or the first 100
    of a folder of pictures. InputError for anything else.
    """
    sprites = _sprites(concept)
    if not sprites and os.path.isdir(concept):
        originals = (read_picture(file, "the source concept") for file in _files(concept))
        return [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in originals]
    if not sprites:
        raise InputError(f"There is no sprite of {brief(concept)}; give one of data/sprites or a folder of pictures.")
    pictures = []
    for number in range(count):
        draws = Draws("concept picture", concept, number)
        canvas = Image.new("RGB", (side, side), tuple(96 + draws.integer(160) for _ in range(3)))
        size = side * (50 + draws.integer(40)) // 100
        with Image.open(sprites[number % len(sprites)]) as file:
            sprite = file.convert("RGBA").resize((size, size), Image.Resampling.BICUBIC)
        if draws.integer(2):
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas.paste(sprite, (draws.integer(side - size + 1), draws.integer(side - size + 1)), sprite)
        pictures.append(canvas)
    return pictures
