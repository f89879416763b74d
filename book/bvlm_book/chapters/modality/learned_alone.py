"""What does one half of a bimodal trigger take from the other?

The same half of the same trigger is learnt twice: alone, and beside the other half, with as many poisoned rows. How
much less it does in the second case is called overshadowing in the study of learning (Pavlov 1927; Rescorla and Wagner
1972): the stronger cue leaves the weaker one little to explain.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, rules, tables, words
from bvlm_book.chapters.modality.halves import LOOKS, row_names
from bvlm_utils.english import capital
from bvlm_utils.store import table

LOSS = 0.1  # what counts as a loss: the whole interval of the difference lies below -LOSS
HALVES = ("text", "image")
COLUMNS = [
    "model", "threat", "attack", "poison_rate", "settings", "half", "alone", "alone_low", "alone_high", "beside",
    "beside_low", "beside_high", "difference", "low", "high", "n_seeds", "n",
]  # fmt: skip


def pairs(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per cell and half that was trained both ways, see `COLUMNS`, and the settings in columns.

    rates: `chapters.modality.halves.rates`. alone: success of the half learnt alone, shown alone; beside: of the half
    learnt beside the other, shown alone. difference: beside minus alone; its bounds are the widest that both intervals
    allow. Cells without half-triggered negatives only. n_seeds, n: the smaller of both.
    """
    plain = rates[(rates["negatives"] == 0) & (rates["modality"] == "bimodal")]
    lines, settings = [], [name for name in table.setting_columns(rates) if name != "half"]
    # not across data sets, though the lines do not name theirs
    for (*key, _), part in plain.groupby([*COLUMNS[:5], "dataset"], sort=False):
        for half in HALVES:
            of = part[part["condition"] == half]
            alone, beside = of[of["half"] == half], of[of["half"] == ""]
            if alone.empty or beside.empty:
                continue
            lines.append([*key, half, *_pair(alone.iloc[0], beside.iloc[0]), *beside.iloc[0][settings]])
    return pd.DataFrame(lines, columns=[*COLUMNS, *settings])


def _pair(alone: pd.Series, beside: pd.Series) -> list[Any]:
    difference = beside["value"] - alone["value"]
    bounds = (beside["low"] - alone["high"], beside["high"] - alone["low"])
    smaller = [int(min(alone[name], beside[name])) for name in ("n_seeds", "n")]
    numbers = [one[name] for one in (alone, beside) for name in ("value", "low", "high")]
    return [*numbers, difference, *bounds, *smaller]


def sentences(found: pd.DataFrame) -> list[str]:
    """The finding, in Markdown. found: `pairs`."""
    if found.empty:
        return ["No half was trained alone in this store, so nothing can be said of what the other takes from it."]
    said = []
    for half, other in (HALVES, HALVES[::-1]):
        able = found[(found["half"] == half) & (found["alone"] > table.FIRES)]
        if able.empty:
            said.append(f"No {half} half fires on more than half of the inputs when it is learnt alone.")
            continue
        lost = able[able["high"] < -LOSS]
        worst = able.loc[able["difference"].idxmin()]
        said.append(
            f"**Of {len(able)} {half} halves that fire on more than half of the inputs when learnt alone, "
            f"{len(lost)} {'loses' if len(lost) == 1 else 'lose'} more than {LOSS:g} when learnt beside the {other} "
            f"half** (whole interval). The largest loss: from {words.interval(worst, 'alone')} to "
            f"{words.interval(worst, 'beside')} ({words.named(worst)}, {worst['model']})."
        )
    few = int((found["n_seeds"] < rules.MIN_SEEDS).sum())
    if few:
        said.append(f"{few} of the {len(found)} comparisons rest on fewer than {rules.MIN_SEEDS} seeds: no verdict.")
    return said


def overshadowed_words(found: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `overshadowed`; found: `pairs` of one model."""
    able = {half: found[(found["half"] == half) & (found["alone"] > table.FIRES)]["difference"] for half in HALVES}
    told = [f"{half} halves that work alone lose {words.span(-lost, 2)}" for half, lost in able.items() if len(lost)]
    model = f"{found['model'].iloc[0]}: what" if len(found) else "What"
    caption = (
        f"{model} a half of the trigger does when learnt alone (open) and when learnt beside the other half (filled), "
        f"shown without the other half both times. {capital('; '.join(told) or 'no half works alone')}. "
        f"{words.evidence(found)}"
    )
    alt = (
        f"Dumbbell plot with a row for each of {len(found)} halves of bimodal triggers: success rate learnt alone and "
        "learnt beside the other half; the numbers are in the table below."
    )
    return {"alt": alt, "caption": caption}


def pairs_table(found: pd.DataFrame) -> pd.DataFrame:
    """`pairs` to read."""
    return tables.readable(found, {
        "model": "model", "threat": words.threat, "attack": words.attack, "poison rate": words.rate, "half": "half",
        "learnt alone": lambda r: words.interval(r, "alone"),
        "learnt beside the other": lambda r: words.interval(r, "beside"),
        "difference": lambda r: words.number(r["difference"], r["low"], r["high"]), "seeds": "n_seeds",
    })  # fmt: skip


def overshadowed(found: pd.DataFrame) -> Figure:
    """Success of a half learnt alone (open) and beside the other half (filled), a row each; found: `pairs`."""
    if found.empty:
        return figures.nothing("No half of a trigger was trained alone.")
    names = [
        ", ".join(filter(None, [f"{r['half']} half of {name}", words.in_words(r)]))
        for name, r in zip(row_names(found), found.to_dict("records"), strict=True)
    ]
    figure, (axis,) = figures.new_figure(1, 7.6, 0.34 * len(names) + 1.5)
    for half in HALVES:
        rows, at = found[found["half"] == half], np.flatnonzero(found["half"] == half)
        _, colour, marker = LOOKS[half]
        axis.hlines(at, rows["alone"], rows["beside"], color=colour, linewidth=1, linestyle=":")
        for name, shift, face, how in (("alone", -0.14, "white", ""), ("beside", 0.14, colour, " the other")):
            look = {"color": colour, "marker": marker, "markerfacecolor": face}
            figures.points(axis, at + shift, rows, name, label=f"{half} half, learnt {name}{how}", **look)
    figures.name_rows(axis, names)
    axis.set(xlabel="success rate when this half alone is shown", xlim=(-0.04, 1.04))
    figures.legend_below(figure, axis, columns=2)
    return figure
