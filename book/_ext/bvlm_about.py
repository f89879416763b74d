"""Who made this book, from what, and how is it cited? A Sphinx extension for the frame of every page.

Footer (version, commit, date of the results, licence), description and card for those who share a page, files in the
download menu, the directive `cite-this-study`, and all that the one setting `repository_url` of _config.yml turns on.
What is not known is left out: nothing here fails outside a git checkout, or without results. Loaded by _config.yml.
"""

import html
import re
import subprocess
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = ROOT / "data" / "results" / "reference" / "records.parquet"
DESCRIPTION = "How backdoors get into vision-language models, how little poison is enough, and what stops them."
CARD = "card.png"
CITED_AT = "book/bibliography"  # the page that says how to cite
BRANCH = "main"  # of the repository, which Binder and Colab open
LONGEST = 200  # letters of a description
# In the download menu: what a page has written under its own name (`bvlm_book.page.offer`), and, where the page that
# writes them is built, the files of the whole study.
OWN_FILES = {"numbers": "The numbers of this page", "answers": "All answers behind this page",
             "expectations": "What was expected before the runs"}  # fmt: skip
WRITES_FILES = "notebooks/leaderboard"
FILES = {
    "leaderboard.csv": "All numbers of the study, a line per experiment",
    "responses.parquet": "All judged answers of the study",
}


@cache
def citation() -> dict[str, Any]:
    """What CITATION.cff says; nothing where there is none."""
    file = ROOT / "CITATION.cff"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


@cache
def commit() -> str:
    """The commit that the book is built from, "with changes" if so; nothing outside a checkout of this project."""
    told = "describe", "--always", "--exclude=*", "--abbrev=8", "--dirty= with changes"
    return _git(*told) if _git("rev-parse", "--show-toplevel") == str(ROOT) else ""


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def newest_result() -> date | None:
    """When the newest experiment of the reference was finished; None where there is no reference."""
    if not RECORDS.is_file():
        return None
    records = pyarrow.parquet.read_table(RECORDS, columns=["record"])["record"].to_pylist()
    days = [day for record in records for day in re.findall(r'"written":\s*"(\d{4}-\d\d-\d\d)', record)]
    return date.fromisoformat(max(days)) if days else None


def in_words(day: date) -> str:
    """27 November 2026."""
    return f"{day.day} {day:%B %Y}"


def bibtex(repository: str = "") -> str:
    """The entry for a bibliography, from CITATION.cff."""
    about, results = citation(), newest_result()
    authors = " and ".join(f"{{{one['name']}}}" for one in about["authors"])
    fields = {
        "author": authors, "title": f"{{{about['title']}}}", "year": str(results.year) if results else "",
        "version": about["version"], "note": f"Results of {in_words(results)}" if results else "", "url": repository,
    }  # fmt: skip
    lines = [f"  {name} = {{{text}}}" for name, text in fields.items() if text]
    return "@misc{backdoorvlm_study,\n" + ",\n".join(lines) + "\n}"


class CiteThisStudy(SphinxDirective):
    """The BibTeX entry in a box that can be copied."""

    def run(self) -> list[nodes.Node]:
        text = bibtex(self.config.html_theme_options.get("repository_url", ""))
        return [nodes.literal_block(text, text, language="bibtex")]


# ---------------------------------------------------------------- the repository


def name_repository(app: Sphinx, config: Any) -> None:
    """Turn on what needs a repository: its button, Binder, and for GitHub Colab and the address of its pages."""
    options = config.html_theme_options
    url = options.get("repository_url", "").rstrip("/")
    if not url:
        return
    launch = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
    if found := re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", url):
        launch["colab_url"] = "https://colab.research.google.com"
        owner, name = found.groups()
        config.html_baseurl = config.html_baseurl or f"https://{owner.lower()}.github.io/{name}/"
    options |= {"repository_url": url, "repository_branch": BRANCH, "use_repository_button": True}
    options["launch_buttons"] = launch


# ---------------------------------------------------------------- every page


def frame(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """What this extension adds to a page."""
    context["theme_extra_footer"] = footer(context["pathto"], CITED_AT in app.env.found_docs)
    context["metatags"] = context.get("metatags", "") + tags(app, pagename, context, doctree)
    own = Path(app.outdir, "_static", "results").glob(f"{pagename.rpartition('/')[2]}-*.csv*")
    files = {file.name: OWN_FILES[file.name.partition(".")[0].rpartition("-")[2]] for file in sorted(own, reverse=True)}
    add_files(context, files | (FILES if WRITES_FILES in app.env.found_docs else {}))


def footer(pathto: Any, cited: bool) -> str:
    """Version, commit, date of the results and licence in a line."""
    about, results = citation(), newest_result()
    parts = [f"Version {about['version']}" if about else "", f"commit {commit()}" if commit() else ""]
    parts += [f"results of {in_words(results)}" if results else "", f"{about['license']} licence" if about else ""]
    shown = [html.escape(part) for part in parts if part]
    if cited:
        page = pathto(CITED_AT).rstrip("#")  # "#" on that page itself
        shown.append(f'<a href="{page}#cite-this-study">how to cite</a>')
    return f"<p>{' · '.join(shown)}</p>"


def tags(app: Sphinx, pagename: str, context: dict[str, Any], doctree: Any) -> str:
    """What search engines and those who share a page show of it."""
    base = app.config.html_baseurl
    where = f"{base}{pagename}.html" if base else ""
    card = f"{base}_static/{CARD}" if base else context["pathto"](f"_static/{CARD}", 1)
    title = html.unescape(re.sub(r"<[^>]+>", "", context.get("title") or "")) or app.config.html_title
    told = description(doctree)
    named = {"description": told, "twitter:card": "summary_large_image"}
    properties = {
        "og:type": "website", "og:site_name": app.config.html_title, "og:title": title, "og:description": told,
        "og:image": card, "og:image:width": "1200", "og:image:height": "630", "og:url": where,
    }  # fmt: skip
    return "".join(
        f'\n  <meta {kind}="{name}" content="{html.escape(text, quote=True)}"/>'
        for kind, of in (("name", named), ("property", properties))
        for name, text in of.items()
        if text
    )


def description(doctree: Any) -> str:
    """The beginning of a page's first paragraph; the book's own words where it has none."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(re.sub(r"</?a\b[^>]*>", "", paragraph.astext()).split())  # numbers are links
        if isinstance(paragraph.parent, nodes.section) and len(text) > 40:
            return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " …"
    return DESCRIPTION


def add_files(context: dict[str, Any], files: dict[str, str]) -> None:
    """Put files with numbers and answers into the download menu, behind the notebook and the source."""
    for group in context.get("header_buttons", ()):
        if group.get("label") == "download-buttons":
            group["buttons"] += [
                {"type": "link", "url": context["pathto"](f"_static/results/{name}", 1), "text": name,
                 "icon": "fas fa-table", "tooltip": what, "label": f"download-{name.partition('.')[0]}-button"}
                for name, what in files.items()
            ]  # fmt: skip


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("cite-this-study", CiteThisStudy)
    app.connect("config-inited", name_repository)
    app.connect("html-page-context", frame, priority=900)  # after the theme's buttons
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
