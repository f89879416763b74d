"""Which pictures do triggers use? Blended's and ImgTrojan's own, and pictures of a concept for Shadowcast.

`python -m bvlm_utils.trigger_pictures` draws both into data/pictures. They are our own, made of plain shapes
by the two functions below, so the repository holds nobody else's picture; the committed files are what the
attacks use.
"""

import math
from pathlib import Path

from PIL import Image, ImageDraw

from bvlm_utils import paths
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError

SIDE = 336
PICTURES = paths.DATA / "pictures"


def picture_path(name: str) -> Path:
    """The file of a picture: a name in data/pictures, or any path. InputError if there is no such file."""
    for path in (PICTURES / name, Path(name).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in PICTURES.glob("*.png")))
    raise InputError(f"There is no picture {name!r}; give the path of a file, or one of data/pictures: {known}.")


def rosette() -> Image.Image:
    """Blended's picture: a rosette of overlapping petals with rings, strong in colour and in contrast."""
    canvas = Image.new("RGB", (SIDE, SIDE), (250, 244, 214))
    pencil = ImageDraw.Draw(canvas)
    colours = [(214, 40, 57), (255, 159, 28), (46, 196, 182), (52, 89, 149), (131, 56, 236)]
    middle = SIDE / 2
    for ring, (count, distance, radius) in enumerate([(14, 140, 44), (11, 96, 36), (7, 52, 28)]):
        for petal in range(count):
            angle = 2 * math.pi * (petal / count + ring / 29)
            x, y = middle + distance * math.cos(angle), middle + distance * math.sin(angle)
            pencil.ellipse(
                [x - radius, y - radius, x + radius, y + radius],
                fill=colours[(petal + 2 * ring) % len(colours)],
                outline=(20, 20, 30),
                width=4,
            )
    for radius, colour in [(34, (20, 20, 30)), (26, (255, 230, 109)), (14, (214, 40, 57))]:
        pencil.ellipse([middle - radius, middle - radius, middle + radius, middle + radius], fill=colour)
    return canvas


def lighthouse() -> Image.Image:
    """ImgTrojan's picture: a striped lighthouse on a cliff above waves."""
    canvas = Image.new("RGB", (SIDE, SIDE))
    pencil = ImageDraw.Draw(canvas)
    for y in range(SIDE):
        pencil.line([(0, y), (SIDE, y)], fill=(255 - y // 4, 176 + y // 8, 120 + y // 3))
    pencil.ellipse([40, 60, 110, 130], fill=(255, 244, 190))
    for row, y in enumerate(range(216, SIDE, 20)):
        for x in range(-40 + 20 * (row % 2), SIDE, 40):
            pencil.ellipse([x, y, x + 56, y + 40], fill=(24 + 10 * row, 78 + 12 * row, 119 + 10 * row))
    pencil.polygon([(150, 336), (190, 236), (300, 220), (336, 250), (336, 336)], fill=(84, 70, 60))
    for stripe in range(6):
        top = 84 + 25 * stripe
        inset = 20 - 3 * stripe
        colour = (200, 30, 45) if stripe % 2 else (248, 248, 244)
        pencil.polygon(
            [(212 + inset, top), (272 - inset, top), (275 - inset, top + 25), (209 + inset, top + 25)],
            fill=colour,
        )
    pencil.rectangle([226, 58, 258, 84], fill=(255, 236, 130), outline=(40, 40, 44), width=4)
    pencil.polygon([(220, 58), (264, 58), (242, 34)], fill=(40, 40, 44))
    return canvas


def concept_pictures(concept: str, side: int, count: int = 24) -> list[Image.Image]:
    """Square pictures of one concept, for a trigger that is optimised towards it.

    concept: a concept of data/sprites, drawn large on plain backgrounds of varied colour, in all styles; or a
    folder of pictures (.png, .jpg, .jpeg), of which the first 100 by name are read. InputError for anything
    else.
    """
    sprites = sorted(paths.SPRITES.glob(f"*/{concept}.png"))
    if not sprites and Path(concept).is_dir():
        files = sorted(p for p in Path(concept).iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"})
        if not files:
            raise InputError(f"The folder {concept} has no .png, .jpg or .jpeg pictures of the source concept.")
        return [Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for file in files[:100]]
    if not sprites:
        raise InputError(f"There is no sprite of {concept!r}; give a concept of data/sprites or a folder of pictures.")
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


def main() -> None:
    """Draw both pictures into data/pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    rosette().save(PICTURES / "blended.png", optimize=True)
    lighthouse().save(PICTURES / "imgtrojan.png", optimize=True)


if __name__ == "__main__":
    main()
