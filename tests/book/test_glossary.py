"""Every word of the glossary can be linked, and the link carries its meaning."""

import re

import bvlm_glossary
from docutils import nodes

from bvlm_utils import paths

TERMS = (
    "ASR", "backdoor", "base model", "bimodal trigger", "clean-tuned control", "experiment",
    "false activation", "LoRA rank", "pass", "payload test", "published test", "strict test", "poison rate",
    "single run", "trigger", "utility", "Wilson interval", "paired difference", "skill", "placebo", "AUROC",
)  # fmt: skip


def test_the_terms_that_pages_link_have_an_entry():
    lines = (paths.BOOK / "glossary.md").read_text(encoding="utf-8").splitlines()
    inside = lines[lines.index("```{glossary}") + 1 : lines.index("```")]
    entries = {line for line in inside if line and not line.startswith(" ")}
    assert set(TERMS) <= entries
    for page in [*paths.BOOK.glob("*.md"), *paths.NOTEBOOKS.glob("*.ipynb")]:
        for target in re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", page.read_text(encoding="utf-8")):
            assert target.lower() in {entry.lower() for entry in entries}, f"{page.name}: {target}"


def test_a_definition_is_shortened_to_two_sentences_and_keyed_by_its_anchor():
    term = nodes.term("", "trigger", ids=["term-trigger"])
    meaning = nodes.definition("", nodes.paragraph("", "One word.\nTwo. Three."))
    page = nodes.paragraph("", "", nodes.definition_list("", nodes.definition_list_item("", term, meaning)))
    assert bvlm_glossary.definitions(page) == {"term-trigger": "One word. Two."}
    assert bvlm_glossary.shortened("One. Two.") == "One. Two."
