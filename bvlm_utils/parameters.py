"""Was a notebook given a parameter that it does not have? papermill only warns; notebooks ask here."""

import ast
from collections.abc import Sequence

from bvlm_utils.errors import InputError

INJECTED = "# Parameters"  # first line of the cell that papermill puts in


def check(inputs: Sequence[str]) -> None:
    """InputError for an injected parameter that the notebook's first cell does not declare.

    inputs: IPython's `In`, the sources of the cells that were run. A notebook that nobody injected into
    passes.
    """
    declared: set[str] = set()
    for source in inputs:
        if source.startswith(INJECTED):
            for name in _assigned(source):
                if name not in declared:
                    raise InputError(
                        f"This notebook has no parameter {name!r}; its parameters are: {', '.join(sorted(declared))}."
                    )
        elif not declared:
            declared = _declared(source)


def _declared(source: str) -> set[str]:
    """Names of lines such as `rate: float = 0.1`, as the parameters cell has them."""
    return {line.target.id for line in _lines(source) if isinstance(line, ast.AnnAssign)}


def _assigned(source: str) -> list[str]:
    return [target.id for line in _lines(source) if isinstance(line, ast.Assign) for target in line.targets]


def _lines(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell with shell lines or magics declares nothing
        return []
