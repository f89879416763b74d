"""How does a name in a grid become a definition? One table type for attacks, threats, datasets and families."""

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


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
        """The definition called `name`; KeyError lists the known names."""
        if name not in self._items:
            raise KeyError(f"There is no {self.kind} {name!r}; choose one of: {', '.join(self._items)}.")
        return self._items[name]

    def names(self) -> list[str]:
        return list(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items
