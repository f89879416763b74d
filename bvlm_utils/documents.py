"""JSON, JSON Lines, YAML and CSV as people write them: read strictly, and every complaint is one sentence."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bvlm_utils.checks import LONGEST_SHOWN, brief, is_text, label, once
from bvlm_utils.errors import InputError

MOST_VALUES = 100_000  # in a YAML file, each alias counted as all that it stands for
MOST_BYTES = 1_000_000  # of a YAML file: it is written by hand, and its parser is slow
SEPARATORS = {";": "semicolons", "\t": "tabs"}  # of CSV as some spreadsheets write it
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_text(file: Path) -> str:
    """The text of a UTF-8 file; InputError if there is no such file or it is no such text."""
    try:
        if not os.path.isfile(file):  # no error for a name that no file can have, as Path.is_file
            raise InputError(f"There is no file {label(str(file))}.")
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: bad byte at position {error.start}; save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"The file {label(str(file))} cannot be read ({_reason(error)}).") from None


def read_json(file: Path, lines: bool = False) -> Any:
    """The content of a JSON file. lines: JSON Lines, one value on each line, are read as a list of these."""
    text = read_text(file)
    if not lines or file.suffix != ".jsonl":
        try:
            return parse_json(text, str(file))
        except _SeveralValues:
            if not lines:
                raise
    numbered = enumerate(text.split("\n"), start=1)  # other line ends may stand inside a JSON text
    return [parse_json(line, f"{file}, line {number},") for number, line in numbered if line.strip()]


class _SeveralValues(InputError):
    """The text goes on after its first value, as JSON Lines do."""


def parse_json(text: str, name: str) -> Any:
    """The value of a JSON text; `name` says whose text it is, for complaints."""
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        position = f"{error.msg} at line {error.lineno}, column {error.colno}"
        if error.msg == "Extra data":
            raise _SeveralValues(
                f"{name} holds more than one JSON value ({position}; JSON Lines are read where their name "
                "ends in .jsonl and a list of conversations is wanted)."
            ) from None
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise InputError(
                f"{name} is not complete JSON: {position} (it has {len(text.encode('utf-8', 'replace'))} bytes; "
                "it may be cut off)."
            ) from None
        raise InputError(f"{name} is no JSON: {position}.") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deep to be data of a known format.") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    except ValueError:  # the one that is left: Python reads no whole number of more than 4,300 digits
        raise InputError(f"{name} has a whole number of thousands of digits; no value is so large.") from None
    if _SURROGATE.search(text):
        check_texts(value, name)
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text; InputError for a key that is given twice, whose first value would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the key {brief(twice)} is given twice in one object; give it once.")
    return table


def _no_number(word: str) -> None:
    raise InputError(f"{word} is no number of JSON; give a number, or leave it out.")


def _finite(digits: str) -> float:
    """JSON may write numbers that are too large for a float, which are infinite then, and no JSON any more."""
    if math.isinf(number := float(digits)):
        raise InputError(f"the number {brief(digits)} is too large; no value is so large.")
    return number


def check_texts(document: Any, name: str) -> None:
    """InputError for a text anywhere in a document that UTF-8 cannot hold. name: whose it is, for the message."""
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list):
            stack += value
        elif isinstance(value, str) and not is_text(value):
            raise InputError(f"{name} has the text {brief(value)}; half of a surrogate pair is no character.")


# ---------------------------------------------------------------- YAML


class _Strict(yaml.SafeLoader):
    """YAML's safe kinds, with keys that are texts and given once, and whole numbers as people read them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        names = set()
        for key, _ in getattr(node, "own", node.value):
            name, line = key.value if isinstance(key, yaml.ScalarNode) else None, key.start_mark.line + 1
            if name is None or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                text = "a list or a table" if name is None else brief(name)
                raise InputError(f"a key is {text} (line {line}); put a text, in quotes if need be.")
            if name in names:
                raise InputError(f"the key {brief(name)} is given twice (line {line}); give it once.")
            names.add(name)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Remembers the keys as they were written: merging (`<<`) is no giving twice."""
        if not hasattr(node, "own"):
            node.own = list(node.value)
        super().flatten_mapping(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; where a tag such as !!bool stands before another kind, PyYAML raises whatever comes up."""
        try:
            return super().construct_object(node, deep)
        except (InputError, yaml.YAMLError, RecursionError):
            raise
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = f" ({_reason(error)})" if isinstance(error, ValueError) else ""  # others tell of PyYAML's own code
            text = brief(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a table"
            raise InputError(
                f"{text} (line {node.start_mark.line + 1}) is no {node.tag.rpartition(':')[2]}{reason}; "
                "write another value, or in quotes if it is a text."
            ) from None

    def construct_fraction(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise InputError(_other_base(node))
        return self.construct_yaml_float(node)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value):
            raise InputError(_other_base(node))
        if len(node.value) > LONGEST_SHOWN:
            raise InputError(f"a whole number has {len(node.value)} digits; no value is so large.")
        return self.construct_yaml_int(node)


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_whole)
_Strict.add_constructor("tag:yaml.org,2002:float", _Strict.construct_fraction)


def _other_base(node: yaml.ScalarNode) -> str:
    return (
        f"the number {brief(node.value)} (line {node.start_mark.line + 1}) is read with another base than ten by YAML; "
        "write it without a leading 0 or colons, or in quotes if it is a text."
    )


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text; `name` says whose text it is, for complaints."""
    if len(text) > MOST_BYTES:
        raise InputError(f"{name} has {len(text)} characters; at most {MOST_BYTES} are read as YAML.")
    try:
        loader = _Strict(text)
        if (node := loader.get_single_node()) is None:
            return None
        if _size(node, {}, set()) > MOST_VALUES:
            raise InputError(f"its aliases stand for more than {MOST_VALUES} values; write out what is wanted.")
        value = loader.construct_document(node)
        check_texts(value, "it")
        return value
    except yaml.YAMLError as error:
        raise InputError(f"{name} is no YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise InputError(f"{name} is nested too deep.") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _size(node: yaml.Node, sizes: dict[int, int], parents: set[int]) -> int:
    """How many values a node stands for, with its aliases'; InputError for one in itself. Sizes and parents: by id."""
    if id(node) in parents:
        raise InputError("an alias stands inside what it stands for; write out what is wanted.")
    if id(node) not in sizes:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        parents.add(id(node))
        sizes[id(node)] = 1 + sum(_size(part, sizes, parents) for part in inner)
        parents.discard(id(node))
    return sizes[id(node)]


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


# ---------------------------------------------------------------- CSV


def read_csv(file: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, each with as many fields as the first line, which names the columns: all of `needed`."""
    text = read_text(file)
    first, rows = text.partition("\n")[0], []
    for mark, name in SEPARATORS.items():
        if "," not in first and mark in first:
            raise InputError(f"The fields of {file} are separated by {name}; use commas.")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if not (columns := list(reader.fieldnames or [])):
            raise InputError(f"{file} is no CSV file: it is empty; it needs the columns {', '.join(needed)}.")
        once(columns, f"the first line of {file}")
        if missing := [name for name in needed if name not in columns]:
            raise InputError(f"{file} has no column {missing[0]!r}; it needs {', '.join(needed)}.")
        for row in reader:
            count = sum(value is not None for value in row.values()) + len(row.get(None, [None])) - 1
            if count != len(columns):
                raise InputError(
                    f"{file}: the row that ends in line {reader.line_num} has {count} fields, and the first line has "
                    f"{len(columns)}; put a field that holds a comma or a line end into double quotes."
                )
            rows.append(row)
    except csv.Error as error:
        raise InputError(f"{file} is no CSV file: {error}, at line {reader.line_num}.") from None
    return rows
