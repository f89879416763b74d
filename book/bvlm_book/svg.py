"""Figures as SVG inside a page, wide and narrow: words are text; black, grey and white take the page's colours."""

import html
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import matplotlib
from matplotlib.figure import Figure

# Colours of a drawing that stand for a colour of the page; `custom.css` says what they are in the light and the dark.
# Where a notebook is shown without the book's styles, in JupyterLab or by nbconvert, the colour behind the comma holds.
PAGE_COLOURS = {
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#555555": "var(--pst-color-text-muted)",
    "#bbbbbb": "var(--bvlm-grid,#ddd)",
    "#cccccc": "var(--bvlm-grid,#ddd)",
    "#dddddd": "var(--bvlm-grid,#ddd)",
    "#e3e3e3": "var(--bvlm-missing,#e3e3e3)",
    "#efefef": "var(--bvlm-shade,#efefef)",
}
FONT = "var(--pst-font-family-base)"
RASTER = 144  # dots per inch of pictures inside a figure
NARROW = 3.6  # inches of a figure on the page of a phone
LABEL, ROW = 32, 20  # letters in a line of a narrow figure: labels of axes, names of rows
_narrow: ContextVar[bool] = ContextVar("narrow", default=False)


def drawings(draw: Callable[..., Figure], rows: tuple, alt: str) -> str:
    """What `draw` makes of `rows`, drawn for a wide page and for a narrow one, of which the page shows one."""
    wide = drawing(draw(*rows), alt, "bvlm-wide")
    with narrow():
        # of the two, a page without the book's styles shows the wide one
        return wide + drawing(wrapped(draw(*rows)), alt, "bvlm-narrow").replace(">", ' display="none">', 1)


@contextmanager
def narrow() -> Iterator[None]:
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def is_narrow() -> bool:
    """Whether a figure is now made for the page of a phone: `NARROW` inches, whatever width it asks for."""
    return _narrow.get()


def wrapped(figure: Figure) -> Figure:
    """The figure with its long labels in several lines, for a narrow page."""
    for axis in figure.axes:
        axis.set_xlabel(textwrap.fill(axis.get_xlabel(), LABEL))
        axis.set_title("\n".join(textwrap.fill(line, LABEL) for line in axis.get_title().split("\n")))
        names = [label.get_text() for label in axis.get_yticklabels()]
        if any(len(name) > ROW and "$" not in name for name in names):  # no formulas, such as 10^3
            axis.set_yticks(axis.get_yticks(), [textwrap.fill(name, ROW) for name in names], fontsize=7.5)
    return figure


def drawing(figure: Figure, alt: str, kind: str) -> str:
    """The figure as an <svg> of class `kind` that shares no style and no name with the rest of the page."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": kind + alt}):  # names of its own
        figure.savefig(file, format="svg", dpi=RASTER, metadata={"Date": None})
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub("|".join(PAGE_COLOURS), lambda match: PAGE_COLOURS[match[0]], body)
    # white lines and marks are the page's ground; white letters stand on dark fields and stay white
    body = re.sub(r"(<(?:path|use)[^>]*?)#ffffff", r"\1var(--pst-color-background,#fff)", body)
    body = re.sub(r"(font: [^;\"']*?px) '[^;\"]*", rf"\1 {FONT}", body)
    body = re.sub(r"; font-family: [^;\"]*", "", body)
    references = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in references else "", body)
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)  # what no eye sees
    body = re.sub(r"\s*\n\s*", "\n", body).strip()
    width, height = (72 * inches for inches in figure.get_size_inches())
    # a length of 72 in the drawing is an inch, which is 96 pixels of a page
    return (
        f'<svg class="{kind}" role="img" aria-label="{html.escape(alt, quote=True)}" width="{width * 96 / 72:.0f}" '
        f'viewBox="0 0 {width:.2f} {height:.2f}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">'
        f"{body}"
    )
