"""A notebook's parameters: what they are now, and whether one was given that the notebook does not have.

The first code cell declares them, and papermill puts a cell with other values behind it. papermill only warns of a
name that was not declared; notebooks ask here.
"""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from bvlm_utils.errors import InputError

INJECTED = "# Parameters"  # first line of the cell that papermill puts in
NOT_OF_CELLS = ("store",)  # parameters of a notebook that say nothing about what is run
OF_DEFENCES = ("defences", "defence_params", "defence_seeds", "placebos")  # of the notebook on defences, none of a cell


def given(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as they are now, ready for `study.cells`: all but the store and those of defences.

    namespace: the notebook's `globals()`. Its `In` says which names are parameters; the values are those of the
    variables. So what was set last counts: by papermill, by a second run of the first cell, or in a cell of the
    reader's own. InputError if that first cell was not run, or as in `check`.
    """

    declared = check(namespace.get("In", ()))
    if not declared or any(name not in namespace for name in declared):
        raise InputError("The notebook's parameters are not set; run its first code cell, then this one.")
    return of_cells({name: namespace[name] for name in declared})


def of_cells(whole: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of a notebook that are settings of its cells."""
    return {name: value for name, value in whole.items() if name not in (*NOT_OF_CELLS, *OF_DEFENCES)}


def check(inputs: Sequence[str]) -> list[str]:
    """The names of the parameters; InputError for an injected one that the notebook does not declare.

    inputs: IPython's `In`, the sources of the cells that were run, again and again or out of order as it may be. A
    notebook that nobody injected into passes.
    """
    declared: dict[str, None] = {}  # in their order
    injected: list[str] = []
    for source in inputs:
        if source.startswith(INJECTED):
            injected = _assigned(source)
        else:
            names = _declared(source)
            if not declared or declared.keys() & names:  # the first such cell, and that cell changed
                declared |= dict.fromkeys(names)
    for name in injected:
        if declared and name not in declared:
            raise InputError(
                f"This notebook has no parameter {name!r}; its parameters are: {', '.join(sorted(declared))}."
            )
    return list(declared)


def _declared(source: str) -> list[str]:
    """Names of lines such as `rate: float = 0.1`, as the parameters cell has them."""
    return [
        line.target.id
        for line in _lines(source)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
    ]


def _assigned(source: str) -> list[str]:
    return [target.id for line in _lines(source) if isinstance(line, ast.Assign) for target in line.targets]


def _lines(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell with shell lines or magics declares nothing
        return []
