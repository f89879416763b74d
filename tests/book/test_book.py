"""The book builds from stored results without torch, names nothing outside, and breaks loudly."""

import html.parser
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bvlm_sphinx
import nbformat
import papermill
import pytest
import yaml
from conftest import build
from stored import entries

from bvlm_utils import attacks, paths, threats

PROSE = sorted([*paths.BOOK.glob("*.md"), paths.ROOT / "README.md"])
FETCHES = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "embed": "src", "link": "href", "object": "data",
}  # fmt: skip

# Chapters whose cells are not in the reference yet: a page without numbers is no page.
NOT_YET: tuple[str, ...] = ()


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


# ---------------------------------------------------------------- the built pages


def test_every_page_of_the_contents_is_built_and_no_prose_is_missing_from_them(book):
    named = entries(yaml.safe_load((paths.ROOT / "_toc.yml").read_text()))
    assert {f"book/{file.stem}" for file in paths.BOOK.glob("*.md")} <= set(named)
    chapters = {f"notebooks/{file.stem}" for file in paths.NOTEBOOKS.glob("*.ipynb")}
    assert chapters - set(named) == {f"notebooks/{name}" for name in NOT_YET}
    for name in named:
        assert (book / f"{name}.html").is_file(), name
    assert "book/intro.html" in (book / "index.html").read_text()


def test_no_page_and_no_style_asks_another_host_for_anything(book):
    for page in pages(book).values():
        outside = [address for address in page.fetched if urlsplit(address).netloc]
        assert not outside, (page.file, outside)
        assert not bvlm_sphinx.outside(page.text), page.file
    for file in book.rglob("*.css"):
        assert not bvlm_sphinx.outside(file.read_text()), file
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
                continue
            anchors = pages(book)[target].ids if target in pages(book) else {unquote(parts.fragment)}
            chosen = target.name == "leaderboard.html" and "=" in parts.fragment  # what its script selects
            if parts.fragment and not chosen and unquote(parts.fragment) not in anchors:
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
        for trace in ("Traceback (most recent call last)", 'class="output stderr', "FutureWarning"):
            assert trace not in page.text, (page.file, trace)


def test_the_first_page_leads_to_every_threat_and_has_its_numbers(book):
    page = pages(book)[book / "book" / "intro.html"]
    assert {f"../notebooks/{name}.html" for name in threats.names()} <= set(page.links)
    text = re.sub(r"<[^>]+>", "", page.text)
    assert len(re.findall(r"\d+ of \d+", text.partition("What was found")[2])) >= 5 and "n/a" not in text
    assert "bvlm-strip" in page.text


# ---------------------------------------------------------------- a build that must fail


def page_of(code: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell(code)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return notebook


@pytest.fixture
def small(tmp_path):
    """A function that builds a book of given pages (name -> Markdown or code) with our settings."""
    source, out = tmp_path / "source", tmp_path / "out"
    unread = shutil.ignore_patterns("*.md", "_build", "__pycache__")
    shutil.copytree(paths.BOOK, source / "book", ignore=unread)

    def built(repository="", **pages):
        first, *others = pages
        settings = (paths.ROOT / "_config.yml").read_text()
        (source / "_config.yml").write_text(settings.replace('repository_url: ""', f'repository_url: "{repository}"'))
        toc = {"format": "jb-book", "root": first, "chapters": [{"file": name} for name in others]}
        (source / "_toc.yml").write_text(yaml.safe_dump(toc))
        for name, content in pages.items():
            if content.startswith("#"):
                (source / f"{name}.md").write_text(content)
            else:
                nbformat.write(page_of(content), source / f"{name}.ipynb")
        return build(source, out), out / "_build" / "html"

    return built


def test_a_failing_notebook_fails_the_build(small):
    done, _ = small(start="# Start", fails="raise ValueError('this number does not exist')")
    assert done.returncode != 0 and "this number does not exist" in done.stdout


def test_one_setting_names_the_repository(small):
    done, shown = small("https://github.com/Somebody/study", start="# Start\n\nWords.\n", notebook="print(1)")
    assert done.returncode == 0, done.stdout[-3000:]
    start, notebook = ((shown / f"{name}.html").read_text() for name in ("start", "notebook"))
    for page in (start, notebook):
        assert 'href="https://github.com/Somebody/study"' in page
        assert 'property="og:image" content="https://somebody.github.io/study/_static/card.png"' in page
        assert '<link rel="canonical" href="https://somebody.github.io/study/' in page
    assert "https://mybinder.org/v2/gh/Somebody/study/main?urlpath=lab/tree/notebook.ipynb" in notebook
    assert "https://colab.research.google.com/github/Somebody/study/blob/main/notebook.ipynb" in notebook


def test_every_page_says_what_it_is_and_names_no_repository_where_none_is_set(book):
    for name in entries(yaml.safe_load((paths.ROOT / "_toc.yml").read_text())):
        text = pages(book)[book / f"{name}.html"].text
        assert re.search(
            r"Version [\d.]+ · (commit [0-9a-f]+( with changes)? · )?results of \d+ \w+ \d{4} · MIT licence", text
        )
        (told,) = re.findall(r'<meta name="description" content="([^"]*)"', text)
        assert len(told) > 40 and 'property="og:image"' in text and 'rel="icon"' in text
        assert "leaderboard.csv" in text and str(paths.ROOT) not in text
        assert not re.search(r"mybinder|colab\.research|source-repository-button", text), name
    for name in ("book/intro", "book/bibliography"):
        assert "backdoorvlm_study" in (book / f"{name}.html").read_text()


def test_an_outside_script_and_a_missing_number_fail_the_build_and_kernels_have_no_torch(small):
    sealed = (
        "import os\nassert os.environ['BVLM_STORE'] == 'reference'\n"
        "try:\n    import torch\nexcept ImportError:\n    print('there is no', 'torch')"
    )
    done, shown = small(
        start="# Start\n\nThe square of $x$.\n",
        fetches='# Fetches\n\n<script src="https://elsewhere.example/x.js"></script>\n',
        glues="# Glues\n\n{glue:text}`sealed.ipynb::no_such_number:s`\n",
        sealed=sealed,
    )
    assert done.returncode != 0
    said = "https://elsewhere.example/x.js would be fetched from another host by fetches.html"
    assert said in done.stdout and "no_such_number" in done.stdout
    assert "without encryption" not in done.stdout, "how kernels talk is no concern of a reader"
    assert "there is no torch" in (shown / "sealed.html").read_text()
    assert "<math" in (shown / "start.html").read_text(), "formulas need no script"


STARTED = """
import time
import bvlm_kernels
from jupyter_client.manager import start_new_kernel
from jupyter_client.provisioning import local_provisioner

local_provisioner.launch_kernel = bvlm_kernels.launch
_, client = start_new_kernel(kernel_name="python3")
client.execute_interactive("import os; print(os.getpid(), os.getppid())",
                           output_hook=lambda said: print(said["content"].get("text", ""), end="", flush=True))
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are copies on Linux alone")
def test_a_kernel_and_what_it_was_copied_from_end_with_the_build():
    folders = [paths.BOOK / "_ext", paths.BOOK / "_ext" / "no_torch", paths.ROOT, paths.BOOK]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    with subprocess.Popen([sys.executable, "-c", STARTED], env=env, stdout=subprocess.PIPE, text=True) as builder:
        started = [int(number) for number in builder.stdout.readline().split()]
        assert len(started) == 2 and all(Path(f"/proc/{pid}").exists() for pid in started)
        builder.kill()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


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
    assert bvlm_sphinx.outside(page) == found


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
    from bvlm_utils.grid import __main__ as grid

    for words in commands(file, "python -m bvlm_utils.grid"):
        chosen = grid._parser().parse_args(words[3:])
        assert not chosen.file or (paths.ROOT / chosen.file).is_file()


def test_every_station_of_a_cell_is_a_function():
    _, _, section = (paths.BOOK / "methods.md").read_text().partition("## One cell, from YAML to record")
    stations = re.findall(r"^\| `([\w.]+)\.(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE)
    assert len(stations) >= 10
    for module, function in stations:
        assert callable(getattr(importlib.import_module(f"bvlm_utils.{module}"), function))


def test_the_make_targets_that_are_told_exist():
    makefile = (paths.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    told = {words[1] for file in PROSE for words in commands(file, "make ")}
    told |= {name for file in PROSE for name in re.findall(r"`make (\w+)`", file.read_text())}
    assert {"study", "test", "book", "lab"} <= told <= targets


def test_every_entry_of_the_bibliography_is_complete_and_cited_by_a_known_name():
    text = (paths.BOOK / "references.bib").read_text()
    keys = re.findall(r"^@\w+\{([^,]+),", text, re.MULTILINE)
    assert len(keys) == len(set(keys))
    for entry in text.split("\n@")[1:]:
        assert all(f"{field} = " in entry for field in ("author", "title", "year")), entry
    prose = "".join(file.read_text() for file in paths.BOOK.glob("*.md"))
    assert set(re.findall(r"\{cite:\w\}`(\w+)`", prose)) <= set(keys)
    sources = " ".join(attacks.info(name).source for name in attacks.names())
    for number in re.findall(r"\d{4}\.\d{5}", sources):
        assert number in text, "each attack's source is in the bibliography"
