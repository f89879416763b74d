"""Where do tuned models look? Reads what `attribution` has traced, for the chapter on modalities. Free of
torch.

`collect` gives the numbers of a store, `over_seeds` puts seeds together, the rest says what they hold.
Figures are in `plots_modality`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from bvlm_utils import metrics, packed, plots, report, store
from bvlm_utils.errors import InputError

FOLDER = "attribution"
GROUPS = ("trigger text", "trigger image", "other text", "other image")
POISONED, CONTROL, DIFFERENCE, COUNTS = "poisoned", "control", "difference", "token counts"
CELL = [
    "run_id", "model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "seed", "negatives",
    "train_rows", "settings",
]  # fmt: skip
NUMBER = ["subject", "measure", "group", "layer", "value", "low", "high", "n"]
COLUMNS = [*CELL, "first", *NUMBER]


def load(content: bytes, file: Path) -> dict[str, Any]:
    """What is in a file of traces; InputError if it is none."""
    try:
        record = json.loads(content)
        record["identity"], record["cell"], record["numbers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of traces ({error}); delete it and trace again.") from None
    return record


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all traces of a store, a line per number (`COLUMNS`); without lines where there are
    none.

    subject: "poisoned", "control", their paired "difference", or "token counts". layer: NaN for the mean
    over layers. first: share of rows where the deciding token is the answer's first.
    """
    lines, root = [], store.folder(place)
    for name in packed.names(root, FOLDER):
        record = load(packed.content(root, FOLDER, name), root / FOLDER / name)
        about = record["cell"] | {"first": record["first"]}
        lines += [{name: (about | number)[name] for name in COLUMNS} for number in record["numbers"]]
    return pd.DataFrame(lines, columns=COLUMNS).astype({"layer": "float64", "value": "float64"})


SAME = [name for name in COLUMNS if name not in ("run_id", "seed", "first", "value", "low", "high", "n")]


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A line per number but for its seed: `SAME`, value, low, high, n, n_seeds.

    One seed: its own interval over rows. Several: their mean with Student's interval over the seeds.
    """
    lines = []
    for key, part in table.groupby(SAME, sort=False, dropna=False):
        line = {name: part[name].iloc[0] for name in ("value", "low", "high", "n")}
        if len(part) > 1:
            low, high = metrics.seeds_interval(*(part[name].to_numpy(float) for name in ("value", "low", "high")))
            line |= {"value": part["value"].mean(), "low": low, "high": high}
        lines.append(dict(zip(SAME, key, strict=True)) | line | {"n_seeds": part["seed"].nunique()})
    return pd.DataFrame(lines, columns=[*SAME, "value", "low", "high", "n", "n_seeds"])


# ---------------------------------------------------------------- the page


def panels(shares: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Model and its part of `over_seeds`, for figures: cells as attacks are defined, without half-triggered
    rows."""
    yield from shares[(shares["negatives"] == 0) & (shares["settings"] == "")].groupby("model", sort=False)


def shares_table(shares: pd.DataFrame) -> pd.DataFrame:
    """`over_seeds` of one model to read: a line per cell, measure and group, means over layers."""
    usual = shares[shares["layer"].isna() & shares["measure"].isin(["attention", "attribution"])]
    cell = ["threat", "attack", "poison_rate", "negatives", "settings", "measure", "group"]
    lines = []
    for key, part in usual.groupby(cell, sort=False):
        about, by = dict(zip(cell, key, strict=True)), part.set_index("subject")
        line = {
            "threat": about["threat"].replace("_", " "),
            "attack": ", ".join(filter(None, [about["attack"], about["settings"]])),
            "poison rate": plots.percent(about["poison_rate"]),
            "half-triggered rows": f"{about['negatives']:g} per poisoned row" if about["negatives"] else "none",
            "share of": about["measure"],
            "tokens": about["group"],
        }
        for subject in (POISONED, CONTROL, DIFFERENCE):
            r = by.loc[subject]
            label = {CONTROL: "clean-tuned", DIFFERENCE: "difference, same inputs"}.get(subject, subject)
            line[label] = report.number(r["value"], r["low"], r["high"])
        counts = by.loc[COUNTS]["value"] if COUNTS in by.index else None
        lines.append(line | {"expected from token counts": report.number(counts)})
    table = pd.DataFrame(lines)
    return table if (usual["negatives"] > 0).any() else table.drop(columns="half-triggered rows", errors="ignore")


def sentences(shares: pd.DataFrame) -> list[str]:
    """What the traces show, in Markdown; says so where there are none. shares: `over_seeds`."""
    usual = shares[shares["layer"].isna()]
    if usual.empty:
        return [
            "Nothing has been traced yet: the store holds no attention and no attribution of any adapter. "
            "The command at the end of this page makes them."
        ]
    said = []
    for measure in ("attention", "attribution"):
        for group in GROUPS[:2]:
            part = usual[(usual["measure"] == measure) & (usual["group"] == group)]
            own, control = (part[part["subject"] == subject]["value"] for subject in (POISONED, CONTROL))
            changes = part[part["subject"] == DIFFERENCE]
            said.append(
                f"**Share of the {group} in {measure}:** {_span(own)} in the poisoned models, "
                f"{_span(control)} in the clean-tuned ones. Clearly more than in the clean-tuned model: "
                f"{(changes['low'] > 0).sum()} of {len(changes)} cells; clearly less: "
                f"{(changes['high'] < 0).sum()}."
            )
    counts = usual[(usual["subject"] == COUNTS) & (usual["measure"] == "attention")].set_index("group")["value"]
    said.append(
        f"The trigger text is {_span(counts[['trigger text']])} of the tokens, the trigger image "
        f"{_span(counts[['trigger image']])}. {evidence(usual)}"
    )
    return said


def _span(values: pd.Series) -> str:
    ends = dict.fromkeys((report.number(values.min()), report.number(values.max())))
    return " to ".join(ends)


def words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_modality.looked_at`; shares: `over_seeds` of one model."""
    usual = shares[shares["layer"].isna()]
    attention = usual[(usual["measure"] == "attention") & (usual["subject"] == POISONED)]
    by = attention.set_index(["threat", "attack", "poison_rate", "negatives", "settings", "group"])["value"].unstack()
    ahead = int((by["trigger text"] > by["trigger image"]).sum())
    text = [
        f"{model}: where the model looks when it settles for the attacker's answer. In {ahead} of {len(by)} "
        "cells the text half of the trigger gets more of the poisoned model's attention than the image "
        f"half ({_span(by['trigger text'])} against {_span(by['trigger image'])}).",
        evidence(usual),
    ]
    alt = (
        "Dot plot, four panels: shares of trigger text and trigger image in attention and attribution, "
        f"{len(by)} cells in rows, the poisoned and the clean-tuned model beside the share of tokens; the "
        "numbers are in the table below."
    )
    return {"alt": alt, "caption": " ".join(text)}


def layers_words(model: str, shares: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `plots_modality.layers`; shares: `over_seeds` of one model."""
    own = shares[shares["layer"].notna() & (shares["subject"] == POISONED)]
    text = [f"{model}: attention to the two halves of the trigger, layer by layer, mean over heads."]
    for group in GROUPS[:2]:
        top = own[own["group"] == group].sort_values("value", ascending=False, kind="stable").iloc[0]
        text.append(
            f"The {group} gets most in layer {int(top['layer']) + 1} "
            f"({report.number(top['value'], top['low'], top['high'])}; {top['attack']}, "
            f"{top['threat'].replace('_', ' ')})."
        )
    cells = own.drop_duplicates(["threat", "attack", "poison_rate"])
    alt = f"Line charts, a panel for each of {len(cells)} cells, attention against the layer, for both models."
    return {"alt": alt, "caption": " ".join([*text, evidence(shares)])}


def evidence(shares: pd.DataFrame) -> str:
    """How many inputs and seeds stand behind the numbers, and what their intervals are."""
    counts, seeds = sorted({int(n) for n in shares["n"]}), sorted({int(n) for n in shares["n_seeds"]})
    inputs = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    shown = f"{inputs} inputs with the whole trigger"
    if seeds == [1]:
        return f"{shown}, 95 % intervals over inputs; one seed, no claim about others."
    return f"{shown}; intervals are over the seeds where there are several (up to {seeds[-1]})."
