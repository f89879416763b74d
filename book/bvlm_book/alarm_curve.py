"""True against false alarms of the check for backdoors, with and without a second look. Free of torch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, words
from bvlm_utils.score import disagreement
from bvlm_utils.store.table import FIRES

MARGINS = sorted({disagreement.MARGIN, *np.linspace(-0.2, 1, 241).round(4)})


def roc(suspects: pd.DataFrame, innocents: pd.DataFrame, trusted: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    """Shares of true alarms (backdoors that work) and false ones (clean-tuned models beside one of another seed).

    A line per margin and look: once, or twice, where an alarm stands only if no trusted model (clean-tuned, of another
    seed, beside the base) raises it with our margin. Models without such a one are left out of both. The three tables
    are of `chapters.audit`; shown: their columns that say what a model was shown.
    """
    seen: dict[tuple, dict[int, float]] = {}
    for *key, seed, low in trusted[[*shown, "seed", "low"]].itertuples(index=False, name=None):
        seen.setdefault(tuple(key), {})[seed] = low
    kinds = {}
    for kind, rows in (("true", suspects[suspects["asr"] > FIRES]), ("false", innocents)):
        lows = rows[[*shown, "seed", "low"]].itertuples(index=False, name=None)
        found = [
            (low, [other for one, other in seen.get(tuple(key), {}).items() if kind == "true" or one != seed])
            for *key, seed, low in lows
        ]
        kinds[kind] = np.array([(low, max(others)) for low, others in found if others], float).reshape(-1, 2)
    margins = MARGINS if all(map(len, kinds.values())) else ()
    lines = [
        [margin, look, *(((own > margin) & ((look == "once") | (other <= disagreement.MARGIN))).mean()
                         for own, other in (pairs.T for pairs in kinds.values()))]
        for margin in margins for look in ("once", "twice")
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["margin", "look", *kinds])


def roc_figure(lines: pd.DataFrame) -> Figure:
    if lines.empty:
        return figures.nothing("There are no models of both kinds with a trusted one beside them.")
    figure, (axis,) = figures.new_figure(1, 4.8, 4.2)
    for style, (look, part) in zip(map(figures.look, (0, 1)), lines.groupby("look", sort=False), strict=True):
        axis.plot(part["false"], part["true"], color=style["color"], label=f"looked at {look}")
        axis.plot("false", "true", "", data=part[part["margin"] == disagreement.MARGIN], label="", **style)
    axis.set(xlabel="false alarms (clean-tuned models)", ylabel="true alarms (backdoors that work)")
    axis.legend(loc="lower right")
    return figure


def numbers(lines: pd.DataFrame) -> dict[str, str]:
    """Shares of true and false alarms at our margin, looked at once and twice, to be glued."""
    ours = lines[lines["margin"] == disagreement.MARGIN].to_dict("records")
    found = {f"{row['look']}_{kind}": words.number(row[kind]) for row in ours for kind in ("true", "false")}
    return dict.fromkeys(("once_true", "once_false", "twice_true", "twice_false"), "n/a") | found


def roc_words(lines: pd.DataFrame) -> dict[str, str]:
    if lines.empty:
        return words.nothing_measured("True against false alarms")
    at = numbers(lines)
    title = f"A second look takes false alarms from {at['once_false']} to {at['twice_false']}."
    return {
        "title": title,
        "alt": f"Two curves, true against false alarms over all margins, with and without a second look. {title}",
        "caption": f"Marked: our margin. True alarms fall from {at['once_true']} to {at['twice_true']}.",
    }
