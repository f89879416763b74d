"""How is the book built from stored results alone, and read without a network? A Sphinx extension for both.

Kernels that run the notebooks read the committed reference (BVLM_STORE), find `bvlm_utils` and `bvlm_book`
without an installation, and cannot import torch, so a page that would have to train something fails. Several pages are
read at once. The pages ask no other host for anything: math is written as MathML, which browsers draw
themselves, and a page that names an outside script, style or picture is a warning, which `make book` treats
as an error. Loaded by _config.yml.
"""

import atexit
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import bvlm_kernels
import jupyter_client
from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from jupyter_client.provisioning import local_provisioner
from sphinx.application import Sphinx
from sphinx.util import logging
from traitlets import default

LOG = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL = {
    "BVLM_STORE": "reference",
    "BVLM_YOURS": "none",  # whose run the reproduce chapter compares; `make study` says "local"
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's advice is no output of a notebook
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",  # several kernels run at once, and threads that wait for each other take their processors
}
AT_ONCE = max(2, min(4, os.cpu_count() or 1))
# What a browser fetches by itself when it opens a page; links that a reader clicks are not among them.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|track|input)\b[^>]*?"""
    r"""\ssrc\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?![^>]*\brel=["']?(?:canonical|next|prev|author|license)\b)[^>]*?"""
    r"""\shref\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(\s*["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)
# The space between a number (or a link around one) and its percent sign, and first what has code or drawings in it.
PERCENT = re.compile(r"<(pre|code|svg|script)\b.*?</\1>|(?<=[\d>]) %", re.DOTALL)


def prepare_kernels(app: Sphinx, config: Any) -> None:
    """Set what the notebooks' kernels inherit; what the caller has set stays."""
    for name, value in KERNEL.items():
        os.environ.setdefault(name, value)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = [str(HERE / "no_torch"), str(ROOT), str(ROOT / "book")]
    theirs = [path for path in before if path and path not in ours]
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *theirs])
    folder = tempfile.mkdtemp(prefix="book-")
    atexit.register(_remove, folder, os.getpid())
    os.environ["IPYTHONDIR"] = folder  # nobody's start-up files
    # Where a chapter puts files for readers to take; Sphinx keeps what it finds there.
    os.environ["BVLM_DOWNLOADS"] = str(Path(app.outdir) / "_static" / "results")
    SocketKernelManager.folder = folder
    jupyter_client.AsyncKernelManager = SocketKernelManager  # nbclient asks for it by this name
    if sys.platform == "linux":  # elsewhere a copy of a process may not use all of the system's libraries
        local_provisioner.launch_kernel = bvlm_kernels.launch


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # the processes that read pages are forks, and end earlier
        shutil.rmtree(folder, ignore_errors=True)


class SocketKernelManager(jupyter_client.AsyncKernelManager):
    """Starts kernels that talk through files: kernels that start at once could take each other's ports."""

    folder = ""

    @default("transport")
    def _files(self) -> str:
        return "ipc"

    @default("ip")
    def _beginning_of_their_names(self) -> str:
        return os.path.join(tempfile.mkdtemp(dir=self.folder), "socket")


def read_at_once(app: Sphinx, config: Any) -> None:
    """Let Sphinx read pages in several processes: a page with a notebook takes seconds of imports."""
    app.parallel = max(app.parallel, AT_ONCE)
    # It does not say so, but all that it does is to number chapters once every page has been read.
    app.extensions["sphinx_multitoc_numbering"].parallel_read_safe = True


def spread(app: Sphinx, env: Any, docnames: list[str]) -> None:
    """Order the pages so that each process gets a share of the notebooks, which stand side by side."""
    docnames[:] = [name for start in range(AT_ONCE) for name in docnames[start::AT_ONCE]]


def outside(html: str) -> list[str]:
    """The addresses on other hosts that a browser would fetch for this page or style sheet."""
    return ["".join(found) for found in FETCHED.findall(html)]


def warn_of_outside(app: Sphinx, error: Exception | None) -> None:
    """A page of the finished book that would make a request to another host is a warning that names both."""
    if error or app.builder.format != "html":
        return
    for page in sorted(Path(app.outdir).rglob("*")):
        if page.suffix in (".html", ".css"):
            for address in outside(page.read_text(encoding="utf-8")):
                where = page.relative_to(app.outdir)
                LOG.warning("%s would be fetched from another host by %s", address, where)


def keep_percents(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """A number and its percent sign stay in one line; code is left as it is."""
    if "body" in context:
        context["body"] = PERCENT.sub(lambda found: found[0] if found[1] else "\u00a0%", context["body"])


def inline_math(self: Any, node: Any) -> None:
    self.body.append(mathml(node.astext(), block=False))
    raise SkipNode


def block_math(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise SkipNode


def mathml(tex: str, block: bool) -> str:
    """LaTeX as MathML, by the converter that comes with docutils."""
    return tex2mathml(tex, as_block=block)


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("bvlm_glossary")
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("config-inited", prepare_kernels)
    app.connect("config-inited", read_at_once)
    app.connect("env-before-read-docs", spread)
    app.connect("html-page-context", keep_percents)
    app.connect("build-finished", warn_of_outside)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
