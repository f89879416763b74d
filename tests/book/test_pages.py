"""The book stays short, and every page whole: what `tests/pages.py` counts, with the limits that the book has."""

import pages
import pytest
import yaml
from stored import entries

from bvlm_utils import paths

WORDS = 19_000  # of the whole book, as a reader sees it
THREAT_HEIGHT = 4_500  # pixels of a threat's chapter at 1440
THREATS = ("targeted_refusal", "malicious_injection", "perceptual_hijack", "concept_substitution", "jailbreak")


@pytest.fixture(scope="module")
def measured(book, browser):
    found = pages.measure(browser, book)
    print(pages.report(found))  # noqa: T201, pytest shows it where a limit is passed
    return found


@pytest.mark.parametrize("fault", ["requests", "errors", "cut", "nameless", "unreadable"])
def test_no_page_asks_elsewhere_fails_or_cuts_anything(measured, fault):
    assert {page.name for page in measured} == set(entries(yaml.safe_load((paths.ROOT / "_toc.yml").read_text())))
    assert {page.name: found for page in measured if (found := getattr(page, fault))} == {}


def test_no_page_is_heavy(measured):
    assert {page.name: page.bytes for page in measured if page.bytes > pages.LARGEST} == {}


def test_the_book_is_short(measured):
    assert sum(page.words for page in measured) <= WORDS


def test_a_threat_is_read_in_a_few_screens(measured):
    heights = {page.name: page.height for page in measured if page.name.removeprefix("notebooks/") in THREATS}
    assert len(heights) == len(THREATS) and max(heights.values()) <= THREAT_HEIGHT, heights


def test_what_is_wrong_is_counted(tmp_path, browser):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "bad.html").write_text(
        "<meta charset='utf-8'><meta name='viewport' content='width=device-width'><article>"
        "<p style='width: 3000px; color: #777; background: #888'>Three – short words.</p>"
        "<img alt='gone' src='missing.png'><details><p>folded</p></details><pre>code</pre>"
        "<figure class='bvlm-figure'><svg role='img' width='900' height='10'><text x='890'>a long label</text></svg>"
        "<svg role='img' aria-label='two' width='9' height='9'></svg><figcaption>One more.</figcaption></figure>"
        "</article><script src='http://127.0.0.1:9/x.js'></script>"
        "<script>console.error('oh'); nothing.at.all()</script>"
    )
    (page,) = pages.measure(browser, tmp_path)
    assert (page.name, page.words) == ("book/bad", 5)
    assert "a long label" in page.cut and len(page.cut) == 2 and page.nameless == ("One more.",)
    assert page.requests == ("request: http://127.0.0.1:9/x.js",) and "nothing is not defined" in " ".join(page.errors)
    assert "console: ['oh']" in page.errors
    shown = [f"{scheme}, {width}" for scheme in ("light", "dark") for width in (1440, 390)]
    for what in ("cut off: <p", "not loaded: gone", "contrast 1.", "theme None", "pixels wide"):
        assert {one.split(":")[0] for one in page.unreadable if what in one} == set(shown), what
    assert "book/bad, cut: a long label" in pages.report([page])
