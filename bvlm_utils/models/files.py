"""The files of a model folder: which of them a loader reads, and whether they can be what they are called. Torch-free.

Weights are safetensors, or else `pytorch_model.bin`, as CLIP's authors publish it, by torch's `weights_only`.
"""

import json
import os
from codecs import BOM_UTF8
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from bvlm_utils.checks import brief, is_number
from bvlm_utils.documents import unique
from bvlm_utils.errors import InputError

KINDS = {".json", ".safetensors", ".jinja", ".model", ".txt"}
# Files beside the weights that change nothing about the model.
NOT_THE_MODEL = {"training.json", "card.json", "README.md"}
SINGLE = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
INDEX = ".index.json"  # after the name of a file that is stored in parts
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SMALL = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.json", *PROCESSORS)
WHOLE = ("BOOL", *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)))  # kinds that no weight is of
LARGEST_HEADER = 100_000_000  # bytes: what the safetensors format allows
LFS = b"version https://git-lfs"
POINTER = "is a git-lfs pointer and not the file itself; fetch it with `git lfs pull`."


def read(folder: Path) -> list[Path]:
    """All files that a loader may read, those in sub-folders and the parts that the index names included."""
    paths = set()
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths |= {Path(root, name) for name in names if Path(name).suffix in KINDS and name not in NOT_THE_MODEL}
    return sorted(paths | {folder / part for part in parts(folder)})


def digest(files: list[Path], folder: Path) -> str:
    """16 hex digits of the files' names in their folder and of their contents."""
    hasher = sha256()
    for file in files:
        with open(file, "rb") as stream:
            hasher.update(file.relative_to(folder).as_posix().encode() + file_digest(stream, "sha256").digest())
    return hasher.hexdigest()[:16]


def check(folder: Path) -> dict[str, Any]:
    """The folder's config.json; InputError in one sentence if the folder cannot be loaded, or should not be."""
    config = table(folder / "config.json")
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"The model folder {folder} holds an adapter as well (adapter_config.json), which would be put on the "
            "model without a word; move one of the two to a folder of its own."
        )
    if packing := config.get("quantization_config"):
        raise InputError(
            f"The model in {folder} is packed already (quantization_config in its config.json is {brief(packing)}); "
            "give the checkpoint that it was made of, and set four_bit where memory is short."
        )
    if config.get("transformers_weights"):
        raise InputError(f"{folder / 'config.json'} names its weights in 'transformers_weights'; {SINGLE[0]} is read.")
    if not (names := parts(folder)):
        raise InputError(f"The model folder {folder} has no weights; {SINGLE[0]} is needed.")
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"The model folder {folder} lacks {name}, which its index names; copy it there.")
        if name.endswith(".safetensors"):
            header(folder / name)
    check_layers(config, folder)
    return config


def check_layers(config: dict[str, Any], folder: Path) -> None:
    """InputError for features that are taken from a layer (`vision_feature_layer`) which the vision tower lacks."""
    tower = config.get("vision_config") if isinstance(config.get("vision_config"), dict) else {}
    count = tower.get("num_hidden_layers", tower.get("depth"))
    feature_layer = config.get("vision_feature_layer")
    if feature_layer is None or not is_number(count, 1, 10**4, whole=True):
        return
    feature_layers = feature_layer if isinstance(feature_layer, list) and feature_layer else [feature_layer]
    # transformers takes 0 alone for "none"
    if feature_layer == 0 or not all(is_number(layer, -count - 1, count, whole=True) for layer in feature_layers):
        raise InputError(
            f"vision_feature_layer in {folder / 'config.json'} is {brief(feature_layer)}, and its vision tower has "
            f"{count} layers; give a whole number from {-count - 1} to {count} other than 0, or a list of such."
        )


def check_talking(folder: Path) -> None:
    """InputError unless all that turns words and pictures into a model's input is there, each file whole."""
    small_files = {name for name in SMALL if (folder / name).exists() and table(folder / name) is not None}
    tables = [table(folder / name) for name in ("tokenizer_config.json", *PROCESSORS) if (folder / name).exists()]
    template = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))
    template |= any(settings.get("chat_template") for settings in tables)
    for part, present in {
        f"tokenizer ({', '.join(TOKENIZERS[:2])})": any((folder / name).exists() for name in TOKENIZERS),
        f"image processor ({', '.join(PROCESSORS)})": {*PROCESSORS} & small_files,
        "chat template; give a checkpoint that was tuned for chat": template,
    }.items():
        if not present:
            raise InputError(f"The model folder {folder} has no {part}.")


def parts(folder: Path) -> list[str]:
    """The files with weights, by their names in the folder: one, or those that an index names."""
    for single in SINGLE:
        if (folder / single).exists():
            return [single]
        if (folder / f"{single}{INDEX}").exists():
            return _named(folder / f"{single}{INDEX}", Path(single).suffix)
    return []


def _named(index: Path, suffix: str) -> list[str]:
    entries = table(index).get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(name, str) for name in entries.values()):
        raise InputError(f"{index} has no table 'weight_map' of weights and their files.")
    names = sorted(set(entries.values()))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or Path(name).suffix != suffix:
            raise InputError(f"{index} names the part {name!r}; it must be a {suffix} file in the folder.")
    return names


def table(file: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        if file.exists() and not file.is_file():  # whoever opens a pipe waits for ever
            raise InputError(f"{file} is no file.")
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from None
    if raw.startswith(LFS):
        raise InputError(f"{file} {POINTER}")
    if raw.startswith(BOM_UTF8):
        raise InputError(f"{file} begins with a byte order mark, which loaders do not take; save it as UTF-8 without.")
    try:  # models' files may hold Infinity, which `documents.parse_json` refuses
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file} is not complete JSON in UTF-8; it may be cut off.") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is no table of names and values in JSON.")
    return content


def has_adapter(folder: Path) -> bool:
    """Whether a folder holds a whole adapter in PEFT's format, as far as can be seen without torch."""
    try:
        return bool(table(folder / "adapter_config.json") and header(folder / "adapter_model.safetensors"))
    except InputError:
        return False


def header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file by name; InputError for a file that is none, or is cut off."""
    try:
        with open(file, "rb") as stream:
            start = stream.read(8)
            size = int.from_bytes(start, "little")
            if LFS.startswith(start) and len(start) == 8:
                raise InputError(f"{file} {POINTER}")
            if len(start) < 8 or size > LARGEST_HEADER:
                raise ValueError
            entries = json.loads(stream.read(size))
            length = os.fstat(stream.fileno()).st_size
        entries.pop("__metadata__", None)
        if length != 8 + size + max((entry["data_offsets"][1] for entry in entries.values()), default=0):
            raise ValueError
        if bad := [name for name, entry in entries.items() if name.endswith(".weight") and entry["dtype"] in WHOLE]:
            raise InputError(f"{len(bad)} weights in {file} are whole numbers ({bad[0]!r} for one); copy it again.")
        return {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no complete safetensors file; it may be cut off, so copy it again.") from None
