"""What does a word of the glossary mean, without leaving the page? Every link to a term carries its definition."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

PAGE = "book/glossary"


def definitions(page: nodes.document) -> dict[str, str]:
    """The anchor of every term of a glossary -> its definition as plain text, two sentences at most."""
    found = {}
    for item in page.findall(nodes.definition_list_item):
        (meaning,) = item.findall(nodes.definition)
        found |= {anchor: shortened(meaning.astext()) for term in item.findall(nodes.term) for anchor in term["ids"]}
    return found


def shortened(text: str, most: int = 2) -> str:
    """The first sentences of a text."""
    sentences = " ".join(text.split()).split(". ")
    return ". ".join(sentences[:most]) + ("." if len(sentences) > most else "")


def explain_terms(app: Sphinx, page: nodes.document, name: str) -> None:
    """Give each link that `{term}` made on this page the definition as its title, which browsers show on hovering."""
    terms = [link for link in page.findall(nodes.reference) if _is_term(link)]
    if not terms:
        return
    meanings = definitions(app.env.get_doctree(PAGE))
    for link in terms:
        link["reftitle"] = meanings[link.get("refid") or link["refuri"].rpartition("#")[2]]


def _is_term(link: nodes.reference) -> bool:
    return any("std-term" in inner["classes"] for inner in link.findall(nodes.inline))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", explain_terms)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
