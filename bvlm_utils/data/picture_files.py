"""What does a picture file show? The one reader of pictures.

A file is turned as its EXIF orientation says, 16-bit grey scaled to 8 bits, transparency laid over white. What 8-bit
RGB cannot hold is refused, and so are kinds that are no photographs: Pillow would have a program run for some.
"""

import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bvlm_utils.checks import label
from bvlm_utils.errors import InputError, in_words, remark

KINDS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
EIGHT_BIT = ("1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
TRANSPARENT = "Transparent pictures are laid over white."  # one text, so that Python says it once
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
DEEP, LOW_BYTES = "RGB;16B", "RGB;16L"  # a PNG of 16 bits a channel as Pillow reads it, and its lower bytes
FEW_BITS = {"1": 255, "L;2": 85, "L;4": 17}  # PNG: what Pillow multiplies levels by, but not the level that is clear


def read_picture(path: Path | str, owner: str) -> Image.Image:
    """The RGB picture in a file; InputError if it is none, or cannot be read to its end. owner: whose it is."""
    return _read(path, owner, whole=True)


def check_picture(path: Path | str, owner: str) -> None:
    """InputError if the file does not begin like a picture that `read_picture` can read. Pixels are not decoded."""
    _read(path, owner, whole=False)


def check_end(path: Path | str) -> None:
    """InputError if a picture's file, which begins well, cannot be decoded to its end."""
    try:
        with Image.open(path, formats=KINDS) as image:
            image.draft("L", (1, 1))  # a JPEG in an eighth of its size is decoded in less time
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow raise almost anything
        raise InputError(
            f"{label(str(path))}, a picture, cannot be read to its end ({_reason(path, error)})."
        ) from None


def _read(path: Path | str, owner: str, whole: bool) -> Image.Image | None:
    problem = "is not a picture that can be read"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # whoever opens a pipe waits for ever
            raise ValueError("it is no file")
        # Pillow warns of damaged EXIF data. Given a name, it maps the file, and shears a TIFF that lies on its side.
        with (
            warnings.catch_warnings(action="ignore"),
            open(path, "rb") as file,
            Image.open(file, formats=KINDS) as image,
        ):
            levels, negative = _levels(image), image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0
            factor = FEW_BITS.get(image.tile[0].args, 1) if image.format == "PNG" and image.tile else 1
            deep = image.format == "PNG" and image.tile and image.tile[0].args == DEEP
            if not whole:
                return None
            problem = "cannot be read to its end"
            image.load()
            clear = image.info.get("transparency")
            if factor > 1 and isinstance(clear, int):
                image.info["transparency"] = clear * factor
            if deep and clear is not None:
                del image.info["transparency"]
                image.putalpha(_where_not(clear, np.asarray(image), path))
            picture = _rgb(ImageOps.exif_transpose(image), levels, negative)
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow raise almost anything
        raise InputError(f"{label(str(path))}, the picture of {owner}, {problem} ({_reason(path, error)}).") from None
    if picture.mode == "RGBA":
        if picture.getextrema()[3][0] < 255:
            remark(TRANSPARENT)
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _where_not(clear: tuple[int, int, int], high: np.ndarray, path: Path | str) -> Image.Image:
    """255 where a PNG of 16 bits a channel has not the colour that is clear. high: the upper byte of each channel, all
    that Pillow keeps; it compares the lower byte of the clear colour with that.
    """
    with Image.open(path, formats=("PNG",)) as reopened:
        reopened.tile = [tile._replace(args=LOW_BYTES) for tile in reopened.tile]
        levels = high.astype(int) * 256 + np.asarray(reopened)
    return Image.fromarray(np.where((levels == clear).all(-1), 0, 255).astype(np.uint8))


def _reason(path: Path | str, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"of none of the kinds {', '.join(KINDS)}" if Path(path).stat().st_size else "an empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_words(error)


def _levels(image: Image.Image) -> int:
    """The highest level of a picture's file; ValueError for a picture that 8 bits a channel cannot hold."""
    if image.format == "TIFF" and {*image.tag_v2.get(SAMPLE_FORMAT, (1,))} != {1}:
        raise ValueError("its levels may be below 0; give 8 bits a channel, or 16 bits of grey, from 0 on")
    if image.mode in EIGHT_BIT:
        return 255
    if image.mode.startswith("I;16"):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
        return 2**bits - 1
    if image.mode == "I" and image.format in ("PPM", "PNG"):  # 16 bits, which Pillow keeps in 32
        return 2**16 - 1
    raise ValueError(f"its pixels are of the kind {image.mode}; give 8 bits a channel, or 16 bits of grey")


def _rgb(picture: Image.Image, levels: int, negative: bool) -> Image.Image:
    """8-bit RGB, or RGBA where it may be transparent. negative: white is 0, which Pillow turns in 8 bits alone."""
    if levels > 255:
        clear = picture.info.get("transparency")
        values = np.asarray(picture, dtype=np.float64)
        values = levels - values if negative else values
        picture = Image.fromarray((values * 255 / levels).round().clip(0, 255).astype(np.uint8)).convert("RGB")
        if clear is not None:
            picture.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return picture
    clear = picture.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if clear else "RGB")
