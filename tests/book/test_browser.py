"""A real browser opens every page, light and dark, wide and narrow: no error, no request, nothing cut off."""

import re
from urllib.parse import quote

import chromium
import pytest
import yaml
from stored import entries

from bvlm_utils import paths

PAGES = entries(yaml.safe_load((paths.ROOT / "_toc.yml").read_text()))
DESKTOP, PHONE = (1440, 900), (390, 844)
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


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_error_or_request_and_nothing_is_cut_off(name, book, browser):
    for scheme, screens in {"light": (DESKTOP, PHONE), "dark": (PHONE, DESKTOP)}.items():
        events = browser.open((book / f"{name}.html").as_uri(), *screens[0], scheme)
        for at, (width, height) in enumerate(screens):
            if at:  # without loading the page again
                browser.resize(width, height)
            where = (name, width, scheme)
            assert not chromium.problems(events), where
            assert browser.run("document.documentElement.dataset.theme") == scheme, where
            assert browser.run("document.documentElement.scrollWidth") <= width, (where, browser.run(CUT_OFF))
            assert not browser.run(CUT_OFF), where
            assert not browser.run(UNSEEN), where
            contrast, element = browser.run(CONTRAST)
            assert contrast >= 4, (where, contrast, element)


@pytest.mark.parametrize(
    ("asked", "page", "word"),
    [
        ("how to remove a backdoor", "what_to_do.html", "backdoor"),
        ("how to remove a backdoor", "defences.html", "backdoor"),
        ("defense", "defences.html", "defence"),
        ("citation", "bibliography.html", "cite"),
    ],
)
def test_the_search_finds_and_shows_where_without_a_server(asked, page, word, book, browser):
    browser.open((book / "search.html").as_uri() + "?q=" + quote(asked), 1440, 900, "light")
    found = browser.run(
        "new Promise(done => { const look = tries => {"
        " const hits = [...document.querySelectorAll('#search-results li')];"
        " hits.length || !tries ? done(hits.map(hit => [hit.querySelector('a').getAttribute('href'),"
        " [...hit.querySelectorAll('mark')].map(mark => mark.textContent.toLowerCase())]))"
        " : setTimeout(() => look(tries - 1), 100); }; look(100); })"
    )
    first = found[:6]
    assert any(page in address for address, _ in first), first
    assert any(word in mark for _, marks in first for mark in marks)
    assert all(address.partition("#")[0].startswith(("book/", "notebooks/")) for address, _ in found)
    assert not chromium.problems(browser.events)


SCORES = "[...document.querySelectorAll('.bvlm-board [role=tabpanel]:not([hidden]) tbody tr')].map(row => row.cells[2])"
IN_VIEW = f"{SCORES}.slice(0, 2).every(cell => cell.getBoundingClientRect().right <= innerWidth)"
TOP = f"{SCORES}[0].getBoundingClientRect().top"


def test_the_leaderboard_ranks_sorts_and_folds_without_a_server(book, browser):
    for width, height in (DESKTOP, PHONE):
        browser.open((book / "notebooks" / "leaderboard.html").as_uri(), width, height, "light")
        assert browser.run(IN_VIEW) and browser.run(TOP) < height, "the score is in view"
        values = [float(text[:4]) for text in browser.run(f"{SCORES}.map(cell => cell.textContent)")]
        assert len(values) > 8 and values == sorted(values, reverse=True), "the best is on top"
    browser.run("document.querySelectorAll('.bvlm-board th button')[1].click()")
    assert values[::-1] == [float(text[:4]) for text in browser.run(f"{SCORES}.map(cell => cell.textContent)")]
    browser.run(f"{SCORES}[0].click()")  # on the phone a line opens
    said = re.search(r"of (\d+) threats", browser.run(f"{SCORES}[0].parentElement.textContent"))
    assert browser.run("document.querySelectorAll('.bvlm-board .detail dt').length") == int(said[1]), "one per threat"
    browser.run("document.querySelector('#tab-defences').click()")
    left = [float(text) for text in browser.run(f"{SCORES}.map(cell => cell.textContent)")]
    assert left == sorted(left) and len(left) > 5
    assert not chromium.problems(browser.events)


def test_an_address_chooses_experiments_on_the_leaderboard(book, browser):
    def fields():
        return browser.run(f"{SCORES}.map(cell => [...cell.parentElement.cells].map(one => one.textContent))")

    address = (book / "notebooks" / "leaderboard.html").as_uri()
    browser.open("about:blank", 1440, 900, "light")  # an address that differs in its end alone is no new page
    browser.open(f"{address}#model=tiny-llava&threat=jailbreak&attack=SIG", 1440, 900, "light")
    found = fields()
    assert found and {(row[0], row[2], row[3]) for row in found} == {("SIG", "jailbreak", "tiny-llava")}
    assert browser.run("document.querySelector('#tab-experiments').ariaSelected") == "true"
    browser.run("location.hash = 'attack=SIG&rate=0.01&seed=0'; new Promise(done => setTimeout(done, 200))")
    found = fields()
    assert found and {(row[0], row[4], row[6]) for row in found} == {("SIG", "1 %", "0")}
    several = "attack=SIG&attack=MABA&rate=0.1&train_rows=6000&settings=half%3Dtext"
    browser.run(f"location.hash = '{several}'; new Promise(done => setTimeout(done, 200))")
    assert {(row[0], row[7]) for row in fields()} == {("MABA", "half=text")}, "SIG has no text part"
    told = browser.run("document.querySelector('[role=tabpanel]:not([hidden]) p').textContent")
    assert "attack: SIG or MABA; settings: half=text" in told
    browser.run("[...document.querySelectorAll('.bvlm-board form button')].pop().click()")  # clear
    assert len(fields()) == 100
    assert not chromium.problems(browser.events)


def test_what_is_wrong_is_seen(tmp_path, browser):
    """The checks above find what they are for."""
    (tmp_path / "bad.html").write_text(
        "<body style='margin:0'><article><p style='width: 3000px; color: #777; background: #888'>wide and "
        "grey</p><img alt='gone' src='missing.png'></article><script "
        "src='http://127.0.0.1:9/x.js'></script><script>console.error('oh'); nothing.at.all()</script>"
    )
    events = browser.open((tmp_path / "bad.html").as_uri(), 390, 844, "light")
    found = " ".join(chromium.problems(events))
    for part in ("request: http://127.0.0.1:9/x.js", "console: ['oh']", "nothing is not defined"):
        assert part in found
    assert browser.run(CUT_OFF) and browser.run(UNSEEN) == ["gone"] and browser.run(CONTRAST)[0] < 2
