"""Names of models ("tiny-llava", a folder, a hub id) and adapters: which one is meant, and whether it has changed."""

import os
import re
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bvlm_utils import paths
from bvlm_utils.checks import brief, file_state
from bvlm_utils.errors import InputError, remark
from bvlm_utils.models import families, files

# What the hub allows, to be tried at 96 letters at most; it has neither "--" nor ".." in a name.
HUB_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]*\w)?", re.ASCII)


def names() -> list[str]:
    """The committed vision-language models."""
    folders = sorted(path.parent.name for path in paths.MODELS.glob("*/config.json"))
    return [name for name in folders if (paths.MODELS / name / "generation_config.json").exists()]


def resolve(name: str) -> str:
    """The folder or hub id behind `name`; InputError names what would be right."""
    folder = paths.named(name, "model")
    committed = paths.MODELS / name
    if "/" not in name and (committed / "config.json").exists():
        return str(committed)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise InputError(f"The model folder {name!r} has no config.json; give a folder that transformers saved.")
        return str(folder.resolve())
    if HUB_ID.fullmatch(name) and len(name) <= 96 and not re.search(r"--|\.\.|\.git$", name):
        if not folder.parent.is_dir():
            return name
        raise InputError(  # a folder whose name was misspelt: the hub is not asked for it
            f"There is no folder {Path(name).name!r} in {folder.parent}, and as that folder is there, {name!r} is not "
            "taken for a hub id; give a folder with a checkpoint."
        )
    raise InputError(
        f"There is no model {name!r}; give one of {', '.join(names())}, a folder with a checkpoint, "
        "or a hub id such as llava-hf/llava-1.5-7b-hf."
    )


def folder(name: str) -> Path | None:
    """The folder of a model on this machine; None for a hub id that was not downloaded."""
    location = resolve(name)
    if Path(location).is_dir():
        return Path(location)
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(location, "config.json")
    return Path(file).parent if isinstance(file, str) else None


def config(name: str) -> dict[str, Any]:
    """The config.json of a model; empty where its folder is not on this machine."""
    path = folder(name)
    return _config(path / "config.json", file_state(path / "config.json")) if path else {}


@lru_cache
def _config(file: Path, state: tuple) -> dict[str, Any]:
    return files.table(file)


def text_config(name: str) -> dict[str, Any]:
    """What the config.json of a model says of its language model."""
    table = config(name)
    text = table.get("text_config")
    return text if isinstance(text, dict) else table


def check_kind(name: str, clip: bool) -> None:
    """InputError for a model that is a CLIP where a victim is wanted, and the other way round."""
    kind = config(name).get("model_type")
    if folder(name) and (kind == "clip") != clip:
        reason = "the surrogate of a trigger is a CLIP" if clip else "a victim answers prompts about pictures"
        raise InputError(f"The model {name!r} is of type {kind!r}, and {reason}; give another.")


def check_four_bit() -> None:
    """InputError where no model can be loaded in 4 bit."""
    if find_spec("bitsandbytes") is None:
        raise InputError("four_bit=True needs the package bitsandbytes, which is not installed; install it.")


def is_hub_id(name: str) -> bool:
    return not Path(resolve(name)).is_dir()


def digest(name: str) -> str:
    """16 hex digits of all files that a loader may read, or of a hub id. InputError if it cannot be loaded."""
    location = resolve(name)
    if not Path(location).is_dir():
        return sha256(location.encode()).hexdigest()[:16]
    model_files = files.read(Path(location))
    if not all(file.exists() for file in model_files):
        files.check(Path(location))  # says which part is missing
    return _folder_digest(location, tuple((file, file_state(file)) for file in model_files))


@lru_cache
def _folder_digest(folder: str, states: tuple) -> str:
    kind = files.check(Path(folder)).get("model_type")
    if kind != "clip":  # which is no victim, and need not talk
        families.of(kind)
        files.check_talking(Path(folder))
    return files.digest([file for file, _ in states], Path(folder))


def adapter_folder(name: str) -> Path:
    """The folder with the adapter: `name` itself, or `adapter` inside it, as in a run of the store."""
    path = paths.named(name, "adapter")
    for folder in (path, path / "adapter"):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise InputError(f"The folder {name!r} holds no adapter; give one with adapter_config.json in it.")


def base_under(adapter: Path, model: str | None) -> str:
    """The model to put an adapter on: the one that it names, or `model`, with a remark if that is another."""
    base = _named_base(adapter)
    if model is None:
        if not (base and isinstance(base, str)):
            raise InputError(
                f"The adapter in {adapter} does not say which model it was tuned on; give it with --model."
            )
        return base
    if base and not _same(base, model):
        note = (
            f"The adapter in {adapter} was tuned on {brief(base)} by its own words, and was put on {model!r}; if these"
        )
        remark(f"{note} are two models, the results mean nothing.")
    return model


def check_base(adapter: Path, model: str) -> None:
    """InputError for an adapter that says that it was tuned on another model than `model`. One that says nothing is
    taken: its sizes are checked where it is put on.
    """
    base = _named_base(adapter)
    if base and not _same(base, model):
        raise InputError(
            f"The adapter in {adapter} was tuned on {base!r}, and {model!r} is wanted; give one of the same base."
        )


def _named_base(adapter: Path) -> Any:
    return files.table(adapter / "adapter_config.json").get("base_model_name_or_path")


def _same(name: Any, other: str) -> bool:
    """Whether two names mean one model. A copy is the same; what is not on this machine is compared by its name."""
    if not isinstance(name, str):
        return False
    with suppress(InputError):
        if resolve(name) == resolve(other):
            return True
        if is_hub_id(name) == is_hub_id(other):
            return digest(name) == digest(other)
    return Path(name).name == Path(other).name


def go_offline(name: str) -> None:
    """Keep Hugging Face libraries off the network unless `name` is a hub id: retries would take minutes."""
    if not is_hub_id(name):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
