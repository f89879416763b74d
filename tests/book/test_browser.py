"""A real browser searches the book, and sorts, folds and addresses its leaderboard, without a server."""

import re
from urllib.parse import quote

import chromium
import pytest

DESKTOP, PHONE = (1440, 900), (390, 844)


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
