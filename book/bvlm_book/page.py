"""The page of a notebook: figures with alt texts, tables, sentences and glued numbers are put on it here."""

import html
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from bvlm_book import behind, svg
from bvlm_book.words import is_missing
from bvlm_utils import store
from bvlm_utils.errors import InputError

GLUED = "application/papermill.record/"
DOWNLOADS = "BVLM_DOWNLOADS"  # the folder of the built book for files; set by its extension
Lines = pd.DataFrame | Mapping[str, pd.DataFrame] | None
LONG = 45  # letters of a table's field that need a wider column


def is_study(place: str | Path | None = None) -> bool:
    """Is this the committed reference, which the text of the pages is about?"""
    return store.folder(place).resolve() == store.folder("reference").resolve()


def introduce(place: str | Path | None = None) -> None:
    """Say on a page over any other store what its text is about, and what its tables and figures are."""
    if not is_study(place):
        say("**Tables and figures are of your store.** The sentences between them, where there are any, "
            "are about the study's own results, and `{glue:}` stands where the book has a number.")  # fmt: skip


def finding(place: str | Path | None, text: str, otherwise: str) -> str:
    """What the study found, `text`, to stand at its own results; `otherwise`, which says no more than what is shown."""
    return text if is_study(place) else otherwise


def show(
    draw: Callable[..., Figure], *rows: Any, title: str, alt: str, caption: str,
    empty: str = "There is nothing to draw: no such experiment was measured in this store.",
) -> None:  # fmt: skip
    """Put a figure on the page, wide and narrow; the sentence `empty` where all tables of `rows` are empty.

    draw: makes the figure of `rows` with `figures.new_figure`. title: what it finds, one short sentence; of findings
    that are written down and not counted from `rows`, see `finding`.
    """
    if not alt.strip():
        raise InputError("A figure needs an alternative text; say what it shows.")
    tables = [frame for frame in rows if isinstance(frame, pd.DataFrame)]
    if tables and all(frame.empty for frame in tables):
        say(empty)
        return
    caption = f"<strong>{html.escape(title)}</strong> {html.escape(caption)}"
    picture = f"<div>{svg.drawings(draw, rows, alt)}</div>"
    display(HTML(f'<figure class="bvlm-figure">{picture}<figcaption>{caption}</figcaption></figure>'))


def show_table(frame: pd.DataFrame, caption: str, empty: str = "There is nothing to list.") -> None:
    """Put a small table on the page, or the sentence `empty`; a missing value reads "n/a"."""
    if frame.empty:
        say(empty)
        return

    def field(value: Any) -> str:  # a long one is kept from being squeezed into a column of single words
        text = "n/a" if is_missing(value) else html.escape(str(value))
        return f'<div class="bvlm-long">{text}</div>' if len(text) > LONG else text

    show_html_table(frame.map(field), caption)


def show_html_table(frame: pd.DataFrame, caption: str) -> None:
    """Put a table on the page whose fields are HTML already; `show_table` is for everything else."""
    with pd.option_context("display.max_colwidth", None):
        body = frame.to_html(index=False, border=0, escape=False, classes="table", justify="left")
    body = body.replace(">", f"><caption>{html.escape(caption)}</caption>", 1).replace("<th>", '<th scope="col">')
    display(HTML(f'<div class="bvlm-table" style="overflow-x:auto">{body}</div>'))


def say(text: str) -> None:
    """Put a paragraph of Markdown on the page, unless it is empty."""
    if text:
        display(Markdown(text))


def glue(values: Mapping, prefix: str, table: pd.DataFrame | None = None, lines: Lines = None, tab: str = "") -> None:
    """Hand numbers to the prose, glued as `prefix_key`, with links to their experiments in `table` (`store.collect`).

    lines: what the values were counted from, one frame for all of them or one for each key. tab: see `behind.link`.
    """
    cells = None if table is None else table.drop_duplicates("run_id")
    links = {id(None): "{}"}  # by the lines: most numbers of a page share theirs
    for key, value in values.items():
        key_lines = lines.get(key) if isinstance(lines, Mapping) else lines
        if id(key_lines) not in links:
            links[id(key_lines)] = behind.link(cells, key_lines, tab)
        content = {"text/plain": repr(str(value)), "text/html": links[id(key_lines)].format(html.escape(str(value)))}
        # as `myst_nb.glue` keeps a value; importing that takes a kernel two seconds, half of what most pages need
        metadata = {"scrapbook": {"name": f"{prefix}_{key}", "mime_prefix": GLUED}}
        display({GLUED + kind: text for kind, text in content.items()}, raw=True, metadata=metadata)


def offer(name: str, frame: pd.DataFrame) -> None:
    """In a build, write a table as a file for the download menu of the page that `name` begins with."""
    if folder := os.environ.get(DOWNLOADS):
        Path(folder).mkdir(parents=True, exist_ok=True)
        frame.dropna(axis="columns", how="all").to_csv(Path(folder) / name, index=False, float_format="%.4g")
