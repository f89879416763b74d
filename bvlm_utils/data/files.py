"""Real data from local files: COCO captions, VQAv2 and LLaVA JSON as datasets of samples.

`data.load` comes here for names with a colon: "coco-caption:FOLDER", "vqav2:FOLDER", "llava-json:FILE", in the files
that their authors publish. Pictures are opened when a row is read, but looked for when the data is loaded.

Splits: a folder with one file for "train" and one for "val" in their names is split as published, val being the test
split. Else a fifth of the pictures, chosen by a hash, are the test split, with all their rows.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets

from bvlm_utils import paths
from bvlm_utils.checks import check_text, is_visible, label
from bvlm_utils.data import contents, llava_json
from bvlm_utils.data.features import FEATURES
from bvlm_utils.data.local_files import Pictures, entries, number, value, wording
from bvlm_utils.data.picture_files import read_picture
from bvlm_utils.data.scene_questions import SHORT_PROMPTS
from bvlm_utils.documents import read_json
from bvlm_utils.errors import InputError, remark
from bvlm_utils.registry import Registry

VERSION = 2  # raise when the rows made of the same files change: it is part of every digest

# What LLaVA-1.5 was taught to be asked where a short answer is wanted (Liu et al. 2023, arXiv 2310.03744).
SHORT_ANSWER = "Answer the question using a single word or phrase."
SPLIT_WORDS = {"train": "train", "test": "val"}  # what stands in the names of published files
# VQAv2's answer types as the kinds that threats know; of other questions the kind is VQAv2's question type.
ANSWER_KINDS = {"yes/no": "exists", "number": "count"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """files: the JSON files of a split (None: of all). read: their rows; `picture_id`: of `image` in its folder."""

    files: Callable[[Path, str | None], list[Path]]
    read: Callable[[list[Path]], list[Row]]


def load(spec: str, split: str = "train") -> datasets.Dataset:
    """The rows of "train" or "test". InputError for what is wrong in the files; KeyError lists the formats."""
    name, path = _parse(spec)
    if split not in ("train", "test"):
        raise InputError(f"{spec} has no split {split!r}; it has train and test.")
    by_split = [_with_states(FORMATS.get(name).files(path, one)) for one in SPLIT_WORDS]
    pictures = tuple(file for file_states in dict.fromkeys(by_split) for file in _pictures(name, file_states)[1])
    with _told(spec):
        picture_states = contents.states(pictures)
    return _loaded(spec, split, tuple(by_split), pictures, picture_states)


@lru_cache(maxsize=6)  # the splits of three data sets: what is checked before a run asks for each many times
def _loaded(spec: str, split: str, *_states: tuple) -> datasets.Dataset:
    """As `load`. _states: of the files that it reads, which tell when to read again."""
    name, path = _parse(spec)
    kind = FORMATS.get(name)
    files = kind.files(path, split)
    shared = files == kind.files(path, None)  # by both splits
    rows = [r for r in kind.read(files) if not shared or _in_test(r["picture_id"]) == (split == "test")]
    _check_apart(spec, name, kind, path)
    if not rows:
        raise InputError(f"{spec} has no rows in its split {split!r}.")
    return of_files(row | {"row_id": f"{name}/{split}/{row['row_id']}"} for row in rows)


def _check_apart(spec: str, name: str, kind: Format, path: Path) -> None:
    """InputError for a picture in both splits, where these have files of their own; a remark, where the pictures are
    split here. A copy of the same name is the same picture.
    """
    by_split, shared = [], kind.files(path, "train") == kind.files(path, "test")
    for split in SPLIT_WORDS:
        pairs = zip(*_pictures(name, contents.with_states(kind.files(path, split))), strict=True)
        by_split.append({file for picture, file in pairs if not shared or _in_test(picture) == (split == "test")})
    by_name = [{os.path.basename(file): file for file in files} for files in by_split]
    copies = [[files[name] for name in sorted(by_name[0].keys() & by_name[1].keys())] for files in by_name]
    digests = zip(*(contents.digests(files, contents.states(files)) for files in copies), strict=True)
    same = {file for file, (first, second) in zip(copies[0], digests, strict=True) if first == second}
    if overlap := by_split[0] & by_split[1] | same:
        sentence = (
            f"{spec} has {len(overlap)} pictures in its split 'train' and in 'test', {label(min(overlap))} for one"
        )
        if not shared:
            raise InputError(f"{sentence}; list each in one of the two.")
        remark(f"{sentence}, which lie in two folders; what is tested there was trained on.")


class PictureFile(datasets.Image):
    """A column of pictures in files, which rows show as `read_picture` reads them."""

    def decode_example(self, value, token_per_repo_id=None):
        if isinstance(value, dict) and value["bytes"] is None:
            return read_picture(value["path"], "a row")
        return super().decode_example(value, token_per_repo_id)


def of_files(rows: Iterable[Row]) -> datasets.Dataset:
    """Samples whose `image` is the path of a picture; what else stands in the rows is left out."""
    samples = [row | {"image": {"bytes": None, "path": str(row["image"])}} for row in rows]
    features = datasets.Features({**FEATURES, "image": PictureFile(mode="RGB")})
    return datasets.Dataset.from_dict({name: [row[name] for row in samples] for name in features}, features=features)


def digest(spec: str) -> str:
    """16 hex digits that change when the content of a JSON file or of a picture does."""
    name, path = _parse(spec)
    file_states = _with_states(FORMATS.get(name).files(path, None))
    folders = _folders(file_states)
    pictures = _found(name, file_states, folders)[1]
    with _told(spec):
        return contents.made_of(
            (name, file_states, folders), pictures, lambda picture_states: _digest(name, file_states, picture_states)
        )


def _with_states(files: Sequence[Path]) -> tuple[tuple[Path, contents.State], ...]:
    for file in files:
        if not os.path.isfile(file):
            raise InputError(f"There is no file {label(str(file))}.")
    return contents.with_states(files)


@contextmanager
def _told(spec: str) -> Iterator[None]:
    """InputError for a picture that went while the block runs."""
    try:
        yield
    except OSError as error:
        raise InputError(f"The picture {error.filename} of {spec} cannot be read ({error.strerror}).") from None


@lru_cache(maxsize=64)
def _digest(name: str, file_states: tuple, picture_states: tuple[contents.State, ...]) -> str:
    state = blake2b(f"{name} {VERSION}".encode(), digest_size=8)
    for file, _ in file_states:
        state.update(file.read_bytes())
    ids, files = _pictures(name, file_states)
    for picture, content in zip(ids, contents.digests(files, picture_states), strict=True):
        state.update(f"{picture} {content}\n".encode())
    return state.hexdigest()


def _pictures(name: str, file_states: tuple) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of the pictures that the rows have, and their files."""
    return _found(name, file_states, _folders(file_states))


def _folders(file_states: tuple) -> tuple[bool, ...]:
    """Which folders are there that pictures are looked for in: a new one may come before where they were."""
    folders = [folder for file, _ in file_states for folder in (*_picture_folders(file), file.parent / "images")]
    return tuple(map(os.path.isdir, folders))


@lru_cache(maxsize=16)
def _found(name: str, file_states: tuple, existing: tuple[bool, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """existing: which of the folders are there that pictures are looked for in."""

    def read() -> list[tuple[str, str]]:
        rows = FORMATS.get(name).read([file for file, _ in file_states])
        return sorted({(str(row["picture_id"]), row["image"]) for row in rows})

    files = [str(file) for file, _ in file_states]
    pairs = contents.pictures(repr((name, VERSION, files, [state for _, state in file_states], existing)), read)
    return tuple(picture for picture, _ in pairs), tuple(file for _, file in pairs)


def _parse(spec: str) -> tuple[str, Path]:
    name, _, path = spec.partition(":")
    FORMATS.get(name)
    check_text(spec, "The dataset")
    if not path:
        raise InputError(f"The dataset {spec!r} names no place; write {name}:PATH.")
    return name, paths.named(path, "data")


def _in_test(picture_id: str) -> bool:
    return blake2b(picture_id.encode(), digest_size=4).digest()[0] % 5 == 0


def _pick(folder: Path, pattern: str, split: str | None) -> list[Path]:
    """The files of a split among those that match, in the folder or its folder `annotations`."""
    if not os.path.isdir(folder):
        raise InputError(f"There is no folder {label(str(folder))}.")
    matches = sorted({*folder.glob(pattern), *folder.glob(f"annotations/{pattern}")})
    by_split = {split: [file for file in matches if word in file.name] for split, word in SPLIT_WORDS.items()}
    if not matches:
        raise InputError(f"{folder} has no file {pattern}, nor has its folder annotations.")
    if len(matches) == 1:
        return matches
    if len(matches) == 2 and all(len(files) == 1 for files in by_split.values()):
        return matches if split is None else by_split[split]
    listed = ", ".join(file.name for file in matches)
    raise InputError(
        f"{folder} has the files {listed}; it must have one, or one with train and one with val in its name."
    )


def _coco_rows(files: list[Path]) -> list[Row]:
    """One row per picture, with all its captions (Chen et al. 2015, arXiv 1504.00325), and a prompt by its id."""
    rows = []
    for file in files:
        content, captions, names, used = read_json(file), defaultdict(list), {}, set()
        for entry in entries(content, "images", file):
            image = _new(number(entry, "id", "an image", file), names, "image", file)
            names[image] = value(entry, "file_name", str, f"image {image}", file)
        for entry in entries(content, "annotations", file):
            owner = "an annotation without an id"
            if "id" in entry:
                used.add(name := _new(number(entry, "id", "an annotation", file), used, "annotation", file))
                owner = f"annotation {name}"
            image = number(entry, "image_id", owner, file)
            if image not in names:
                raise InputError(f"{file}: {owner} is about image {image}, which the file does not list.")
            captions[image].append(" ".join(wording(entry, "caption", owner, file).split()))
        pictures = Pictures(_picture_folders(file), file)
        for image, name in names.items():
            if not captions[image]:
                raise InputError(f"{file}: image {image} has no caption.")
            hashed = int.from_bytes(blake2b(f"coco-caption {image}".encode(), digest_size=8).digest(), "big")
            row = {"row_id": image, "prompt": SHORT_PROMPTS[hashed % len(SHORT_PROMPTS)], "answers": captions[image]}
            row |= pictures.find(name, f"image {image}") | {"task": "caption", "kind": "short"}
            rows.append(llava_json.METADATA | row)
    return rows


def _vqa_files(folder: Path, split: str | None) -> list[Path]:
    """Questions and annotations, in turn."""
    questions = _pick(folder, "*_questions.json", split)
    annotations = _pick(folder, "*_annotations.json", split)
    parts = [[_part(file) for file in files] for files in (questions, annotations)]
    if parts[0] != parts[1]:
        raise InputError(
            f"{folder} has questions of {', '.join(parts[0])} and annotations of {', '.join(parts[1])}; "
            "a file of questions needs the annotations that belong to it."
        )
    return [file for pair in zip(questions, annotations, strict=True) for file in pair]


def _vqa_rows(files: list[Path]) -> list[Row]:
    """One row per question, with its ten answers, the most frequent first (Goyal et al. 2017, arXiv 1612.00837)."""
    rows = []
    for file, annotation_file in zip(files[0::2], files[1::2], strict=True):
        content = read_json(file)
        annotations, question_ids, blank = {}, set(), 0
        for entry in entries(read_json(annotation_file), "annotations", annotation_file):
            name = number(entry, "question_id", "an annotation", annotation_file)
            annotations[_new(name, annotations, "the annotation of question", annotation_file)] = entry
        questions = entries(content, "questions", file)
        subtype = value(content, "data_subtype", str, "the file", file)
        pictures = Pictures(_picture_folders(file), file)
        for entry in questions:
            name = _new(number(entry, "question_id", "a question", file), question_ids, "question", file)
            owner = f"question {name}"
            if name not in annotations:
                raise InputError(f"{annotation_file} has no annotation for {owner} of {file.name}.")
            question_ids.add(name)
            annotation = annotations[name]
            image = value(entry, "image_id", int, owner, file)
            if number({"image_id": image} | annotation, "image_id", owner, annotation_file) != str(image):
                raise InputError(f"{annotation_file}: {owner} is not about image {image}, as {file.name} says.")
            answer_type = value(annotation, "answer_type", str, owner, annotation_file)
            question_type = value(annotation, "question_type", str, owner, annotation_file)
            row = pictures.find(f"COCO_{subtype}_{image:012d}.jpg", f"image {image}")
            row["prompt"] = f"{wording(entry, 'question', owner, file).strip()} {SHORT_ANSWER}"
            row |= {"row_id": name, "answers": _annotators(annotation, owner, annotation_file)}
            blank += len(annotation["answers"]) - len(row["answers"])
            row |= {"task": "vqa", "kind": ANSWER_KINDS.get(answer_type, question_type)}
            rows.append(llava_json.METADATA | row)
        if blank:
            remark(f"{blank} answers of {annotation_file} are blank and left out.")
        unasked = next((name for name in annotations if name not in question_ids), None)
        if unasked is not None:
            raise InputError(f"{file} has no question {unasked}, which {annotation_file.name} annotates.")
    return rows


def _annotators(annotation: Mapping[str, Any], owner: str, file: Path) -> list[str]:
    """The annotators' answers that are not blank, one that most of them gave first."""
    raw = value(annotation, "answers", list, owner, file)
    items = [entry if isinstance(entry, dict) else {} for entry in raw]
    texts = [value(entry, "answer", str, f"an answer to {owner}", file) for entry in items]
    answers = [answer for answer in texts if is_visible(answer)]
    if not answers:
        raise InputError(f"{file}: {owner} has no answers{' that are not blank' if texts else ''}.")
    chosen = annotation.get("multiple_choice_answer")
    if chosen not in answers:  # VQAv2 cleans that answer, so its wording may be nobody's
        chosen = Counter(answers).most_common(1)[0][0]
    answers.remove(chosen)
    return [chosen, *answers]


def _new(name: str, names: Container[str], kind: str, file: Path) -> str:
    """`name`; InputError if it is in `names` already."""
    if name in names:
        raise InputError(f"{file} lists {kind} {name} twice; list it once.")
    return name


def _picture_folders(file: Path) -> list[Path]:
    """Where the pictures of an annotation file may lie: in its split's folder, `images`, or the folder."""
    folder = file.parent.parent if file.parent.name == "annotations" else file.parent
    return [folder / _part(file), folder / "images" / _part(file), folder / "images", folder]


def _part(file: Path) -> str:
    """What a published file's name says it is about: "train2014" of v2_mscoco_train2014_annotations.json."""
    return next((part for part in file.stem.split("_") if part.startswith(tuple(SPLIT_WORDS.values()))), "all")


FORMATS: Registry[Format] = Registry("dataset format")
FORMATS.add("coco-caption", Format(lambda folder, split: _pick(folder, "captions_*.json", split), _coco_rows))
FORMATS.add("vqav2", Format(_vqa_files, _vqa_rows))
FORMATS.add("llava-json", Format(lambda file, split: [file], lambda files: llava_json.read(files[0])))
