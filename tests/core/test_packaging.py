"""What is installed is what is declared: pyproject.toml, environment.yml, constraints.txt and code agree."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import bvlm_utils
from bvlm_utils import paths

# Where conda-forge calls a package otherwise: the CPU build, and packages without what nobody here uses.
CONDA = {
    "torch": "pytorch-cpu", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base", "dask": "dask-core",
}  # fmt: skip
# Where the module is called otherwise than the package.
MODULES = {
    "PIL": "pillow", "IPython": "ipython", "sklearn": "scikit-learn", "skimage": "scikit-image",
    "yaml": "pyyaml", "HanTa": "hanta", "myst_nb": "myst-nb", "aac_metrics": "aac-metrics",
}  # fmt: skip
OPTIONAL = {"spacy"}  # used where somebody has installed them


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines) -> dict[str, str]:
    """name -> version of lines such as "name==1.0"; anything that is no exact pin fails."""
    found = {}
    for line in lines:
        name, exact, version = line.replace("==", "=").partition("=")
        assert exact and re.fullmatch(r"[0-9][\w.]*", version), f"{line!r} is no exact pin"
        found[normal(name)] = version
    return found


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def declared(project):
    """All exact pins of pyproject.toml but those for development."""
    extras = project["optional-dependencies"]
    return pins([*project["dependencies"], *extras["book"], *extras["lab"], *extras["test"]])


def test_conda_and_pip_get_the_same_versions(project, declared):
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    *conda, pip = [line for line in environment["dependencies"] if line != "pip"]
    python, *conda = conda
    assert python == f"python{project['requires-python']}"
    assert pip["pip"][-1] == "--editable ."
    found = pins(conda) | pins(pip["pip"][:-1])
    assert found == {normal(CONDA.get(name, name)): version for name, version in declared.items()}


def test_the_constraints_contain_every_pin(declared):
    lines = (paths.ROOT / "constraints.txt").read_text().splitlines()
    constraints = pins(line for line in lines if line and not line.startswith("#"))
    assert declared.items() <= constraints.items()
    assert "torchvision" not in constraints


def test_what_is_tested_is_what_is_pinned(declared):
    for name, version in declared.items():
        installed = importlib.metadata.version(name).partition("+")[0]
        assert installed == version, f"{name} {installed} is installed, {version} is pinned"


def test_every_pin_installs_on_the_oldest_python(project):
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    lines = (paths.ROOT / "constraints.txt").read_text().splitlines()
    for name in pins(line for line in lines if line and not line.startswith("#")):
        wanted = importlib.metadata.metadata(name).get("Requires-Python") or ""  # [] may raise
        assert oldest in SpecifierSet(wanted), f"{name} wants Python {wanted}"


def test_every_import_of_the_package_is_declared(project):
    known = set(pins(project["dependencies"])) | set(sys.stdlib_module_names) | {"bvlm_utils", "bvlm_book"} | OPTIONAL
    for file in sorted([*(paths.ROOT / "bvlm_utils").rglob("*.py"), *(paths.BOOK / "bvlm_book").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                assert top in known or normal(MODULES.get(top, top)) in known, f"{file.name} imports {top}"


def test_jupyter_book_stays_below_version_two(declared):
    assert declared["jupyter-book"].startswith("1.")


@pytest.mark.parametrize("target", ["study", "test", "test-core", "lint", "book", "lab", "publish"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=paths.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_test_lints_before_it_tests():
    done = subprocess.run(["make", "--dry-run", "test"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert -1 < done.stdout.find("ruff check") < done.stdout.find("ruff format --check") < done.stdout.find("pytest")


def test_commit_hooks_run_the_pinned_versions(project):
    extras = project["optional-dependencies"]
    pinned = pins([*extras["test"], *extras["dev"]])
    repositories = yaml.safe_load((paths.ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    used = [pins(hook["additional_dependencies"]) for hook in hooks]
    assert {name for versions in used for name in versions} == {"ruff", "nbstripout"}
    assert all(versions.items() <= pinned.items() for versions in used)


def test_every_folder_with_code_is_installed():
    listed = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(file.parent.relative_to(home).parts)
        for home, package in ((paths.ROOT, "bvlm_utils"), (paths.BOOK, "bvlm_book"))
        for file in (home / package).rglob("*.py")
    }
    assert sorted(folders) == sorted(listed)


def test_the_citation_names_this_version_and_licence(project):
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert project["version"] == bvlm_utils.__version__


def test_make_refuses_an_old_python(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$1" in -c) exit 1;; *) echo Python 3.9.2;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", "book"],
        cwd=paths.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "Python 3.9.2 is too old: Python 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_installs_a_browser_and_runs_the_command_of_the_readme():
    script = (paths.ROOT / ".ci" / "run").read_text()
    assert os.access(paths.ROOT / ".ci" / "run", os.X_OK)
    assert "set -eo pipefail" in script and "chromium" in script
    assert script.strip().splitlines()[-1] == "make test"
    assert re.search(r"^make test\b", (paths.ROOT / "README.md").read_text(), re.MULTILINE)


def test_licences_are_there():
    licence = (paths.ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "data/sprites/LICENCES.md" in licence
    assert (paths.SPRITES / "LICENCES.md").is_file()
