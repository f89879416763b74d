"""The book builds from stored results without torch, names nothing outside, and breaks loudly."""

import html.parser
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import papermill
import pytest
import yaml
from conftest import build

from bvlm_utils import attacks, paths, threats

sys.path.insert(0, str(paths.BOOK / "_ext"))
import bvlm_book  # noqa: E402, the Sphinx extension is no package

PROSE = sorted([*paths.BOOK.glob("*.md"), paths.ROOT / "README.md"])
FETCHES = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src",
    "link": "href", "object": "data",
}  # fmt: skip


class Page(html.parser.HTMLParser):
    """What the tests ask of a page: its anchors, links, pictures, and what a browser would fetch."""

    def __init__(self, file: Path):
        super().__init__()
        self.file, self.ids, self.links, self.pictures, self.fetched = file, set(), [], [], []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given)
        if given.get(FETCHES.get(tag, "")):
            self.fetched.append(given[FETCHES[tag]])


@cache
def pages(book: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in sorted(book.rglob("*.html")) if "_static" not in file.parts}


def entries(part) -> list[str]:
    """The files that a table of contents names."""
    if isinstance(part, list):
        return [name for item in part for name in entries(item)]
    if isinstance(part, dict):
        own = [value for key, value in part.items() if key in ("root", "file")]
        return own + [name for value in part.values() if isinstance(value, dict | list) for name in entries(value)]
    return []


# ---------------------------------------------------------------- the built pages


def test_every_page_of_the_contents_is_built_and_nothing_is_missing_from_them(book):
    named = entries(yaml.safe_load((paths.ROOT / "_toc.yml").read_text()))
    assert {f"book/{file.stem}" for file in paths.BOOK.glob("*.md")} <= set(named)
    assert {f"notebooks/{file.stem}" for file in paths.NOTEBOOKS.glob("*.ipynb")} <= set(named)
    for name in named:
        assert (book / f"{name}.html").is_file(), name
    assert "book/intro.html" in (book / "index.html").read_text()


def test_no_page_and_no_style_asks_another_host_for_anything(book):
    for page in pages(book).values():
        outside = [address for address in page.fetched if urlsplit(address).netloc]
        assert not outside, (page.file, outside)
        assert not bvlm_book.outside(page.text), page.file
    for file in book.rglob("*.css"):
        assert not bvlm_book.outside(file.read_text()), file
    for word in ("unpkg.com", "cdn.jsdelivr.net", "cdnjs.cloudflare.com", "fonts.googleapis.com"):
        assert not [page.file for page in pages(book).values() if word in page.text], word


def test_all_internal_links_and_anchors_resolve(book):
    broken = []
    for page in pages(book).values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.file.parent / unquote(parts.path)).resolve() if parts.path else page.file
            if not target.is_file():
                broken.append((str(page.file.relative_to(book)), link))
            elif parts.fragment and target in pages(book) and unquote(parts.fragment) not in pages(book)[target].ids:
                broken.append((str(page.file.relative_to(book)), link))
    assert not broken


def test_every_picture_says_what_it_shows_and_is_there(book):
    for page in pages(book).values():
        for picture in page.pictures:
            assert len((picture.get("alt") or "").strip()) >= 10, (page.file, str(picture)[:200])
            if not picture["src"].startswith("data:"):
                assert (page.file.parent / unquote(picture["src"])).is_file(), picture["src"]


def test_no_page_shows_an_error_or_a_warning_of_a_library(book):
    for page in pages(book).values():
        for trace in ("Traceback (most recent call last)", "class=\"output stderr", "FutureWarning", "DeprecationWarning"):
            assert trace not in page.text, (page.file, trace)


def test_the_first_page_quotes_the_numbers_of_every_threat(book):
    text = pages(book)[book / "book" / "intro.html"].text
    cards = re.findall(r"Fires on .*?</p>", text, re.DOTALL)
    assert len(cards) == len(threats.names())
    for card in cards:
        words = re.sub(r"<[^>]+>", "", card)
        assert re.match(r"Fires on (\d\.\d\d|n/a) of triggered inputs", words), words
    assert "Nothing has been measured" not in text


# ---------------------------------------------------------------- a build that must fail


def page_of(code: str) -> dict:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return notebook


def test_failing_notebooks_and_outside_scripts_fail_the_build_and_kernels_have_no_torch(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(paths.BOOK, source / "book", ignore=shutil.ignore_patterns("*.md", "_build", "__pycache__"))
    config = yaml.safe_load((paths.ROOT / "_config.yml").read_text())
    (source / "_config.yml").write_text(yaml.safe_dump(config))
    names = ["start", "fetches", "sealed", "fails"]
    toc = {"format": "jb-book", "root": names[0], "chapters": [{"file": name} for name in names[1:]]}
    (source / "_toc.yml").write_text(yaml.safe_dump(toc))
    (source / "start.md").write_text("# Start\n\nThe square of $x$.\n")
    (source / "fetches.md").write_text('# Fetches\n\n<script src="https://elsewhere.example/x.js"></script>\n')
    sealed = (
        "import os\nassert os.environ['BVLM_STORE'] == 'reference'\n"
        "try:\n    import torch\nexcept ImportError:\n    print('there is no', 'torch')"
    )
    nbformat.write(page_of(sealed), source / "sealed.ipynb")
    nbformat.write(page_of("raise ValueError('this number does not exist')"), source / "fails.ipynb")

    done = build(source, tmp_path / "out")

    assert done.returncode != 0
    assert "this number does not exist" in done.stdout
    assert "https://elsewhere.example/x.js would be fetched from another host by fetches.html" in done.stdout
    assert "without encryption" not in done.stdout, "the kernels' transport warning is no concern of a reader"
    shown = tmp_path / "out" / "_build" / "html"
    assert "there is no torch" in (shown / "sealed.html").read_text()
    assert "<math" in (shown / "start.html").read_text(), "formulas need no script"


@pytest.mark.parametrize("page, found", [
    ('<script async src="https://a.example/x.js">', ["https://a.example/x.js"]),
    ("<script src='//a.example/x.js'>", ["//a.example/x.js"]),
    ('<img alt="x" src="http://a.example/x.png">', ["http://a.example/x.png"]),
    ('<link rel="stylesheet" href="https://a.example/x.css">', ["https://a.example/x.css"]),
    ("@import 'https://a.example/x.css';", ["https://a.example/x.css"]),
    ("@font-face { src: url(//a.example/x.woff2) }", ["//a.example/x.woff2"]),
    ('<a href="https://a.example/">', []),
    ('<link rel="canonical" href="https://a.example/">', []),
    ('<img src="../x.png"><script src="../_static/x.js"></script>', []),
    ('<img src="data:image/png;base64,aGVs//bG8=">', []),
])  # fmt: skip
def test_what_a_browser_would_fetch_from_elsewhere(page, found):
    assert bvlm_book.outside(page) == found


# ---------------------------------------------------------------- what the prose says works


def commands(file: Path, name: str) -> list[list[str]]:
    """The shell commands in a page that begin with `name`, as words."""
    fences = re.findall(r"^```bash\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(name)]


@pytest.mark.parametrize("file", PROSE, ids=lambda file: file.stem)
def test_the_papermill_commands_name_notebooks_and_their_parameters(file):
    for words in commands(file, "papermill"):
        notebook, options = paths.ROOT / words[1], words[3:]
        known = papermill.inspect_notebook(str(notebook))
        given = [options[i + 1].partition(":")[0] for i, word in enumerate(options) if word in ("-p", "-y")]
        assert given and set(given) <= set(known), words


@pytest.mark.parametrize("file", PROSE, ids=lambda file: file.stem)
def test_the_grid_commands_are_understood(file):
    from bvlm_utils import grid

    for words in commands(file, "python -m bvlm_utils.grid"):
        chosen = grid._parser().parse_args(words[3:])
        assert not chosen.file or (paths.ROOT / chosen.file).is_file()


def test_the_make_targets_that_are_told_exist():
    makefile = (paths.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    told = {words[1] for file in PROSE for words in commands(file, "make ")}
    told |= {name for file in PROSE for name in re.findall(r"`make (\w+)`", file.read_text())}
    assert {"study", "test", "book", "lab"} <= told <= targets


def test_the_page_on_extending_works(tmp_path):
    code = re.findall(r"^```python\n(.*?)^```", (paths.BOOK / "extend.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(code) >= 5
    (tmp_path / "page.py").write_text("\n".join(code))
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(paths.ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_entry_of_the_bibliography_is_complete_and_cited_by_a_known_name():
    text = (paths.BOOK / "references.bib").read_text()
    keys = re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    for entry in text.split("\n@")[1:]:
        assert all(f"{field} = " in entry for field in ("author", "title", "year")), entry
    cited = {key for file in paths.BOOK.glob("*.md") for key in re.findall(r"\{cite:\w\}`(\w+)`", file.read_text())}
    assert cited <= set(keys)
    published = {number for name in attacks.names() for number in re.findall(r"\d{4}\.\d{5}", attacks.info(name).source)}
    assert published and all(number in text for number in published), "each attack's source is in the bibliography"
