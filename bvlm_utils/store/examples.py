"""Examples of triggers: a few test inputs without and with each, kept in a store for the book. Free of torch.

examples/KEY.json     the prompts, and which two strips of pictures belong to them
examples/DIGEST.png   pictures side by side; kept once, as many triggers are shown on the same ones
"""

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from bvlm_utils import models
from bvlm_utils.atomic import DAMAGED, write_file
from bvlm_utils.attacks import attack
from bvlm_utils.checks import content_key
from bvlm_utils.errors import InputError
from bvlm_utils.store import damage, packed, records
from bvlm_utils.store.cell import SURROGATE, Cell

DIGEST = re.compile(r"[0-9a-f]{16}")


def key(cell: Cell) -> str:
    """The name of a cell's examples: cells that show the same trigger on the same rows share them."""
    names = ("dataset", "data_digest", "threat", "attack", "attack_params", "attack_version", "trigger_seed")
    shared = {name: cell.identity[name] for name in names}
    # Left out where they are the usual ones, as the first examples were named without them.
    if cell.threat_params:
        shared["threat_params"] = cell.identity["threat_params"]
    surrogate = cell.identity.get("surrogate")
    if surrogate and surrogate != attack.surrogate_digest(models.resolve(SURROGATE)):
        shared["surrogate"] = surrogate
    if "picture" in {*cell.attack_params, *cell.threat_params} or "attack_files" in cell.identity:  # of any content
        shared |= {name: cell.identity[name] for name in ("pictures", "attack_files") if name in cell.identity}
    return f"{cell.attack}-{content_key(shared)[:8]}"


def write(
    cell: Cell, store: str | Path | None, clean: np.ndarray, triggered: np.ndarray, prompts: list[tuple[str, str]]
) -> None:
    """Keep held-out inputs, clean and triggered (N, H, W, 3) uint8, and N pairs of prompts, if the store lacks them."""
    if read(cell, store) is not None:
        return
    root = records.folder(store) / "examples"
    fields = {"width": int(clean.shape[2]), "clean": _keep(root, clean), "triggered": _keep(root, triggered)}
    text = json.dumps(fields | {"prompts": prompts}, indent=1, ensure_ascii=False)
    write_file(root / f"{key(cell)}.json", f"{text}\n")


def _keep(root: Path, pictures: np.ndarray) -> str:
    strip = np.concatenate(list(pictures), axis=1)
    digest = hashlib.sha256(repr(strip.shape).encode() + strip.tobytes()).hexdigest()[:16]
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, "PNG")
    file = root / f"{digest}.png"
    if not file.is_file() or file.read_bytes() != buffer.getvalue():  # of an earlier run, or cut off
        write_file(file, buffer.getvalue())
    return digest


def read(cell: Cell, store: str | Path | None = None) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]] | None:
    """What `write` kept: (clean, triggered, prompts); None if it is not there or damaged, which standard error says."""
    root, name = records.folder(store), f"{key(cell)}.json"
    if (content := packed.content(root, "examples", name)) is None:
        return None
    try:
        fields = json.loads(content)
        pictures = [_pictures(root, fields[kind], int(fields["width"])) for kind in ("clean", "triggered")]
        return *pictures, [(str(before), str(after)) for before, after in fields["prompts"]]
    except (*DAMAGED, Image.DecompressionBombError) as error:
        problem = f"{root / 'examples' / name} is no file of examples ({error})"
        damage.passed_over(f"{problem}; it is passed over, and a run of its cell makes it again.")
        return None


def _pictures(root: Path, digest: str, width: int) -> np.ndarray:
    if not DIGEST.fullmatch(str(digest)):  # the name of a file: never a path from a data file
        raise InputError(f"it names {digest!r} as pictures, which should be 16 digits of a digest")
    if (png := packed.content(root, "examples", f"{digest}.png")) is None:
        raise InputError(f"its pictures {digest}.png are missing")
    strip = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    if width < 1 or strip.shape[1] % width:
        raise InputError(f"its pictures {digest}.png are {strip.shape[1]} wide, which is no multiple of {width}")
    return np.stack(np.split(strip, strip.shape[1] // width, axis=1))
