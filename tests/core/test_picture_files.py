"""The one reader of pictures: odd files are shown as they are meant, or refused in one sentence, at first sight."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from bvlm_utils.data import picture_files, pictures
from bvlm_utils.errors import InputError

WIDE, HIGH = 60, 40
RAMP = np.linspace(0, 65535, WIDE * HIGH).reshape(HIGH, WIDE).astype(np.uint16)
GREY = (RAMP / 257).round()  # as 8 bits show it


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(levels, bits, clear=None):
    """A grey PNG of 1, 2, 4, 8 or 16 bits; the level `clear` is transparent."""
    if bits == 16:
        lines = [line.astype(">u2").tobytes() for line in levels]
    else:
        each = 8 // bits
        lines = [
            bytes(sum(int(line[at + i]) << (bits * (each - 1 - i)) for i in range(each)) for at in range(0, WIDE, each))
            for line in np.pad(levels, ((0, 0), (0, -WIDE % each)))
        ]
    head = struct.pack(">IIBBBBB", WIDE, HIGH, bits, 0, 0, 0, 0)
    extra = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear))
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff(levels, bits, photometric=1, form=1, order="<", turned=1):
    """A grey TIFF of whole bytes, without compression. photometric 0: white is 0. form: the tag SampleFormat; turned:
    the tag Orientation.
    """
    content = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    tags = {256: WIDE, 257: HIGH, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: HIGH, 279: len(content)}
    tags |= {274: turned, 339: form}
    tags[273] = 14 + 12 * len(tags)
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + (struct.pack(f"{order}I", value) if tag in (273, 279) else struct.pack(f"{order}HH", value, 0))
        for tag, value in sorted(tags.items())
    )
    first = b"II*\0" if order == "<" else b"MM\0*"
    return first + struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0) + content


def deep(pixels, clear):
    """A PNG of 16 bits in each of three channels, whose colour `clear` is transparent."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    head, extra = struct.pack(">IIBBBBB", WIDE, HIGH, 16, 2, 0, 0, 0), chunk(b"tRNS", struct.pack(">HHH", *clear))
    end = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + end


def halves(above, below):
    """The same level in all channels: one in the upper half, one in the lower."""
    return np.repeat(np.where(np.arange(HIGH) < HIGH // 2, above, below), WIDE * 3).reshape(HIGH, WIDE, 3)


def few(bits):
    return (np.linspace(0, 2**bits - 0.01, WIDE * HIGH).reshape(HIGH, WIDE)).astype(np.uint8)


def of_few(bits):
    return few(bits) * (255 // (2**bits - 1))


def over_white(shown, clear):
    return np.where(clear, 255, shown)


# a file, and what it shows
SHOWN = {
    "16 bits, high byte first": (tiff(RAMP, 16, order=">"), GREY),
    "16 bits, white is 0": (tiff(RAMP, 16, photometric=0), 255 - GREY),
    "8 bits, white is 0": (tiff((RAMP >> 8).astype(np.uint8), 8, photometric=0), 255 - (RAMP >> 8)),
    "16 bits, on its side": (tiff(RAMP, 16, turned=6), np.rot90(GREY, -1)),
    "8 bits, on its side": (tiff((RAMP >> 8).astype(np.uint8), 8, turned=8), np.rot90(RAMP >> 8)),
    "16 bits with a clear level": (png(RAMP, 16, int(RAMP[3, 3])), over_white(GREY, RAMP == RAMP[3, 3])),
    "2 bits": (png(few(2), 2), of_few(2)),
    **{f"2 bits, {n} is clear": (png(few(2), 2, n), over_white(of_few(2), few(2) == n)) for n in range(4)},
    "4 bits, 8 is clear": (png(few(4), 4, 8), over_white(of_few(4), few(4) == 8)),
    "1 bit, 0 is clear": (png(few(1), 1, 0), np.full((HIGH, WIDE), 255)),
    "8 bits, 68 is clear": (png(RAMP >> 8, 8, 68), over_white(RAMP >> 8, RAMP >> 8 == 68)),
    "48 bits, a clear colour": (deep(halves(0x3456, 0x7890), (0x3456,) * 3), halves(255, 0x78)[..., 0]),
    "48 bits, a clear colour of another lower byte": (
        deep(halves(0x3456, 0x3400), (0x3400,) * 3), halves(0x34, 255)[..., 0]),
    "48 bits, a clear colour that is nowhere": (deep(halves(0x8012, 0x1281), (0x1280,) * 3), halves(128, 18)[..., 0]),
    "48 bits, a colour that is clear but for one channel": (
        deep(halves(0x3456, 0x7890), (0x3456, 0x3456, 0x3457)), halves(0x34, 0x78)[..., 0]),
    "a map of 1000 levels": (b"P5 60 40 1000\n" + (RAMP // 66).astype(">u2").tobytes(), (RAMP // 66) * 0.255),
}  # fmt: skip


@pytest.mark.parametrize("what", SHOWN)
def test_an_odd_file_shows_what_it_means(what, tmp_path):
    content, wanted = SHOWN[what]
    (tmp_path / "a.png").write_bytes(content)
    with warnings.catch_warnings(action="ignore"):
        shown = np.asarray(picture_files.read_picture(tmp_path / "a.png", "a test")).astype(float)
    assert np.abs(shown - wanted[..., None]).max() <= 1


def test_transparency_of_few_bits_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png(few(2), 2, 1))
    with pytest.warns(UserWarning, match="laid over white"):
        picture_files.read_picture(tmp_path / "a.png", "a test")


def fits():
    head = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": WIDE, "NAXIS2": HIGH}
    lines = "".join(f"{name:<8}= {value:>20}".ljust(80) for name, value in head.items())
    return (lines + "END".ljust(80)).ljust(2880).encode() + (RAMP // 2).astype(">i2").tobytes().ljust(5760, b"\0")


REFUSED = {
    "8 bits with a sign": tiff((RAMP >> 9).astype(np.int8), 8, form=2),
    "16 bits with a sign": tiff((RAMP // 2).astype(np.int16), 16, form=2),
    "broken numbers": tiff((RAMP / 65535).astype(np.float32), 32, form=3),
    "a table of stars": fits(),
    "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\n0 0 moveto showpage\n",
    "what Pillow knows by its beginning": b"\x89HDF\r\n\x1a\n" + b"\0" * 99,
    "weather": b"GRIB\0\0\0\1" + b"\0" * 99,
    "words": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a map that is cut off": b"P5 60 40 1000\n",
    "nothing": b"",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_photograph_is_refused_in_one_sentence(what, tmp_path):
    (tmp_path / "a.png").write_bytes(REFUSED[what])
    with pytest.raises(InputError, match="a.png, the picture of a test,") as caught:
        picture_files.read_picture(tmp_path / "a.png", "a test")
    assert "\n" not in str(caught.value)
    if what != "a map that is cut off":  # its pixels are looked at in the end
        with pytest.raises(InputError):
            picture_files.check_picture(tmp_path / "a.png", "a test")


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP"])
def test_every_kind_that_is_named_can_be_read(kind, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a", kind)
    shown = np.asarray(picture_files.read_picture(tmp_path / "a", "a test")).mean((0, 1))
    assert np.abs(shown - (255, 0, 0)).max() <= 4


def test_a_concepts_pictures_may_have_names_that_are_no_utf_8(tmp_path):
    digests = set()
    for name in (b"a.png", b"\xe9.png", b"\xe8.png", "\u00e9.png".encode()):
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
        os.replace(tmp_path / "x.png", os.path.join(os.fsencode(folder), name))
        digests.add(pictures.concept_digest(str(folder)))
        assert len(pictures.concept_pictures(str(folder), 8)) == 1
    assert len(digests) == 4
