"""What does the search show without a server? A Sphinx extension that writes the pages' texts into one script.

A page that was opened as a file may not fetch others, so Sphinx's own summaries cannot be shown. At the end of a build
the text of each section goes into `_static/search_texts.js`; `_static/search.js` ranks sections by the words that were
asked for (and by their synonyms) and shows where they stand. Loaded by _config.yml.
"""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

TEXTS = "search_texts.js"
HEADINGS = ("h1", "h2", "h3", "h4")
# What a reader does not read as text (nor entries of the bibliography, which name everything), and what ends a word.
UNREAD = ("script", "style", "pre", "svg", "math", "button", "select", "noscript", "summary")
BREAKS = ("p", "li", "td", "th", "dd", "dt", "figcaption", "caption", "div", "br")


class Sections(HTMLParser):
    """The sections of a page: anchor, title and text of each, without what stands in sections of their own."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self._open: list[dict[str, str]] = []
        self._into, self._unread, self._reads = "text", "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        kinds = (given.get("class") or "").split()
        if self._unread:
            return
        if tag == "article" and "bd-article" in kinds:
            self._reads = True
        elif tag in UNREAD or {"headerlink", "citation"} & {*kinds}:
            self._unread = tag
        elif tag == "section" and self._reads:
            self._open.append({"anchor": given.get("id") or "", "title": "", "text": ""})
            self.found.append(self._open[-1])
        elif tag in HEADINGS:
            self._into = "title"
        elif tag in BREAKS:
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._unread:
            self._unread = "" if tag == self._unread else self._unread
        elif tag == "article":
            self._reads = False
        elif tag == "section" and self._open:
            self._open.pop()
        elif tag in HEADINGS:
            self._into = "text"

    def handle_data(self, data: str) -> None:
        if self._reads and self._open and not self._unread:
            self._open[-1][self._into] += data


def texts(page: str) -> list[list[str]]:
    """Anchor, title and text of each section of a built page; the first section is the page's own."""
    return [[" ".join(part.split()) for part in one.values()] for one in Sections(page).found]


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the texts of all pages of the finished book."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    pages = [(name, out / f"{name}.html") for name in sorted(app.env.found_docs)]
    found = {name: texts(file.read_text(encoding="utf-8")) for name, file in pages if file.is_file()}
    held = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (out / "_static" / TEXTS).write_text(f"const bvlmTexts = {held};\n", encoding="utf-8")


def load(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Load the scripts on the page that searches, and nowhere else."""
    if pagename == "search":
        for name in (TEXTS, "search.js"):
            app.add_js_file(name, loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("html-page-context", load)
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
