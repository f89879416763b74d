"""What a reader meets on every page of a built book: words, height, what is cut on a phone, requests, errors, bytes.

    python tests/pages.py _build/html    # a line per page, and the sum of words

One browser opens every page twice, light and dark, and shows it on a wide screen and on a phone.
"""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import chromium

WIDE, PHONE = (1440, 900), (390, 844)
LARGEST = 1_200_000  # bytes of a page
LEAST_CONTRAST = 4

# Words that are read: nothing folded away, no code, no drawings, and not the leaderboard's table of data.
WORDS = """
(() => {
  const left_out = "pre, script, style, svg, .cell_input, .headerlink, .bvlm-board table, .bvlm-leaderboard table";
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  let words = 0;
  while (walker.nextNode())
    if (!walker.currentNode.parentElement.closest(left_out) && walker.currentNode.parentElement.checkVisibility())
      words += (walker.currentNode.data.match(/\\S*[\\p{L}\\p{N}]\\S*/gu) || []).length;
  return words;
})()
"""
# Figures that end beyond the screen, even where they can be moved sideways, and letters that end beyond their drawing.
CUT = """
(() => {
  const cut = [], screen = document.documentElement.clientWidth + 1;
  for (const picture of document.querySelectorAll("article figure svg, article figure img, article figure canvas")) {
    const box = picture.getBoundingClientRect();
    if (!box.width) continue;
    if (box.right > screen || box.left < -1) cut.push(picture.outerHTML.slice(0, 120));
    for (const text of picture.querySelectorAll("text")) {
      const own = text.getBoundingClientRect();
      if (own.right > box.right + 2 || own.left < box.left - 2) cut.push(text.textContent);
    }
  }
  return cut;
})()
"""
# What is cut off at the right: elements that end beyond the screen, unless something around them scrolls.
CUT_OFF = """
[...document.querySelectorAll("article *")].filter(element => {
  const box = element.getBoundingClientRect();
  if (box.width === 0 || box.right <= document.documentElement.clientWidth + 1) return false;
  for (let outer = element.parentElement; outer; outer = outer.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(outer).overflowX)) return false;
  return true;
}).map(element => element.outerHTML.slice(0, 120))
"""
# Pictures that did not load, and figures that one sees through.
UNSEEN = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.alt)"
# The contrast (WCAG) of the running text and of captions with what is behind them.
CONTRAST = """
(() => {
  const parse = colour => (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(linear)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const words = ["p", "figcaption", "caption", "td", "mark", "a"].map(tag => `article ${tag}`).join();
  return [...document.querySelectorAll(words)]
    .filter(element => element.textContent.trim() && element.offsetParent).map(element => {
      const one = light(parse(getComputedStyle(element).color)), two = light(behind(element));
      return [(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), element.outerHTML.slice(0, 100)];
    }).sort((a, b) => a[0] - b[0])[0] || [21, ""];
})()
"""
# Figures without a number, without the sentence that stands for a picture, or with both of their drawings in sight.
NAMELESS = """
[...document.querySelectorAll("article figure.bvlm-figure")].filter(figure => {
  const seen = [...figure.querySelectorAll("svg[role=img], img")].filter(one => one.getBoundingClientRect().width);
  const caption = figure.querySelector("figcaption");
  return !seen.length || seen.some(one => !(one.ariaLabel || one.alt))
    || seen.filter(one => one.tagName === "svg").length > 1
    || !caption || !getComputedStyle(caption, "::before").content.includes("counter");
}).map(figure => (figure.querySelector("figcaption") || figure).textContent.slice(0, 80))
"""


@dataclass(frozen=True)
class Page:
    """What was counted on a page; `cut` and `nameless` on either screen, `unreadable` in the dark as well."""

    name: str
    words: int
    height: int  # pixels on the wide screen
    bytes: int
    cut: tuple[str, ...]
    nameless: tuple[str, ...]
    unreadable: tuple[str, ...]
    requests: tuple[str, ...]
    errors: tuple[str, ...]


def measure(browser: chromium.Chromium, folder: Path) -> list[Page]:
    """All pages of the book in `folder`."""
    files = [*sorted(folder.glob("book/*.html")), *sorted(folder.glob("notebooks/*.html"))]
    return [_page(browser, file, folder) for file in files]


def _page(browser: chromium.Chromium, file: Path, folder: Path) -> Page:
    events = browser.open(file.as_uri(), *WIDE, "light")
    words, height = browser.run(WORDS), browser.run("document.documentElement.scrollHeight")
    nameless, cut, unreadable = browser.run(NAMELESS), browser.run(CUT), _unreadable(browser, WIDE, "light")
    browser.resize(*PHONE)
    nameless, cut = nameless + browser.run(NAMELESS), cut + browser.run(CUT)
    unreadable += _unreadable(browser, PHONE, "light")
    problems = chromium.problems(events)
    events = browser.open(file.as_uri(), *PHONE, "dark")
    unreadable += _unreadable(browser, PHONE, "dark")
    browser.resize(*WIDE)
    unreadable += _unreadable(browser, WIDE, "dark")
    problems += chromium.problems(events)
    return Page(
        name=file.relative_to(folder).with_suffix("").as_posix(), words=words, height=height, bytes=file.stat().st_size,
        cut=_once(cut), nameless=_once(nameless), unreadable=_once(unreadable),
        requests=_once([one for one in problems if one.startswith("request:")]),
        errors=_once([one for one in problems if not one.startswith("request:")]),
    )  # fmt: skip


def _unreadable(browser: chromium.Chromium, screen: tuple[int, int], scheme: str) -> list[str]:
    """What keeps a reader from reading the page that is open, as it is shown now."""
    found = [f"cut off: {element}" for element in browser.run(CUT_OFF)]
    found += [f"not loaded: {name}" for name in browser.run(UNSEEN)]
    if (width := browser.run("document.documentElement.scrollWidth")) > screen[0]:
        found.append(f"{width} pixels wide")
    if (theme := browser.run("document.documentElement.dataset.theme")) != scheme:
        found.append(f"theme {theme}")
    contrast, element = browser.run(CONTRAST)
    if contrast < LEAST_CONTRAST:
        found.append(f"contrast {contrast:.1f}: {element}")
    return [f"{scheme}, {screen[0]}: {one}" for one in found]


def _once(found: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(found))


def report(pages: list[Page]) -> str:
    """A line per page, the sum of words, and below what is wrong."""
    lines = [f"{'page':34}" + "".join(f"{field.name:>10}" for field in fields(Page)[1:])]
    for page in pages:
        shown = [len(value) if isinstance(value, tuple) else value for value in asdict(page).values()]
        lines.append(f"{page.name:34}" + "".join(f"{value:10}" for value in shown[1:]))
    lines.append(f"{'all':34}{sum(page.words for page in pages):10}")
    for page in pages:
        for what in ("cut", "nameless", "unreadable", "requests", "errors"):
            lines += [f"{page.name}, {what}: {one}" for one in getattr(page, what)]
    return "\n".join(lines)


if __name__ == "__main__":
    with chromium.Chromium() as opened:
        print(report(measure(opened, Path(sys.argv[1]).resolve())))  # noqa: T201
