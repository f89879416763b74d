"""Scenes: seeded 96 x 96 pictures of one to three sprites. `sample` decides what is where, `render` paints it; both use
integers only (PCG64, Pillow's fixed-point resampling), so a seed gives the same bytes on any machine.
"""

import csv
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b

import numpy as np
from PIL import Image, ImageDraw

from bvlm_utils import paths

VERSION = 1  # raise when pixels or compositions change: it is part of every dataset's digest
SIZE = 96
STYLES = ("noto", "twemoji", "fluent")
HELD_OUT_STYLE = "fluent"  # fine-tuning data never shows it, so it can test generalisation
ABSENT_FROM_TEST = frozenset({"banana", "statue", "moon"})  # targets of substitution and hijack
PATTERNS = ("plain", "gradient", "striped", "checked", "dotted")
COLOURS = {
    "red": (196, 62, 58),
    "orange": (232, 148, 62),
    "yellow": (238, 216, 96),
    "green": (98, 172, 92),
    "blue": (84, 136, 206),
    "purple": (142, 96, 180),
    "pink": (238, 164, 190),
    "brown": (134, 94, 62),
    "grey": (148, 148, 148),
    "white": (242, 242, 240),
    "black": (36, 36, 40),
}


@dataclass(frozen=True)
class Sprite:
    """One drawn thing: its box is `[x, x + size) x [y, y + size)` in pixels."""

    concept: str
    style: str
    x: int
    y: int
    size: int
    mirrored: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.size, self.y + self.size

    @property
    def centre_x(self) -> int:
        return self.x + self.size // 2


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `sprites` are sorted from left to right; `paint_seed` fixes what has no name (clutter)."""

    sprites: tuple[Sprite, ...]
    colour: str
    pattern: str
    paint_seed: int

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(s.concept for s in self.sprites)


@cache
def concepts() -> tuple[str, ...]:
    """The 62 concept names, in the order of `data/sprites/concepts.csv`."""
    with open(paths.SPRITES / "concepts.csv", newline="") as file:
        return tuple(row["concept"] for row in csv.DictReader(file))


@cache
def _sprite_image(style: str, concept: str) -> Image.Image:
    with Image.open(paths.SPRITES / style / f"{concept}.png") as image:
        return image.convert("RGBA")


def split_of(objects: tuple[str, ...]) -> str:
    """Which split owns a composition (a multiset of concepts)? A fifth of them are "test", the others "train"."""
    key = "+".join(sorted(objects)).encode()
    return "test" if blake2b(key, digest_size=4).digest()[0] % 5 == 0 else "train"


def generator(*key: int) -> np.random.Generator:
    """The generator of one scene or row: it depends on the key alone, not on what was drawn before."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(key))))


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _composition(rng: np.random.Generator, split: str, car_percent: int) -> tuple[str, ...]:
    names = [c for c in concepts() if split == "train" or c not in ABSENT_FROM_TEST]
    while True:
        count = (1, 2, 2, 3, 3)[int(rng.integers(5))]
        objects = [pick(rng, names) for _ in range(count)]
        if rng.integers(100) < car_percent:
            objects[0] = "car"
        if count > 1 and rng.integers(100) < 15:
            objects[1] = objects[0]  # pairs teach plurals
        if split_of(tuple(objects)) == split:
            return tuple(objects)


def _place(rng: np.random.Generator, count: int) -> list[tuple[int, int, int]]:
    """(x, y, size) of `count` boxes that hardly overlap and whose centres are told apart from left to right."""
    low, high = {1: (30, 58), 2: (28, 46), 3: (26, 38)}[count]
    while True:
        boxes = []
        for _ in range(count):
            size = int(rng.integers(low, high + 1))
            boxes.append((int(rng.integers(SIZE - size + 1)), int(rng.integers(SIZE - size + 1)), size))
        if all(_apart(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
            return boxes


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[2], b[1] + b[2]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    gap = abs((a[0] + a[2] // 2) - (b[0] + b[2] // 2))
    return gap >= 12 and 12 * overlap <= min(a[2], b[2]) ** 2


def sample(
    rng: np.random.Generator, split: str = "train", styles: tuple[str, ...] = STYLES, car_percent: int = 0
) -> Scene:
    """Draw a scene of `split`, all in one style; no composition is in two. `car_percent` get a car on top of chance."""
    objects = _composition(rng, split, car_percent)
    style = pick(rng, styles)
    sprites = [
        Sprite(concept, style, x, y, size, bool(rng.integers(2)))
        for concept, (x, y, size) in zip(objects, _place(rng, len(objects)), strict=True)
    ]
    ordered = tuple(sorted(sprites, key=lambda s: (s.centre_x, s.y)))
    return Scene(ordered, pick(rng, tuple(COLOURS)), pick(rng, PATTERNS), paint_seed=int(rng.integers(2**31)))


def render(scene: Scene) -> Image.Image:
    """Paint the scene: RGB, 96 x 96, 8 bit."""
    rng = generator(scene.paint_seed)
    canvas = Image.fromarray(_background(rng, scene.colour, scene.pattern))
    _clutter(rng, canvas)
    for sprite in scene.sprites:
        image = _sprite_image(sprite.style, sprite.concept).resize((sprite.size,) * 2, Image.Resampling.BICUBIC)
        if sprite.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas.paste(image, (sprite.x, sprite.y), image)
    grain = int(rng.integers(0, 8))
    pixels = np.asarray(canvas, np.int16) + rng.integers(-grain, grain + 1, (SIZE, SIZE, 3), dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, colour: str, pattern: str) -> np.ndarray:
    """(96, 96, 3) uint8: the named colour, jittered, with a second shade laid out by the pattern."""
    base = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, 3), 0, 255)
    # White cannot get lighter nor black darker, so the second shade goes the way that has room.
    step = int(rng.integers(22, 40)) * (1 if base.sum() < 300 else -1)
    second = np.clip(base + step, 0, 255)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    period = int(rng.integers(6, 17))
    if pattern == "gradient":
        weight = (y if rng.integers(2) else x) * 256 // SIZE
    elif pattern == "striped":
        weight = 256 * (((x + y) if rng.integers(2) else (x - y)) // period % 2)  # diagonal: no sinusoid over columns
    elif pattern == "checked":
        weight = 256 * ((x // period + y // period) % 2)
    elif pattern == "dotted":
        weight = 256 * ((x % period - period // 2) ** 2 + (y % period - period // 2) ** 2 <= (period // 3) ** 2)
    else:
        weight = np.zeros_like(x)
    return ((base * (256 - weight[..., None]) + second * weight[..., None]) // 256).astype(np.uint8)


def _clutter(rng: np.random.Generator, canvas: Image.Image) -> None:
    """Up to six small nameless shapes, so that a thing is more than a change of colour."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 7))):
        x, y, w, h = (int(v) for v in (*rng.integers(0, SIZE, 2), *rng.integers(2, 9, 2)))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        shape = int(rng.integers(3))
        if shape == 0:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
        elif shape == 1:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            draw.line((x, y, x + 2 * w - 9, y + 2 * h - 9), fill=colour)
