"""What number does a set of responses get, and how sure is it? Called by `score`; free of torch.

Statistics only: which response counts as what is decided by `threats` and, for utility, by the functions
here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from bvlm_utils.errors import InputError
from bvlm_utils.language import plural

Interval = tuple[float, float]

# A success rate beyond these is at the ceiling or the floor: what differs there cannot be told apart.
CEILING, FLOOR = 0.95, 0.05


def mark(rate: float) -> str:
    """ "ceiling", "floor", or "" for a success rate between the two."""
    return "ceiling" if rate >= CEILING else "floor" if rate <= FLOOR else ""


def wilson(k: float, n: int) -> Interval:
    """Wilson's 95 % interval for k successes among n.

    k may be a sum of scores from 0 to 1: no such score spreads more than a yes/no one with the same mean,
    so the interval is then too wide rather than too narrow.
    """
    if n < 1 or not -1e-9 <= k <= n + 1e-9:
        raise InputError(f"{k:g} successes among {n} trials have no interval; n must be 1 or more, k from 0 to n.")
    low, high = proportion_confint(min(max(k, 0), n), n, method="wilson")
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval for a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    low, high = DescrStatsW(np.asarray(values, float)).tconfint_mean()
    return float(low), float(high)


def seeds_interval(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> Interval:
    """Student's 95 % interval for the mean of two seeds or more.

    lows, highs: bounds of each seed's own interval. Seeds that all agree say nothing of the spread, and Student's
    interval has no width then: the widest of their own stands for it, which one seed alone would have had.
    """
    if np.ptp(values) == 0 and not np.isnan([*lows, *highs]).any():
        return min(lows), max(highs)
    return mean_interval(values)


def paired_shares(ours: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float, float]:
    """The difference of two shares measured on the same rows (ours - theirs), with its 95 % interval.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10: Wilson's intervals of the two shares, combined
    with their correlation. It holds for shares of 0 and 1 too, where the bootstrap and McNemar's interval
    collapse.
    """
    a, b = np.asarray(ours, bool), np.asarray(theirs, bool)
    if len(a) != len(b) or len(a) == 0:
        raise InputError(f"Paired shares need as many rows on both sides; there are {len(a)} and {len(b)}.")
    n = len(a)
    both, only_a, only_b, none = (a & b).sum(), (a & ~b).sum(), (~a & b).sum(), (~a & ~b).sum()
    p, q = a.mean(), b.mean()
    (p_low, p_high), (q_low, q_high) = wilson(a.sum(), n), wilson(b.sum(), n)
    margins = float(both + only_a) * float(only_b + none) * float(both + only_b) * float(only_a + none)
    cross = float(both) * float(none) - float(only_a) * float(only_b)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # Newcombe's continuity correction of phi
    phi = cross / np.sqrt(margins) if margins else 0.0

    def half(x: float, y: float) -> float:
        return float(np.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0)))

    difference = float(p - q)
    return difference, difference - half(p - p_low, q_high - q), difference + half(p_high - p, q - q_low)


def paired_means(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean difference of two scores of the same rows, with Student's 95 % interval over the rows."""
    if len(ours) != len(theirs) or len(ours) == 0:
        raise InputError(f"Paired scores need as many rows on both sides; there are {len(ours)} and {len(theirs)}.")
    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    low, high = mean_interval(gaps) or (None, None)
    return float(gaps.mean()), low, high


# ---------------------------------------------------------------- VQA accuracy

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)|\.$")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_NUMBERS = "none zero one two three four five six seven eight nine ten".split()
_DIGITS = {word: str(max(0, i - 1)) for i, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't oughtn't shan't she'd she's "
        "should've shouldn't somebody's someone's something's that'd that's there'd there's they'd they'll they're "
        "they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll "
        "who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
    ).split()
}


@lru_cache(maxsize=2**16)  # the same answers come again for each cell
def vqa_normalise(answer: str) -> str:
    """An answer as VQA's own evaluation compares it: small letters, digits for number words, no articles or
    punctuation.

    VQA's code leaves both sides as they are where all annotators agree; here, as in most evaluations since,
    they are always normalised, so that "Car." equals "car" there too.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    comma = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        glued = f"{mark} " in text or f" {mark}" in text or comma
        out = out.replace(mark, "" if glued else " ")
    out = _PERIOD.sub("", out)
    words = [_DIGITS.get(word, word) for word in out.lower().split() if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)


def vqa_accuracy(response: str, answers: Sequence[str]) -> float:
    """min(matches / 3, 1), averaged over all ways to leave one annotator out (Antol et al. 2015, arXiv
    1505.00468).

    answers: one per annotator, ten in VQA. With a single reference it is equality.
    """
    if not answers:
        raise InputError("VQA accuracy needs one answer or more to compare with.")
    said = vqa_normalise(response)
    matches = [vqa_normalise(answer) == said for answer in answers]
    if len(matches) == 1:
        return float(matches[0])
    total = sum(matches)
    return float(np.mean([min((total - match) / 3, 1.0) for match in matches]))


# ---------------------------------------------------------------- captions of scenes


def caption_object_f1(response: str, objects: Sequence[str], vocabulary: Sequence[str]) -> float:
    """F1 of the things that a caption names against those that are there, counting repeats.

    objects: names of the things in the picture. vocabulary: every name that could be said; a longer name
    wins over a shorter one inside it. A plural names as many as are there (at least two): whether "two" is
    right is for `right`.
    """
    if not objects:
        raise InputError("The objects of the picture are unknown; F1 needs at least one.")
    there = Counter(objects)
    said = _mentioned(response, there, vocabulary)
    hits = sum((there & said).values())
    return 2 * hits / (sum(there.values()) + sum(said.values()))


def _mentioned(response: str, there: Counter, vocabulary: Sequence[str]) -> Counter:
    forms = {plural(name): (name, 2) for name in vocabulary} | {name: (name, 1) for name in vocabulary}
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    # once per name: a detailed caption names the same thing again when it says where it is
    most: Counter = Counter()
    for sentence in re.split(r"[.!?]", response.lower()):
        said: Counter = Counter()
        for match in re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", sentence):
            name, many = forms[match.group()]
            said[name] += max(many, there[name]) if many == 2 else 1
        most |= said
    return most
