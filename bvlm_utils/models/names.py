"""Names of models: which model one means, and whether it has changed. Free of torch.

A name is one of ours ("tiny-llava", a folder of `data/models/`), a folder, or a hub id
("llava-hf/llava-1.5-7b-hf").
"""

import os
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from bvlm_utils import paths
from bvlm_utils.errors import InputError

# Files beside the weights that change nothing about the model.
NOT_THE_MODEL = {"training.json", "card.json", "README.md"}


def names() -> list[str]:
    """The committed vision-language models."""
    found = sorted(path.parent.name for path in paths.MODELS.glob("*/config.json"))
    return [name for name in found if (paths.MODELS / name / "generation_config.json").exists()]


def resolve(name: str) -> str:
    """The folder or hub id behind `name`; InputError names what would be right."""
    committed = paths.MODELS / name
    if "/" not in name and (committed / "config.json").exists():
        return str(committed)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise InputError(f"The model folder {name!r} has no config.json; give a folder that transformers saved.")
        return str(folder.resolve())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise InputError(
        f"There is no model {name!r}; give one of {', '.join(names())}, a folder with a checkpoint, "
        "or a hub id such as llava-hf/llava-1.5-7b-hf."
    )


def is_hub_id(name: str) -> bool:
    return not Path(resolve(name)).is_dir()


def digest(name: str) -> str:
    """16 hex digits of the checkpoint's files; for a hub id, of the id, as its weights are elsewhere."""
    place = resolve(name)
    if not Path(place).is_dir():
        return sha256(place.encode()).hexdigest()[:16]
    return _folder_digest(place, tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in _files(Path(place))))


def _files(folder: Path) -> list[Path]:
    kinds = {".json", ".safetensors", ".jinja", ".model", ".txt"}
    return sorted(f for f in folder.iterdir() if f.suffix in kinds and f.name not in NOT_THE_MODEL)


@lru_cache
def _folder_digest(folder: str, _state: tuple) -> str:
    whole = sha256()
    for file in _files(Path(folder)):
        whole.update(file.name.encode() + sha256(file.read_bytes()).digest())
    return whole.hexdigest()[:16]


def go_offline(name: str) -> None:
    """Keep Hugging Face libraries off the network unless `name` is a hub id: retries would take minutes."""
    if not is_hub_id(name):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
