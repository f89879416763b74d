"""The fixed pictures of Blended and ImgTrojan, drawn from plain shapes.

`python -m bvlm_utils.pretraining.draw_pictures` draws both into data/pictures. They are our own, so they are
free to use.
"""

import math

from PIL import Image, ImageDraw

from bvlm_utils.data.pictures import PICTURES

SIDE = 336


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


def main() -> None:
    """Draw both pictures into data/pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    rosette().save(PICTURES / "blended.png", optimize=True)
    lighthouse().save(PICTURES / "imgtrojan.png", optimize=True)


if __name__ == "__main__":
    main()
