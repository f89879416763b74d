"""The table of definitions by name. $BVLM_EXTEND names modules of others, imported before the first look-up."""

import importlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from bvlm_utils.errors import InputError, UnknownName, in_words

VARIABLE = "BVLM_EXTEND"
T = TypeVar("T")
_loaded: list[str] = []


def extend() -> None:
    """Import the modules that $BVLM_EXTEND names, each once; InputError for one that is not found, or fails."""
    for name in os.environ.get(VARIABLE, "").split():
        if name in _loaded:
            continue
        if not all(part.isidentifier() for part in name.split(".")):
            raise InputError(_not_found(name))
        _loaded.append(name)  # before the import, which may look something up itself
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # in code that is not ours anything may go wrong
            _loaded.remove(name)
            if isinstance(error, InputError):
                raise
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                raise InputError(_not_found(name)) from None
            ours = (os.path.dirname(__file__), os.path.dirname(importlib.__file__), "<frozen")
            frames = traceback.extract_tb(error.__traceback__)
            last = next((frame for frame in reversed(frames) if not frame.filename.startswith(ours)), None)
            line = f", line {last.lineno} of {last.filename}" if last else ""
            raise InputError(
                f"{VARIABLE} names the module {name!r}, which fails where it is imported ({in_words(error)}{line}); "
                "mend it."
            ) from error


def _not_found(name: str) -> str:
    return (
        f"{VARIABLE} names the module {name!r}, which Python does not find; give a module's name as `import` takes it, "
        "without .py, and put its folder on PYTHONPATH."
    )


class Registry(Generic[T]):
    """Names mapped to definitions of one kind, in the order in which they were declared."""

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, value: T) -> T:
        """Declare `value` under `name`. A second declaration of a name is a ValueError."""
        if name in self._items:
            raise ValueError(f"{self.kind} {name!r} is declared twice; give the second one another name.")
        self._items[name] = value
        return value

    def get(self, name: str) -> T:
        """The definition called `name`; UnknownName (an InputError and a KeyError) lists the known ones."""
        extend()
        if name not in list(self._items):  # in a list: what is no name may have no hash
            raise UnknownName(f"There is no {self.kind} {name!r}; choose one of: {', '.join(self._items)}.")
        return self._items[name]

    def names(self) -> list[str]:
        """All names, in the order in which they were declared."""
        extend()
        return list(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()


def is_of(full_name: str, package: str) -> bool:
    """Is the function "module:function" one of `package`?"""
    # Of "others.triggers" the first part alone can be looked for.
    module = full_name.partition(":")[0].partition(".")[0]
    return module not in ("", "__main__") and find_spec(f"{package}.{module}") is not None


def check_whose(functions: Iterable[str], package: str, declarer: str) -> None:
    """InputError where others' definition names a function of a module that `package` has and Python finds elsewhere,
    too: the package's would be taken. functions: as "module:function". declarer: the module that declares.
    """
    for full_name in functions:
        if declarer.startswith("bvlm_utils.") or not is_of(full_name, package):
            continue
        spec = find_spec(full_name.partition(":")[0].partition(".")[0])
        if spec is not None and spec.has_location:  # a mere folder of that name is no module
            raise InputError(
                f"A definition names the function {full_name!r}, and there are two modules {spec.name!r}, "
                f"{spec.origin} and one of {package}; give yours another name, or write "
                f'"{package}.{full_name}" for the other one.'
            )


def function(full_name: str, package: str) -> Callable[..., Any]:
    """The function "module:function": of `package` if it has the module, else of any other. InputError if not found."""
    module, _, name = full_name.partition(":")
    try:
        imported = importlib.import_module(f"{package}.{module}" if is_of(full_name, package) else module)
        return getattr(imported, name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != module.partition(".")[0]:
            raise  # the module is there, and lacks something that it imports
        raise InputError(
            f"The function {full_name!r} of a definition is not found ({error}); "
            'write it as "module:function", with the module on PYTHONPATH.'
        ) from error
