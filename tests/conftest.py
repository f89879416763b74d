"""What several test files share: the book, built once as `make book` builds it, and random checkpoints."""

import gc
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import chromium
import pytest
from filelock import FileLock
from hypothesis import settings

from bvlm_utils import paths

PACKAGES = os.pathsep.join([str(paths.ROOT), str(paths.BOOK)])  # found by processes that tests start, installed or not
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGES, os.environ.get("PYTHONPATH")]))

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

# The longest, and the one that builds the book for others; then the two that take the time of a build without it.
FIRST = ("test_rehearsal.py", "test_book.py", "test_gpu_rehearsal.py", "test_nothing_lost.py")

gc.disable()  # what is imported stays: collecting it again and again takes minutes of a run

OF_A_BUILD = (
    "BVLM_STORE",
    "BVLM_YOURS",
    "BVLM_DOWNLOADS",
    "PYTHONPATH",
    "IPYTHONDIR",
)  # what the book's extension sets itself


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    """Build a book with the command of the Makefile; pages go to `out`/_build/html."""
    makefile = (paths.ROOT / "Makefile").read_text()
    line = re.search(r"^BUILD := \$\(BIN\)/jupyter-book (.*)$", makefile, re.MULTILINE)
    options = shlex.split(line.group(1))
    options[options.index("--path-output") + 1] = str(out)
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_BUILD}
    return subprocess.run(
        [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", *options],
        cwd=source, env=environment | {"OMP_NUM_THREADS": "1"}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which processes take them; a process that takes the longest last would work on alone, and
    one that needs the book early would wait for it.
    """
    needing = {item.path for item in items if "book" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (
        FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST), item.path in needing,
    ))  # fmt: skip


def pytest_collection_finish() -> None:
    """From here on garbage is collected, and what stands now is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def book(tmp_path_factory):
    """The folder with the pages of the book, built from the committed reference; once, for all test processes."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    out = shared / "book"
    with FileLock(shared / "book.lock"):
        if not (out / "built").exists():
            done = build(paths.ROOT, out)
            assert done.returncode == 0, f"the book does not build:\n{done.stdout[-6000:]}"
            (out / "built").touch()
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def browser():
    """A real browser, see `chromium.Chromium`; no test that needs one runs without."""
    chromium.require()
    with chromium.Chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A function from a family to the folder with a random checkpoint of it, made once a session."""
    made = {}

    def folder(family):
        if family not in made:
            import random_checkpoints  # imports torch

            made[family] = tmp_path_factory.mktemp("checkpoints") / family
            random_checkpoints.save(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session", params=["llava", "qwen2.5-vl", "qwen2-vl", "smolvlm", "idefics3"])
def random_victim(request, checkpoint):
    """A loaded random model of each family; whoever changes it changes it back."""
    from bvlm_utils.models import victim

    return victim.from_pretrained(str(checkpoint(request.param)), device="cpu")
