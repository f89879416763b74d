"""The frame of every page: what CITATION.cff says, what one setting turns on, and the texts that the search shows."""

import json
from datetime import date
from types import SimpleNamespace

import bvlm_about
import bvlm_search
import pytest
import yaml
from docutils import nodes
from PIL import Image

from bvlm_utils import paths
from bvlm_utils.store import records


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())


def test_zenodo_and_citation_say_the_same(citation):
    zenodo = json.loads((paths.ROOT / ".zenodo.json").read_text())
    assert zenodo["description"] == citation["abstract"].strip()
    for name in ("title", "version", "license", "keywords"):
        assert zenodo[name] == citation[name], name
    assert [one["name"] for one in zenodo["creators"]] == [one["name"] for one in citation["authors"]]
    assert [one["identifier"] for one in zenodo["related_identifiers"]] == [
        one["url"] for one in citation["references"]
    ]
    assert {one["relation"] for one in zenodo["related_identifiers"]} == {"references"}


def test_the_citation_has_the_fields_of_its_schema(citation):
    """What the Citation File Format 1.2.0 asks for, and nothing that it does not know."""
    known = {
        "cff-version", "message", "type", "title", "abstract", "version", "license", "authors", "keywords",
        "references", "date-released", "doi", "identifiers", "url", "repository-code",
    }  # fmt: skip
    assert set(citation) <= known and citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert all(isinstance(word, str) for word in citation["keywords"])
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference) and isinstance(reference["year"], int)
        assert all({"family-names", "given-names"} == set(author) for author in reference["authors"])


def test_the_bibtex_entry_comes_from_the_citation_and_the_results(citation, monkeypatch):
    monkeypatch.setattr(bvlm_about, "newest_result", lambda: date(2031, 2, 3))
    lines = bvlm_about.bibtex("https://example.org/x").splitlines()
    assert f"  title = {{{{{citation['title']}}}}}," in lines and "  year = {2031}," in lines
    assert "  note = {Results of 3 February 2031}," in lines and lines[-2] == "  url = {https://example.org/x}"


def test_the_date_is_that_of_the_newest_record():
    written = [record["provenance"]["written"][:10] for record in records.records("reference")]
    assert bvlm_about.newest_result().isoformat() == max(written)


def test_what_is_not_known_is_left_out(monkeypatch, tmp_path):
    for one in (bvlm_about.citation, bvlm_about.commit, bvlm_about.newest_result):
        one.cache_clear()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(bvlm_about, "ROOT", tmp_path)
        elsewhere.setattr(bvlm_about, "RECORDS", tmp_path / "none.parquet")
        assert bvlm_about.footer(str, False) == "<p></p>"
        assert (bvlm_about.commit(), bvlm_about.newest_result()) == ("", None)
    for one in (bvlm_about.citation, bvlm_about.commit, bvlm_about.newest_result):
        one.cache_clear()


def named(url):
    config = SimpleNamespace(html_theme_options={"repository_url": url}, html_baseurl="")
    bvlm_about.name_repository(None, config)
    return config


def test_no_repository_no_buttons():
    config = named("")
    assert config.html_theme_options == {"repository_url": ""} and config.html_baseurl == ""


def test_a_repository_elsewhere_has_no_colab():
    config = named("https://gitlab.com/somebody/study/")
    assert set(config.html_theme_options["launch_buttons"]) == {"notebook_interface", "binderhub_url"}
    assert config.html_theme_options["repository_url"] == "https://gitlab.com/somebody/study"
    assert config.html_baseurl == ""


def test_a_description_is_the_first_paragraph_cut_at_a_word():
    section = nodes.section("", nodes.paragraph("", "Short."), nodes.paragraph("", "word " * 60))
    told = bvlm_about.description(section)
    assert told.startswith("word word") and told.endswith("word …") and len(told) < 205
    assert bvlm_about.description(None) == bvlm_about.DESCRIPTION


def test_the_card_has_the_size_that_is_told():
    file = paths.BOOK / "_static" / bvlm_about.CARD
    assert Image.open(file).size == (1200, 630) and file.stat().st_size < 60_000


PAGE = """<nav><section id="no"><p>no</p></section></nav><article class="bd-article"><section id="top">
<h1>What stops <em>it</em><a class="headerlink" href="#top">#</a></h1><p>First.</p><p>Second.</p>
<div class="citation"><span>[1]</span><p>no</p></div>
<script>var no;</script><div class="cell_input"><pre>no</pre></div><svg><text>no</text></svg>
<section id="more"><h2>More</h2><table><tr><td>a</td><td>b</td></tr></table></section><p>Last.</p>
</section></article><footer><p>no</p></footer>"""


def test_a_page_is_searched_section_by_section_without_its_code():
    assert bvlm_search.texts(PAGE) == [["top", "What stops it", "First. Second. Last."], ["more", "More", "a b"]]
