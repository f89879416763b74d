"""The parts of speech of a prompt's words, which MABA's text trigger wraps.

The tagger is HanTa, or spaCy with `en_core_web_sm`, as published, where both are installed. HanTa's tags are the BNC's
(C5), mapped here to spaCy's five classes (forms of be, do and modals are no verbs, proper names no nouns). Spaces and
punctuation stay, where the published code puts spaces between tokens.
"""

import importlib.util
import re
from functools import lru_cache

from bvlm_utils.errors import InputError

TAGGERS = ("auto", "hanta", "spacy")
WRAPS = {"NOUN": ("[*", "*]"), "VERB": ("{", "}"), "ADJ": ("[", "]"), "ADV": ("<", ">"), "PRON": ("(", ")")}

# The longest prefix of a C5 tag decides; DTQ (what, which, whose) is decided by the word after it.
_C5 = {"NN": "NOUN", "VV": "VERB", "VH": "VERB", "AJ": "ADJ", "AV": "ADV", "PN": "PRON", "EX": "PRON"}
# "It's" and "don't" are tagged as two words each, as the tagger learnt them.
_TOKEN = re.compile(r"\w+(?=n['’]t)|n['’]t|['’]\w+|\w+|[^\w\s]")


def tagger_in_use(tagger: str = "auto") -> str:
    """Which of "spacy" and "hanta" `tagger` means on this machine."""
    if tagger != "auto":
        return tagger
    installed = all(importlib.util.find_spec(name) for name in ("spacy", "en_core_web_sm"))
    return "spacy" if installed else "hanta"


def wrap(text: str, tagger: str = "auto") -> str:
    """Wrap every noun, verb, adjective, adverb and pronoun of `text` in its marks; keep everything else."""
    pieces, last = [], 0
    for start, end, part in tag(text, tagger_in_use(tagger)):
        before, after = WRAPS.get(part, ("", ""))
        pieces += [text[last:start], before, text[start:end], after]
        last = end
    return "".join(pieces) + text[last:]


@lru_cache(maxsize=65536)
def tag(text: str, tagger: str) -> tuple[tuple[int, int, str], ...]:
    """(start, end, part) of every word or mark in `text`; part is a key of WRAPS, or "" for all others."""
    if tagger == "spacy":
        return tuple((t.idx, t.idx + len(t.text), t.pos_ if t.pos_ in WRAPS else "") for t in _spacy()(text))
    spans = [match.span() for match in _TOKEN.finditer(text)]
    if not spans:
        return ()
    tokens = [text[start:end].replace("’", "'") for start, end in spans]
    tags = [tagged[-1] for tagged in _hanta().tag_sent(tokens)]
    parts = []
    for code, following in zip(tags, [*tags[1:], ""], strict=True):
        if code == "DTQ":
            parts.append("" if following[:2] in ("NN", "AJ") else "PRON")
        else:
            parts.append(_C5.get(code[:2], ""))
    return tuple((*span, part) for span, part in zip(spans, parts, strict=True))


@lru_cache(maxsize=1)
def _hanta():
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")


@lru_cache(maxsize=1)
def _spacy():
    try:
        import spacy

        return spacy.load("en_core_web_sm", disable=["ner", "parser"])
    except (ImportError, OSError):  # spaCy raises OSError where it has no such model
        raise InputError(
            "The tagger 'spacy' needs the packages spacy and en_core_web_sm, which are not both installed; install "
            "them, or take 'auto' or 'hanta'."
        ) from None
