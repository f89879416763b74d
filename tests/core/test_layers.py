"""The walls of the house: who may import whom, what never stands in the core, and how large a piece may be.

Imports are read from the source, those inside functions and under TYPE_CHECKING included.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bvlm_utils import paths
from bvlm_utils.attacks.declare import TABLE

# From the ground up; folders on one floor do not import each other.
FLOORS = (
    ("root",),
    ("data", "models"),
    ("attacks",),
    ("threats",),
    ("skills",),
    ("train", "score"),
    ("store",),
    ("run",),
    ("defences",),
    ("grid",),
    ("commands", "pretraining"),
)
COMMANDS = {
    "chat",
    "export",
    "audit",
    "leaderboard",
    "study",
    "__init__",
}  # files in the root folder that stand on the top floor
OF_PAGES = {"matplotlib", "seaborn", "IPython", "ipywidgets"}
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 350, 60, 8
# What is still too large, as "file" or "file:function"; the list only ever gets shorter.
TOO_LARGE: set[str] = set()


def modules() -> dict[str, Path]:
    found = {}
    for home, package in ((paths.ROOT, "bvlm_utils"), (paths.BOOK, "bvlm_book")):
        for file in sorted((home / package).rglob("*.py")):
            found[".".join(file.relative_to(home).with_suffix("").parts)] = file
    return found


MODULES = modules()


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that a file imports, in full; packages as their `__init__`."""
    found = set()
    for node in ast.walk(tree(module)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by dots; name the module in full"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if known(name) else node.module for name in inside]
        found |= {known(name) or name for name in names}
    return frozenset(found)


def known(name: str) -> str | None:
    return next((found for found in (name, f"{name}.__init__") if found in MODULES), None)


def inner(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES}


def folder(module: str) -> str:
    """The folder of the core that a module stands in; files of the root folder are root or commands."""
    first, *rest = module.split(".")[1:]
    return first if rest else "commands" if first in COMMANDS else "root"


def floor(module: str) -> int:
    return next(number for number, folders in enumerate(FLOORS) if folder(module) in folders)


CORE = sorted(name for name in MODULES if name.startswith("bvlm_utils."))
BOOK = sorted(name for name in MODULES if name.startswith("bvlm_book."))
CHAPTERS = [name for name in BOOK if name.startswith("bvlm_book.chapters.")]
PROBES = [name for name in BOOK if name.startswith("bvlm_book.probes.")]


@pytest.mark.parametrize("module", CORE)
def test_a_file_imports_its_own_folder_and_lower_ones(module):
    upward = {name for name in inner(module) if folder(name) != folder(module) and floor(name) >= floor(module)}
    assert not upward, f"{module} imports {sorted(upward)}"


def test_there_is_no_circle():
    """Packages' doors aside, which import nothing until they are asked."""
    left = {module: inner(module) - {module} for module in MODULES}
    while free := [module for module, wanted in left.items() if not wanted & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"imports go round among {sorted(left)}"


@pytest.mark.parametrize("module", CORE)
def test_the_core_knows_nothing_of_the_book(module):
    outside = {name.partition(".")[0] for name in imports(module)}
    assert not outside & (OF_PAGES | {"bvlm_book"})
    if folder(module) != "pretraining":
        assert not {name for name in inner(module) if folder(name) == "pretraining"}


@pytest.mark.parametrize("module", CHAPTERS)
def test_a_chapter_imports_no_other_chapter_no_probe_that_measures_and_no_torch(module):
    own = module.split(".")[2]
    others = {name for name in inner(module) if name in CHAPTERS and name.split(".")[2] != own}
    assert not others or own == "first_page", f"{module} imports {sorted(others)}"
    measures = {name for name in inner(module) if name in PROBES and "measure" in functions(name)}
    assert not measures, f"{module} imports {sorted(measures)}, which measures"
    assert "torch" not in {name.partition(".")[0] for name in imports(module)}


def functions(module: str) -> set[str]:
    return {node.name for node in tree(module).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("module", PROBES)
def test_probes_import_no_page_code(module):
    pages = {name for name in inner(module) if name in BOOK and name not in PROBES}
    assert not pages, f"{module} imports {sorted(pages)}"


def test_every_function_of_the_attack_table_stands_in_attacks():
    ours = {
        half.function.partition(":")[0]
        for row in map(TABLE.get, TABLE.names())
        for half in (row.text, row.image)
        if half is not None
    }
    assert ours and all(f"bvlm_utils.attacks.{name}" in MODULES for name in ours)


def loaded(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after `code`."""
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=paths.ROOT)
    return set(done.stdout.split())


def test_the_package_alone_loads_neither_torch_nor_pandas():
    assert not loaded("import bvlm_utils") & {"torch", "pandas"}


def test_the_first_page_loads_nothing_that_trains():
    now = loaded("from bvlm_book.chapters import first_page\nfrom bvlm_utils.store import collect")
    assert not now & {"torch", "transformers", "peft"}
    training = {name for name in now if name.startswith(("bvlm_utils.run", "bvlm_utils.grid", "bvlm_utils.train."))}
    assert training <= {"bvlm_utils.train.poison", "bvlm_utils.train.settings"}, "a cell's settings, and no more"


def too_large() -> set[str]:
    found = set()
    for module, file in MODULES.items():
        where = file.relative_to(paths.ROOT).as_posix()
        if len(file.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE:
            found.add(where)
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef):
                given = node.args
                count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION or count > MOST_PARAMETERS:
                    found.add(f"{where}:{node.name}")
    return found


def test_no_piece_is_too_large():
    now = too_large()
    assert not now - TOO_LARGE, f"larger than before: {sorted(now - TOO_LARGE)}"
    assert not TOO_LARGE - now, f"small enough now, take it off the list: {sorted(TOO_LARGE - now)}"
