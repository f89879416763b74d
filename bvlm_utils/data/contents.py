"""Digests of files' contents, remembered beside the project's caches: a data set of 100,000 pictures is read once.

A file is not read again while its size and times stay, unless it was changed within the last tick of the clock.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, TypeVar

from bvlm_utils import paths
from bvlm_utils.atomic import read_if_whole, write_file
from bvlm_utils.checks import file_state
from bvlm_utils.data.picture_files import check_end

MANY = 1000  # files to be read until a reader is told how far it is
SETTLED = 2.0  # seconds after its last change until a file's times can be relied on
AT_ONCE = 8  # files read at a time
NOTICED = 0.01  # seconds: what is faster is always done again
State = tuple[int, int, int]
T = TypeVar("T")

_CHECKED: dict[str, State] = {}  # pictures that were looked into, as they were then
_LOOKED: dict[tuple, tuple[float, tuple[State, ...]]] = {}  # files -> until when, and their states
_MADE: dict[Hashable, tuple[float, Any]] = {}  # key -> until when, and what was made of files in these states


def states(files: Sequence[str | Path]) -> tuple[State, ...]:
    """Size and times of each file. Each cell asks, so an answer that took long is kept twenty times as long."""
    return _look(tuple(files))[1]


def _look(files: tuple[str | Path, ...]) -> tuple[float, tuple[State, ...]]:
    """Until when the states of files are kept (monotonic seconds; 0: not at all), and the states."""
    now = time.monotonic()
    until, file_states = _LOOKED.get(files, (0.0, ()))
    if now > until:
        file_states = tuple(map(file_state, files))
        seconds = time.monotonic() - now
        until = now + 20 * seconds if seconds > NOTICED else 0.0
        _LOOKED[files] = until, file_states
    return until, file_states


def made_of(key: Hashable, files: tuple[str, ...], make: Callable[[tuple[State, ...]], T]) -> T:
    """What `make` gives for the states of files, made again whenever the files are looked at again: to compare the
    states of 100,000 pictures takes longer than a cell may. key: of what is made, and of these files.
    """
    until, made = _MADE.get(key, (0.0, None))
    if time.monotonic() > until:
        until, file_states = _look(files)
        made = make(file_states)
        _MADE[key] = until, made
    return made


def with_states(files: Sequence[Path]) -> tuple[tuple[Path, State], ...]:
    """Each file, and its size and times."""
    return tuple(zip(files, states(files), strict=True))


def digests(files: Sequence[str], file_states: Sequence[State]) -> list[str]:
    """32 hex digits of each picture's content, in the order of `files`. InputError for a damaged one."""
    if not files:
        return []
    cache = paths.CACHE / "contents" / f"{_named(os.path.commonpath(files))}.json"
    entries = read_if_whole(cache, _entries) or {}  # else it is made again
    pairs = zip(files, file_states, strict=True)
    unread = [file for file, state in pairs if entries.get(file, [None])[:-1] != list(state)]
    now = time.time_ns()
    results = zip(unread, states(unread), _read(unread), strict=True)
    entries |= {file: [*state, digest] for file, state, digest in results}
    settled = {file: entry for file, entry in entries.items() if now - max(entry[1:3]) > SETTLED * 1e9}
    if any(file in settled for file in unread):
        _remember(cache, settled)
    return [entries[file][-1] for file in files]


def pictures(key: str, read: Callable[[], Sequence[tuple[str, str]]]) -> Sequence[tuple[str, str]]:
    """The (id, file) of a data set's pictures, all checked: remembered under `key`, or as `read` finds them."""

    def unchanged(cache: Path) -> list[tuple[str, str, State]] | None:
        entries = [(name, file, tuple(state)) for name, file, *state in json.loads(cache.read_text("utf-8"))[key]]
        return entries if states([file for _, file, _ in entries]) == tuple(state for *_, state in entries) else None

    cache = paths.CACHE / "contents" / f"pictures-{_named(key)}.json"
    entries = read_if_whole(cache, unchanged)
    if entries is None:
        pairs, now = read(), time.time_ns()
        entries = [(*pair, state) for pair, state in zip(pairs, states([file for _, file in pairs]), strict=True)]
        if entries and now - max(max(state[1:]) for *_, state in entries) > SETTLED * 1e9:
            _remember(cache, {key: [(name, file, *state) for name, file, state in entries]})
    _CHECKED.update((file, state) for _, file, state in entries)
    return [(name, file) for name, file, _ in entries]


def checked(file: str) -> bool:
    """Was this picture looked into already, and is it as it was then?"""
    return file in _CHECKED and _CHECKED[file] == file_state(file)


def _read(files: Sequence[str]) -> list[str]:
    from tqdm import tqdm

    with ThreadPoolExecutor(AT_ONCE) as readers:
        options = {"unit": "picture", "desc": "reading pictures once", "mininterval": 5, "file": sys.stderr}
        return list(tqdm(readers.map(_digest, files), total=len(files), disable=len(files) < MANY, **options))


def _digest(file: str) -> str:
    check_end(file)
    with open(file, "rb") as stream:
        return file_digest(stream, lambda: blake2b(digest_size=16)).hexdigest()


def _named(folder: str) -> str:
    return blake2b(folder.encode(), digest_size=8).hexdigest()


def _entries(cache: Path) -> dict[str, list]:
    entries = json.loads(cache.read_text(encoding="utf-8"))
    return {file: entry for file, entry in entries.items() if len(entry) == 4 and isinstance(entry[3], str)}


def _remember(cache: Path, entries: Mapping[str, Any]) -> None:
    """A cache that cannot be written is done without."""
    with suppress(OSError):
        write_file(cache, json.dumps(entries))
