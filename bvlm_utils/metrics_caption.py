"""How close are captions to what people wrote? CIDEr-D, the caption score of COCO; scoring calls it.

Vedantam et al. 2015, arXiv 1411.5726, section 6 (CIDEr-D), as computed by aac-metrics, which needs no Java.
That package imports torch and is imported only when a score is asked for.

What differs from COCO's own evaluation is the tokenizer. COCO runs Stanford's PTB tokenizer (Java), sets the
words in small letters and drops punctuation. `words` does the same with one regular expression, but keeps a
word with an apostrophe whole ("man's", "don't") where PTB splits it ("man 's", "do n't"). On captions without
such words both give the same words, so the same score.
"""

import re
from collections.abc import Sequence

import numpy as np

from bvlm_utils.errors import InputError

_WORD = re.compile(r"\w+(?:['-]\w+)*")


def words(text: str) -> list[str]:
    """The words of a caption in small letters, without punctuation."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def cider(responses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of every response, (N,) float64 from 0 to 10; the score of the set is the mean.

    responses: N captions. references: for each of them what people wrote, one caption or more.
    A score of 1.0 is what papers print as 100. How much an n-gram weighs depends on the references of all N
    rows, so scores can be compared between models on the same rows only. InputError for fewer than two rows,
    for lengths that differ, or for a row without references.
    """
    if len(responses) != len(references):
        raise InputError(f"There are {len(responses)} responses and {len(references)} sets of references.")
    if len(responses) < 2:
        raise InputError(f"CIDEr needs two captions or more (it weighs words by rarity); got {len(responses)}.")
    empty = [row for row, texts in enumerate(references) if isinstance(texts, str) or not len(texts)]
    if empty:
        raise InputError(f"Row {empty[0]} has no list of reference captions; CIDEr needs one or more for each row.")

    from aac_metrics.functional.cider_d import cider_d

    _, rows = cider_d(list(responses), [list(texts) for texts in references], tokenizer=words)
    return rows["cider_d"].numpy()
