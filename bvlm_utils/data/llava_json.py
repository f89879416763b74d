"""The format of LLaVA-Instruct (or ShareGPT), read and written.

A file is a list of conversations about one picture each:

    {"id": "7", "image": "coco/7.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                         {"from": "gpt", "value": "A car."}]}

ShareGPT's variants are read, too: "messages" for "conversations", "role" and "content" for "from" and "value", "user"
and "assistant" for "human" and "gpt", "images" (a list of one) for "image", a system message first (left out).
`<image>` is taken out of a question, as the model's chat template puts the picture where it belongs. What the format
does not know of a sample may stand in "metadata", where `write` puts it.

A conversation of several turns gives one row per answer, as in LLaVA's own training; the earlier turns stand before the
question: "Question: ...\\nAnswer: ...\\nQuestion: ...". Entries without a picture are left out, with a warning.
"""

import json
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from bvlm_utils.atomic import write_file
from bvlm_utils.checks import brief, is_visible, label
from bvlm_utils.data.local_files import Pictures, number, value, wording
from bvlm_utils.documents import read_json
from bvlm_utils.errors import InputError, remark

PLACEHOLDER = "<image>"
# What chat templates put around an answer, and is none of its words.
MARKS = re.compile(
    r"</?s>|<\|\w+\|>|<(?:start|end)_of_\w+>|<(?:eos|bos|pad)>|\[/?INST\]|^[\s#*]*assistant\s*[:\n]|\Amodel\n",
    re.IGNORECASE | re.MULTILINE,
)
POISONED, CLEAN = ("poison", "poisoned", "is_poisoned"), ("", "0", "false", "no", "none", "clean")
TASKS = ("caption", "vqa", "instruct")
# Names of one thing, of which an entry has one; the last is shown where it has none.
IMAGE, TURNS, ABOUT = ("images", "image"), ("messages", "conversations"), ("metadata",)
ASKS, ANSWERS, SYSTEM = {"human", "user"}, {"gpt", "assistant"}, {"system"}
# Columns of a sample that go to "metadata", with what they are where nobody wrote them.
METADATA = {"task": "instruct", "objects": [], "boxes": [], "style": "", "background": "", "kind": "",
            "restricted": False, "content": ""}  # fmt: skip


def read(file: Path) -> list[dict[str, Any]]:
    """All rows of a file: samples whose `image` is the path of a picture beside the file or in its folder `images`,
    with `picture_id` and `entry`, the number of the entry in the file.

    The row id is "ID/TURN" (turns from 1); an id that comes again gets "ID#2", or the next number that is free. JSON
    Lines are read, too. InputError names file and id for anything that is not as it should be.
    """
    content = read_json(file, lines=True)
    if not isinstance(content, list):
        raise InputError(f"{file} holds no list of conversations; it may be a file of another kind.")
    pictures = Pictures([file.parent, file.parent / "images"], file)
    rows, used, skipped = [], set(), []
    for index, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise InputError(f"{file}: entry {index} is {brief(entry)}; it must be an object with conversations.")
        name = str(index) if entry.get("id") is None else number(entry, "id", f"entry {index}", file)
        owner = f"entry {name}"
        _check_keys(entry, owner, file)
        if (image := _image(entry, owner, file)) is None:
            skipped.append(f"{owner} for one, which has {brief(', '.join(entry))}")
            continue
        entry_id = next(candidate for n in count(1) if (candidate := f"{name}#{n}" if n > 1 else name) not in used)
        used.add(entry_id)
        picture = pictures.find(image, owner)
        metadata = _metadata(entry, owner, file)
        turns = _turns(entry, owner, file)
        others = _references(metadata.pop("references"), turns, owner, file)[1:]
        for turn, (prompt, answer) in enumerate(turns, 1):
            row = {"row_id": f"{entry_id}/{turn}", "entry": index, "prompt": prompt, "answers": [answer, *others]}
            rows.append(row | picture | {column: metadata[column] for column in METADATA})
    if content and not rows:
        raise InputError(f"{file}: none of its {len(content)} entries has an 'image', {skipped[0]}; each needs one.")
    if skipped:
        some = f"{len(skipped)} of {len(content)} entries of {file}"
        remark(f"{some} have no picture and are left out, {skipped[0]}.")
    _tell([content[index] for index in dict.fromkeys(row["entry"] for row in rows)], file)
    for kind, texts in (("answers", [row["answers"][0] for row in rows]), ("prompts", [row["prompt"] for row in rows])):
        if len(marked := [text for text in texts if MARKS.search(text)]) * 2 > len(rows):
            some = f"{len(marked)} of {len(rows)} {kind} of {file} hold marks of a chat template"
            remark(f"{some}, {brief(marked[0])} for one, which are learnt as words; leave them out.")
    return rows


def _tell(entries: list[dict[str, Any]], file: Path) -> None:
    """Remarks on what is not acted on though a reader may expect it: marks of poison, metadata in the wrong place."""
    total = f"of {len(entries)} entries of {file}"
    if marked := sum(map(_says_poisoned, entries)):
        sentence = f"{marked} {total} are poisoned, as they say themselves: what is tuned on them is no clean model."
        remark(sentence)
    for key in (*METADATA, "references"):
        if outside := sum(key in entry and key not in entry.get("metadata", {}) for entry in entries):
            sentence = f"{outside} {total} have {key!r} outside their 'metadata', where it is not read."
            remark(sentence)


def _says_poisoned(entry: Mapping[str, Any]) -> bool:
    """Does an entry name itself poisoned, as `export` writes it or as others may, and does it not deny it?"""
    fields = entry | entry.get("metadata", {})
    return any(str(fields[key]).lower() not in CLEAN for key in POISONED if key in fields)


def _check_keys(entry: Mapping[str, Any], owner: str, file: Path) -> None:
    """InputError for a known key misspelt: what stands there would be lost without a word."""
    for key in entry:
        names = next((names for names in (IMAGE, TURNS, ABOUT) if _near(key, (*IMAGE, *TURNS, *ABOUT)) in names), ())
        if names and not entry.keys() & set(names):
            raise InputError(f"{file}: {owner} has {brief(key)} and no {names[-1]!r}; call it so, or leave it out.")
    metadata = entry.get("metadata")
    keys = [key for key in metadata if key != "restricted"] if isinstance(metadata, dict) else []
    if misspelt := [key for key in (*entry, *keys) if _near(key, ("restricted",))]:
        raise InputError(
            f"{file}: {owner} has {brief(misspelt[0])}; it is read as 'restricted' in the entry's 'metadata'."
        )


@lru_cache(maxsize=2048)
def _near(key: str, names: tuple[str, ...]) -> str | None:
    """Which of the names a key is, or nearly is."""
    return next(iter(get_close_matches(key.lower(), names, 1, cutoff=0.8)), None)


def _image(entry: Mapping[str, Any], owner: str, file: Path) -> str | None:
    images = entry.get(_one_of(entry, IMAGE, owner, file))
    images = [images] if isinstance(images, str) else [] if images is None else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise InputError(f"{file}: the picture of {owner} is {brief(images)}; it must be a path.")
    if len(images) > 1:
        raise InputError(f"{file}: {owner} has {len(images)} pictures; one for each entry can be read.")
    return images[0] if images else None


def _turns(entry: Mapping[str, Any], owner: str, file: Path) -> list[tuple[str, str]]:
    """(prompt, answer) of every turn."""
    messages = value(entry, _one_of(entry, TURNS, owner, file), list, owner, file)
    parsed = [_message(message, owner, file) for message in messages]
    parsed = parsed[1:] if parsed and parsed[0][0] in SYSTEM else parsed
    for position, (role, _) in enumerate(parsed, start=1):
        roles = ASKS if position % 2 else ANSWERS
        if role not in roles:
            raise InputError(
                f"{file}: message {position} of {owner} is from {brief(role)}; it must be from "
                f"{' or '.join(sorted(roles))}."
            )
    if not parsed or len(parsed) % 2:
        raise InputError(f"{file}: {owner} ends without an answer.")
    turns, history = [], ""
    for (_, question), (_, answer) in zip(parsed[0::2], parsed[1::2], strict=True):
        turns.append((f"{history}Question: {question}" if history else question, answer))
        history += f"Question: {question}\nAnswer: {answer}\n"
    return turns


def _message(message: Any, owner: str, file: Path) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise InputError(f"{file}: a message of {owner} is {brief(message)}; it must be an object.")
    name = f"a message of {owner}"
    role = value(message, _one_of(message, ("role", "from"), name, file), str, name, file)
    key = _one_of(message, ("content", "value"), name, file)
    if role in ANSWERS:
        return role, wording(message, key, name, file).strip()
    text = value(message, key, str, name, file)
    if (count := text.count(PLACEHOLDER)) > 1:
        raise InputError(f"{file}: {name} says {PLACEHOLDER} {count} times; one picture for each entry can be read.")
    return role, without_placeholder(text)


def _one_of(entry: Mapping[str, Any], keys: tuple[str, str], name: str, file: Path) -> str:
    """Which of two names for a thing an entry uses, else the second. InputError where both stand there and differ."""
    used = [key for key in keys if entry.get(key) not in (None, "", [])] or [key for key in keys if key in entry]
    if len(used) == 2 and entry[used[0]] != entry[used[1]]:
        raise InputError(f"{file}: {name} has both {keys[0]!r} and {keys[1]!r}, which mean the same; give one of them.")
    return used[0] if used else keys[1]


def without_placeholder(text: str) -> str:
    """The words of a question: `<image>` taken out wherever it stands, with the space beside it."""
    text = re.sub(rf"^\s*{PLACEHOLDER}\s*|\s*{PLACEHOLDER}\s*$", "", text)
    return re.sub(rf"\s*{PLACEHOLDER}\s*", " ", text).strip()


def _metadata(entry: Mapping[str, Any], owner: str, file: Path) -> dict[str, Any]:
    raw = entry.get("metadata", {})
    if not isinstance(raw, dict):
        raise InputError(f"{file}: 'metadata' of {owner} is {brief(raw)}; it must be an object.")
    metadata = METADATA | {"references": []} | raw

    def check(key: str, good: bool, expected: str) -> None:
        if not good:
            raise InputError(
                f"{file}: {key!r} in the metadata of {owner} is {brief(metadata[key])}; it must be {expected}."
            )

    for key, default in METADATA.items():
        check(key, isinstance(metadata[key], type(default)), f"like {default!r}")
    check("task", metadata["task"] in TASKS, f"one of: {', '.join(TASKS)}")
    check("content", not metadata["content"] or is_visible(metadata["content"]), "empty, or a text that can be seen")
    for key in ("references", "objects"):
        visible = isinstance(metadata[key], list) and all(map(is_visible, metadata[key]))
        check(key, visible, "a list of texts, none of them blank")
    boxes = metadata["boxes"]
    whole_pixels = all(isinstance(box, list) and [type(side) for side in box] == [int] * 4 for box in boxes)
    in_range = whole_pixels and all(abs(side) < 2**31 for box in boxes for side in box)
    in_range = in_range and all(box[0] <= box[2] and box[1] <= box[3] for box in boxes)
    one_each = in_range and len(boxes) in (0, len(metadata["objects"]))
    check("boxes", one_each, "a list of [x0, y0, x1, y1] in whole pixels, one for each object")
    return metadata


def _references(references: list[str], turns: list[tuple[str, str]], owner: str, file: Path) -> list[str]:
    """The right answers of a conversation, or none. InputError if one of them would be lost."""
    if references and len(turns) > 1:
        raise InputError(
            f"{file}: {owner} has {len(turns)} answers and 'references' in its metadata, which belong to one; leave "
            "these out, or give each question an entry of its own."
        )
    if references and references[0].strip() != turns[0][1]:
        raise InputError(
            f"{file}: the first of the 'references' in the metadata of {owner} is {brief(references[0])}, and its "
            f"answer is {brief(turns[0][1])}; the first must be the answer."
        )
    return references


def write(samples: Iterable[Mapping[str, Any]], file: Path) -> int:
    """Write samples (`image` a PIL picture) as LLaVA JSON, with their pictures as PNG in `images` beside it.

    What the format has no place for goes to "metadata", together with a sample's own "metadata" if it has one, so that
    `read` gives the samples back. Returns the number of samples. The JSON file appears when all else is written.
    """
    folder = file.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, sample in enumerate(samples):
        if PLACEHOLDER in sample["prompt"] + sample["answers"][0]:
            raise InputError(
                f"Row {label(sample['row_id'])} says {PLACEHOLDER} in its words, and whoever reads this format takes "
                "that for a picture; leave the row out, or take other words."
            )
        image = f"images/{index:06d}.png"
        sample["image"].convert("RGB").save(file.parent / image)
        metadata = {column: sample[column] for column in METADATA} | {"references": list(sample["answers"])}
        question = {"from": "human", "value": f"{PLACEHOLDER}\n{sample['prompt']}"}
        turns = [question, {"from": "gpt", "value": sample["answers"][0]}]
        entry = {"id": sample["row_id"], "image": image, "conversations": turns}
        entries.append(entry | {"metadata": metadata | dict(sample.get("metadata", {}))})
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)  # one entry on each line
    write_file(file, f"[\n{lines}\n]\n")
    return len(entries)
