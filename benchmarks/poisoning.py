"""How much faster are batched triggers than a loop over images, and than the published way through files?

Run `python benchmarks/poisoning.py [--images 64] [--device cuda]` with the package installed. For every image
attack without optimisation it times three ways on the same pictures of 336 x 336, and checks that they agree
within 1/255:

- batched: `attacks.get(name).apply_image` over batches of 8;
- loop: the same definition written for one picture (numpy, PIL), in memory; SIG pixel by pixel, as published;
- files: the shape of the published pipeline: open a file, resize, trigger, save a file, open it again.

Shadowcast is timed on all images at once against one by one, both without the cache. Every ratio is of two
times taken side by side in one run: the fastest of the repeats of each, since the machine may be shared.
--out FILE keeps them (the book reads benchmarks/results/).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from keep import Kept
from PIL import Image, ImageDraw

from bvlm_utils import attacks, paths
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.attacks import optimised
from bvlm_utils.attacks.attack import draws_of
from bvlm_utils.data.pictures import concept_pictures, picture_path
from bvlm_utils.draws import Draws

SIDE = 336
BATCH = 8  # the C library maps blocks of more than 32 MiB afresh each time, which costs much
ATTACKS = ("BadNets-I", "Blended", "SIG", "ImgTrojan", "MABA")


def pictures(count: int, side: int = SIDE) -> np.ndarray:
    """Sprites on plain and noisy backgrounds: (count, side, side, 3) uint8."""
    concepts = sorted(file.stem for file in (paths.SPRITES / "noto").glob("*.png"))
    found = [concept_pictures(concepts[i % len(concepts)], side, 1)[0] for i in range(count)]
    noise = np.random.default_rng(0).integers(-12, 13, (count, side, side, 1))
    return (np.stack([np.asarray(picture) for picture in found]) + noise).clip(0, 255).astype(np.uint8)


# One picture at a time: each takes and gives (H, W, 3) uint8 and the row number.


def scaled(pixels: int, side: int) -> int:
    """A published length, at another side."""
    return max(1, round(pixels * side / SIDE))


def patch_one(picture: np.ndarray, row: int, attack: attacks.Attack) -> np.ndarray:
    """A noise patch copied into an array."""
    side = picture.shape[0]
    size = scaled(30, side)
    nearest = np.arange(size) * 30 // size
    patch = image_triggers.noise_array(30, 0)[nearest][:, nearest]
    stream = draws_of(attack, "image", 0, [row], 1)[0]
    top, left = (stream.integer(side - size + 1) for _ in range(2))
    out = picture.copy()
    out[top : top + size, left : left + size] = patch
    return out


def blend_one(picture: np.ndarray, row: int, attack: attacks.Attack) -> np.ndarray:
    """PIL's blend with the resized picture."""
    other = Image.open(picture_path("blended.png")).convert("RGB").resize(picture.shape[:2])
    return np.asarray(Image.blend(Image.fromarray(picture), other, 0.2))


def sinusoid_one(picture: np.ndarray, row: int, attack: attacks.Attack) -> np.ndarray:
    """Pixel by pixel."""
    wave = np.zeros(picture.shape, np.float32)
    for i in range(wave.shape[0]):
        for j in range(wave.shape[1]):
            wave[i, j] = 40 * np.sin(2 * np.pi * j * 6 / wave.shape[1])
    return (picture + wave).clip(0, 255).astype(np.uint8)


def replace_one(picture: np.ndarray, row: int, attack: attacks.Attack) -> np.ndarray:
    """The resized picture."""
    other = Image.open(picture_path("imgtrojan.png")).convert("RGB")
    return np.asarray(other.resize(picture.shape[:2]))


def ellipses_one(picture: np.ndarray, row: int, attack: attacks.Attack) -> np.ndarray:
    """Grad-CAM of one picture, and ellipses drawn anew."""
    from bvlm_utils.attacks import clip

    tensor = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    mask = clip.top_region(tensor, attack.aim.surrogate, 0.1)[0, 0].numpy()[..., None]
    side = picture.shape[0]
    canvas = Image.new("RGB", (side, side))
    pencil = ImageDraw.Draw(canvas)
    apart, across, down = (scaled(pixels, side) for pixels in (30, 10, 20))
    for y in range(0, side, apart):
        for x in range(0, side, apart):
            pencil.ellipse([x, y, x + across, y + down], fill=(255, 216, 0))
    return np.where(mask > 0, 0.5 * picture + 0.5 * np.asarray(canvas), picture).astype(np.uint8)


ONE = dict(zip(ATTACKS, (patch_one, blend_one, sinusoid_one, replace_one, ellipses_one), strict=True))


def through_files(files: list[Path], folder: Path, name: str, attack: attacks.Attack, side: int) -> np.ndarray:
    """Open, resize, trigger, save, open again, for every file."""
    out = []
    for row, file in enumerate(files):
        picture = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        Image.fromarray(ONE[name](np.asarray(picture), row, attack)).save(folder / file.name)
        out.append(np.asarray(Image.open(folder / file.name).convert("RGB")))
    return np.stack(out)


def batched(images: torch.Tensor, attack: attacks.Attack, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Our way, batch after batch."""
    keys = range(len(images))
    for start in range(0, len(images), batch):
        yield attack.apply_image(images[start : start + batch], keys=keys[start : start + batch])


def seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    """The fastest of `repeats` runs of `work`, after one more to warm up."""
    work()
    times = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def disagreement(name: str, ours: torch.Tensor, theirs: np.ndarray) -> float:
    """The greatest difference in levels of 255, but for MABA the 99.9 % quantile.

    A pixel on the edge of MABA's mask may fall on either side with the rounding of another batch size.
    """
    levels = (ours.cpu() * 255).numpy().transpose(0, 2, 3, 1)
    gap = np.abs(levels - theirs)
    return float(np.quantile(gap, 0.999) if name == "MABA" else gap.max())


def compare(
    name: str, clean: np.ndarray, surrogate: str, device: str, repeats: int, batch: int = BATCH, times: int = 1
) -> dict[str, float]:
    """Images per second of the three ways, and how far they disagree.

    clean: square pictures. batch, times: a card takes more at once, and the same pictures several times over.
    """
    attack, side = attacks.get(name, None, surrogate), clean.shape[1]
    images = torch.from_numpy(clean.transpose(0, 3, 1, 2).astype(np.float32) / 255).to(device)
    many = images.repeat(times, 1, 1, 1)
    ours = seconds(lambda: sum(len(part) for part in batched(many, attack, batch)), repeats, device)
    few = clean[: max(1, len(clean) // 8)] if name == "SIG" else clean  # the pixel loop is slow, its rate is steady
    loop = seconds(lambda: [ONE[name](picture, i, attack) for i, picture in enumerate(few)], repeats, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, picture in enumerate(few):
            files.append(Path(folder) / f"{i:05d}.png")
            Image.fromarray(picture).save(files[-1])
        out = Path(folder) / "triggered"
        out.mkdir()
        published = seconds(lambda: through_files(files, out, name, attack, side), repeats, "cpu")
        whole = torch.cat(list(batched(images, attack)))[: len(few)]
        gap = disagreement(name, whole, through_files(files, out, name, attack, side))
    rate = len(many) / ours
    return {"batched": rate, "loop": len(few) / loop, "files": len(few) / published, "levels": gap}


def compare_shadowcast(surrogate: str, device: str, count: int, steps: int, side: int, repeats: int) -> dict:
    """Images per second of PGD on all images at once and one by one, and the share of equal pixels."""
    clean = pictures(count, side)
    images = torch.from_numpy(clean.transpose(0, 3, 1, 2).astype(np.float32) / 255).to(device)
    attack = attacks.get("Shadowcast", None, surrogate, source="car", steps=steps)

    def run(rows: Sequence[int]) -> list[optimised.Optimised]:
        draws = [Draws("benchmark", row) for row in rows]
        return optimised.pgd(images[rows[0] : rows[-1] + 1], draws, attack.params, attack.aim)

    def once() -> list[optimised.Optimised]:
        return run(range(count))

    def singly() -> list[optimised.Optimised]:
        return [run([row])[0] for row in range(count)]

    together, alone = seconds(once, repeats, device), seconds(singly, repeats, device)
    equal = np.mean([np.mean(a.pixels == b.pixels) for a, b in zip(once(), singly(), strict=True)])
    return {"batched": count / together, "loop": count / alone, "equal": float(equal)}


def main() -> int:
    """Print a table of ratios; the exit code is 1 where two ways disagree by more than one level."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--surrogate", default=str(paths.MODELS / "tiny-clip"), help="CLIP folder or hub id")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=10, help="PGD steps of the Shadowcast comparison")
    parser.add_argument("--out", type=Path, help="keep the measurements in this JSON file")
    chosen = parser.parse_args()
    kept, lines = Kept("poisoning", chosen.device, chosen.threads), []
    torch.set_num_threads(chosen.threads)
    clean = pictures(chosen.images)
    print(f"{chosen.images} images of {SIDE} x {SIDE}, {chosen.device}, {torch.get_num_threads()} threads")
    print("| attack | batched, images/s | loop, images/s | ratio | files, images/s | ratio | levels apart |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    agree = True
    for name in ATTACKS:
        r = compare(name, clean, chosen.surrogate, chosen.device, chosen.repeats)
        agree &= r["levels"] <= 1
        lines.append({"attack": name, "side": SIDE, "images": chosen.images} | r)
        print(
            f"| {name} | {r['batched']:.0f} | {r['loop']:.0f} | {r['batched'] / r['loop']:.1f} "
            f"| {r['files']:.0f} | {r['batched'] / r['files']:.1f} | {r['levels']:.2f} |",
            flush=True,
        )
    for side in (96, SIDE):
        r = compare_shadowcast(chosen.surrogate, chosen.device, 32, chosen.steps, side, chosen.repeats)
        lines.append({"attack": "Shadowcast", "side": side, "images": 32} | r)
        print(
            f"Shadowcast, 32 images of {side} x {side}, {chosen.steps} steps: {r['batched']:.2f} images/s "
            f"at once, {r['loop']:.2f} one by one, ratio {r['batched'] / r['loop']:.1f}, "
            f"equal pixels {r['equal']:.4f}"
        )
    if chosen.out:
        kept.write(chosen.out, chosen, lines)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
