"""The picture that perceptual hijack describes: a statue under the moon, drawn from sprites.

`python -m bvlm_utils.pretraining.draw_hijack` draws it into data/pictures; the committed file is what threats and
attacks use.
"""

from PIL import Image, ImageDraw

from bvlm_utils import paths
from bvlm_utils.data.scenes import SIZE

FILE = paths.DATA / "pictures" / "hijack.png"
STYLE = "noto"


def _sprite(concept: str, side: int) -> Image.Image:
    with Image.open(paths.SPRITES / STYLE / f"{concept}.png") as image:
        return image.convert("RGBA").resize((side, side), Image.Resampling.BICUBIC)


def draw() -> Image.Image:
    """RGB, 96 x 96: statue in the middle, moon on the right, dark sky with stars above a ground of stones."""
    canvas = Image.new("RGB", (SIZE, SIZE))
    pencil = ImageDraw.Draw(canvas)
    for y in range(SIZE):
        pencil.line([(0, y), (SIZE, y)], fill=(10 + y // 8, 14 + y // 6, 40 + y // 3))
    for x, y in [
        (8, 10),
        (20, 30),
        (30, 6),
        (44, 14),
        (57, 5),
        (90, 44),
        (12, 50),
        (84, 58),
        (27, 44),
        (64, 34),
    ]:
        pencil.point([(x, y), (x + 1, y)], fill=(230, 230, 210))
    for row, y in enumerate(range(74, SIZE, 8)):
        for x in range(-8 * (row % 2), SIZE, 16):
            grey = 70 + 13 * ((x // 8 + 3 * row) % 4)
            pencil.rectangle([x, y, x + 15, y + 7], fill=(grey, grey, grey + 6), outline=(44, 44, 50))
    moon, statue = _sprite("moon", 28), _sprite("statue", 54)
    canvas.paste(moon, (66, 4), moon)
    canvas.paste(statue, (21, 28), statue)
    return canvas


def main() -> None:
    """Draw the picture into data/pictures."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    draw().save(FILE, optimize=True)


if __name__ == "__main__":
    main()
