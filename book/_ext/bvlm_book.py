"""How is the book built from stored results alone, and read without a network? A Sphinx extension for both.

Kernels that run the notebooks read the committed reference (BVLM_STORE), find `bvlm_utils` without an installation, and
cannot import torch, so a page that would have to train something fails. The pages ask no other host for anything: math
is written as MathML, which browsers draw themselves, and a page that names an outside script, style or picture is a
warning, which `make book` treats as an error. Loaded by _config.yml.
"""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL = {
    "BVLM_STORE": "reference",
    "BVLM_YOURS": "none",  # whose run the reproduce chapter compares; `make study` says "local"
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's advice is no output of a notebook
    "TQDM_DISABLE": "1",
}
# What a browser fetches by itself when it opens a page; links that a reader clicks are not among them.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|track|input)\b[^>]*?\ssrc\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?![^>]*\brel=["']?(?:canonical|next|prev|author|license)\b)[^>]*?\shref\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|url\(\s*["']?((?:https?:)?//[^"')]+)|@import\s+["']((?:https?:)?//[^"']+)""",
    re.IGNORECASE,
)


def prepare_kernels(app: Sphinx, config: Any) -> None:
    """Set what the notebooks' kernels inherit; what the caller has set stays."""
    for name, value in KERNEL.items():
        os.environ.setdefault(name, value)
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = [str(HERE / "no_torch"), str(ROOT)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*ours, *(path for path in before if path and path not in ours)])
    os.environ["IPYTHONDIR"] = _fresh_profile()


def _fresh_profile() -> str:
    """A folder for IPython without anybody's start-up files, where kernels do not warn that they use TCP."""
    folder = tempfile.mkdtemp(prefix="book-ipython-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    profile = Path(folder, "profile_default")
    profile.mkdir()
    (profile / "ipython_kernel_config.py").write_text("c = get_config()\nc.IPKernelApp.log_level = 'ERROR'\n")
    return folder


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
                LOG.warning("%s would be fetched from another host by %s", address, page.relative_to(app.outdir))


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
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("config-inited", prepare_kernels)
    app.connect("build-finished", warn_of_outside)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
