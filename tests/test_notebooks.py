"""Every notebook is clean, documents its parameters, and runs from any folder against a store of real tiny runs."""

import ast
import json
import re
import shlex

import nbformat
import papermill
import pytest

from bvlm_utils import paths, threats

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
CHAPTERS = threats.names()  # one notebook per threat, of the same name
SECTIONS = [
    "The threat", "See the trigger", "One run in full", "The grid", "Utility cost", "The base and the clean-tuned model",
    "Limits", "Change it",
]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def parameters(path):
    """name -> (annotation, default) of the parameters cell."""
    lines = ast.parse(code_cells(path)[0].source).body
    assert all(isinstance(line, ast.AnnAssign) and line.value is not None for line in lines), "only `name: type = value`"
    return {line.target.id: (line.annotation.id, ast.literal_eval(line.value)) for line in lines}


def test_every_threat_has_its_chapter():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {*CHAPTERS, "quickstart", "attacks", "reproduce", "models"}


@every_notebook
def test_the_file_is_valid_and_stripped(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, "papermill's and editors' metadata are stripped"
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@every_notebook
def test_the_first_code_cell_declares_annotated_parameters(path):
    first, *others = code_cells(path)
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    for name, (annotation, default) in parameters(path).items():
        assert annotation in {"str", "int", "float", "list"}, name
        assert default is None or type(default).__name__ == annotation, name
    assert set(papermill.inspect_notebook(str(path))) == set(parameters(path))


@every_notebook
def test_code_cells_are_short(path):
    for cell in code_cells(path)[1:]:
        assert len(cell.source.splitlines()) <= 10, cell.source


@every_notebook
def test_the_papermill_commands_name_this_notebook_and_its_parameters(path):
    commands = [line for line in prose(path).splitlines() if line.startswith("papermill ")]
    assert commands, "the reader is told how to change the notebook"
    for command in commands:
        _, source, _, *options = shlex.split(command)
        assert paths.ROOT / source == path
        given = [options[i + 1].partition(":")[0] for i, option in enumerate(options) if option in ("-p", "-y")]
        assert set(given) <= set(parameters(path))


@pytest.mark.parametrize("name", CHAPTERS)
def test_threat_chapters_share_their_sections_and_parameters(name):
    path = paths.NOTEBOOKS / f"{name}.ipynb"
    assert re.findall(r"^## (.*)$", prose(path), flags=re.MULTILINE) == SECTIONS
    assert list(parameters(path)) == list(parameters(paths.NOTEBOOKS / f"{CHAPTERS[0]}.ipynb"))
    assert f'threat="{name}"' in code_cells(path)[1].source
