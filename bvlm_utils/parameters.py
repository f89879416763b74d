"""A notebook's parameters: those that its first code cell declares, with the values that papermill puts behind it."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from bvlm_utils.checks import as_number, brief
from bvlm_utils.errors import InputError

INJECTED = "# Parameters"  # first line of the cell that papermill puts in
NOT_OF_CELLS = ("store",)  # parameters of a notebook that say nothing about what is run
# Parameters of the notebook on defences, none of a cell.
OF_DEFENCES = ("defences", "defence_params", "defence_seeds", "placebos", "relearn")
NONE_IS_ALL = ("attacks",)  # parameters that may be None in every notebook; others where None is what they are

KINDS = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "list": (list, "a list"),
    "dict": (dict, "a table of names and values"),
    "bool": (bool, "true or false"),
}


def check_kind(name: str, value: Any, annotation: str, default: Any) -> None:
    """InputError for a value of another kind than annotated, or for None if not the default or of `NONE_IS_ALL`."""
    kind, words = KINDS.get(annotation, (object, "given"))
    if value is None:
        wrong = default is not None and name not in NONE_IS_ALL
    else:
        wrong = kind is not object and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool))
    if wrong:
        raise InputError(f"{name} is {brief(value)}; it must be {words}{as_number(value, annotation == 'int')}.")


def given(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a notebook's `globals()`, ready for `study.cells`; InputError if not set, or as in `check`."""
    names = check(namespace.get("In", ()))
    if not names or any(name not in namespace for name in names):
        raise InputError("The notebook's parameters are not set; run its first code cell, then this one.")
    return of_cells({name: namespace[name] for name in names})


def of_cells(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters of a notebook that are settings of its cells."""
    return {name: value for name, value in values.items() if name not in (*NOT_OF_CELLS, *OF_DEFENCES)}


def check(inputs: Sequence[str]) -> list[str]:
    """The names of the parameters in `In`; InputError for an injected one that is not declared, or of another kind."""
    parameters: dict[str, tuple[str, Any]] = {}  # with their annotations and defaults, in their order
    injected: dict[str, Any] = {}
    for source in inputs:
        if source.startswith(INJECTED):
            lines = [line for line in _lines(source) if isinstance(line, ast.Assign)]
            injected = {target.id: _literal(line.value) for line in lines for target in line.targets}
        else:
            declarations = declared(source)
            if not parameters or parameters.keys() & declarations:  # the first such cell, and that cell changed
                parameters |= declarations
    for name, value in injected.items():
        if parameters and name not in parameters:
            raise InputError(
                f"This notebook has no parameter {name!r}; its parameters are: {', '.join(sorted(parameters))}."
            )
        annotation, default = parameters.get(name, ("", None))
        if value is not ...:
            check_kind(name, value, annotation, default)
    return list(parameters)


def declared(source: str) -> dict[str, tuple[str, Any]]:
    """Names, annotations and defaults of lines such as `rate: float = 0.1`, as the parameters cell has them."""
    return {
        line.target.id: (ast.unparse(line.annotation), _literal(line.value))
        for line in _lines(source)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None
    }


def _literal(value: ast.expr) -> Any:
    """The value of an expression; `...` where it is no literal, such as a NaN."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ...


def _lines(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell with shell lines or magics declares nothing
        return []
