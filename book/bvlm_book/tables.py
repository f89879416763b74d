"""Tables of numbers from a store's tidy table: success, false activation, utility, differences.

Seeds are put together here, never pooled as rows. Free of torch, so that pages show what is stored without a model.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_book import words
from bvlm_book.probes import records
from bvlm_book.probes.records import CONTROL
from bvlm_book.words import is_missing
from bvlm_utils import attacks, store
from bvlm_utils.errors import InputError
from bvlm_utils.models import cards
from bvlm_utils.score import intervals
from bvlm_utils.store.records import has_responses
from bvlm_utils.store.table import SETTINGS, TOLD_APART, differing, headline_metric, text

CELL = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned"]
NUMBER = [*CELL, "subject", "condition", "metric"]
PANEL = ["model", "dataset", "threat", "train_rows", "settings", "rows"]
# Settings of training and answering, with the study's defaults; what else a cell may set makes it another experiment.
OTHER_EXPERIMENT = ("run", "half", "picture_last", "trigger_seed", "decoy", "skill", "skill_rate")
TRAINED = {"train_rows": 6000} | {name: value for name, value in SETTINGS.items() if name not in OTHER_EXPERIMENT}
# A cell in the tidy table but for its seed.
POINT = [name for name in TOLD_APART if name != "seed"]


# ---------------------------------------------------------------- the table


def summary(table: pd.DataFrame, metric: str, subject: str | None = None) -> pd.DataFrame:
    """One row per cell but for its seed, subject and condition: value and interval over the seeds.

    table: rows of `store.collect`. Seeds are put together as in `probes.records.seeds_together`; `n_seeds` says how
    many there were. InputError where one seed has two values: such a table mixes settings that no column tells apart.
    """
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if subject is not None:
        rows = rows[rows["subject"] == subject]
    repeated = rows.duplicated([*NUMBER, "seed"])
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise InputError(
            f"Cell {first['run_id']} is in the table twice with seed {first['seed']}; "
            "show runs that differ in other settings one table at a time."
        )

    def bounds(line: Mapping[str, Any]) -> tuple[float, float]:  # shares: no interval beyond 0 and 1
        return (-np.inf, np.inf) if pd.isna(line["k"]) else (0.0, 1.0)

    return records.seeds_together(rows, NUMBER, ("k", "n", "unit"), bounds)


def strict_metric(table: pd.DataFrame) -> pd.Series:
    """For every line the metric of the strict test, the first edition's headline: for malicious injection with a right
    answer before the sentence, where that was measured.
    """
    right = table["run_id"].isin(table.loc[table["metric"] == "asr_right", "run_id"])
    return pd.Series("asr", index=table.index).mask(right & (table["threat"] == "malicious_injection"), "asr_right")


def success_rates(table: pd.DataFrame, subject: str | None = None, metric: pd.Series | None = None) -> pd.DataFrame:
    """`summary` of each cell's `headline_metric` (or of the metric that is named line by line), threat by threat."""
    own = table[table["metric"] == (headline_metric(table) if metric is None else metric)]
    parts = [summary(part, metric, subject) for (_, metric), part in own.groupby(["threat", "metric"], sort=False)]
    parts = [part for part in parts if len(part)]  # an empty one has no number types
    return pd.concat(parts, ignore_index=True) if parts else summary(table, "asr", subject)


def with_settings(table: pd.DataFrame, metric: Callable[[pd.DataFrame], pd.Series] | None = None) -> pd.DataFrame:
    """Success of the poisoned models under every condition, over seeds: `success_rates` of each kind of experiment.

    Columns beside those of `summary`: negatives, settings without a half (as text), half ("" for the whole trigger,
    else what was trained alone). Per model, only experiments with the number of training rows that most have, so that
    all can be compared. metric: names the metric of each line, such as `strict_metric`.
    """
    done = table[table["status"] == "done"]
    trained, parts = usual_training(done), []
    for _, of_model in done.groupby("model", sort=False):
        usual = of_model[of_model["train_rows"] == of_model["train_rows"].mode().iloc[0]]
        for (negatives, _), part in usual.groupby(["negatives", "settings"], sort=False):
            settings = differing(part.iloc[0])
            if trained[part.index].all():  # the model's own learning rate is no setting of the experiment
                settings = {name: value for name, value in settings.items() if name not in TRAINED}
            about = {"negatives": negatives, "half": settings.pop("half", ""), "settings": text(settings)}
            parts.append(success_rates(part, "poisoned", metric(part) if metric else None).assign(**about))
    empty = success_rates(done.iloc[:0], "poisoned").assign(negatives=0.0, half="", settings="")
    return pd.concat(parts, ignore_index=True) if parts else empty


def learned_alone(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per part of a bimodal experiment that was trained by itself too: what the other part takes from it.

    rates: `with_settings`. alone: success of the part learnt alone; beside: of the part learnt with the other, both
    shown alone. difference: beside minus alone, its bounds the widest that both intervals allow. n_seeds, n: the
    smaller of both.
    """
    key = ["model", "dataset", "threat", "attack", "poison_rate", "settings", "condition"]
    numbers = ["value", "low", "high", "n_seeds", "n"]
    rows = rates[(rates["negatives"] == 0) & (rates["modality"] == "bimodal")]
    alone, beside = rows[rows["half"] == rows["condition"]], rows[rows["half"] == ""]
    found = beside[[*key, *numbers]].merge(alone[[*key, *numbers]], on=key, suffixes=("_beside", "_alone"))
    found = found.sort_values("condition", ascending=False, kind="stable", ignore_index=True)  # text first
    return found.assign(
        difference=found["value_beside"] - found["value_alone"],
        low=found["low_beside"] - found["high_alone"],
        high=found["high_beside"] - found["low_alone"],
        **{name: found[[f"{name}_beside", f"{name}_alone"]].min(axis=1) for name in ("n_seeds", "n")},
    )


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows under the condition that an attack is read from: its full trigger, if it has one.

    Shadowcast has no trigger at test time and is read on clean inputs.
    """
    return table[table["condition"] == table["attack"].map(lambda name: attacks.info(name).headline)]


def every_seed(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in seed alone, and those of `table`.

    A page that shows one seed where the store holds three would contradict the pages that show all of them.
    """
    key = ["experiment", "poison_rate"]
    return table[key].drop_duplicates().merge(stored, on=key)[stored.columns]  # in the order of `table`


def false_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Only the clean rows, of attacks that should not fire there."""
    return table[
        (table["condition"] == "clean") & (table["attack"].map(lambda name: attacks.info(name).headline) != "clean")
    ]


def utility_metric(rows: pd.DataFrame) -> str:
    """What utility is called in these rows of `summary` (its unit), such as "VQA accuracy"."""
    return " or ".join(rows["unit"].dropna().unique()) or "utility"


def readable(frame: pd.DataFrame, columns: Mapping[str, str | Callable[[dict[str, Any]], Any]]) -> pd.DataFrame:
    """A table to read: a line per line of `frame`, and by its title each column's name, or a function of the line."""
    return pd.DataFrame([
        {title: line[of] if isinstance(of, str) else of(line) for title, of in columns.items()}
        for line in frame.to_dict("records")
    ])  # fmt: skip


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The parts of `collect` that make a matrix each, with their names: of one model, threat and poison rate.

    The control, which has no rate, is in every panel of its model and threat.
    """
    found = []
    for key, part in table.groupby(PANEL, sort=False):
        about = dict(zip(PANEL, key, strict=True))
        poisoned = part[part["subject"] == records.POISONED]
        for rate in sorted(poisoned["poison_rate"].unique(), reverse=True):
            chosen = part[(part["subject"] == CONTROL) | (part["poison_rate"] == rate)]
            threat = about["threat"].replace("_", " ").capitalize()
            name = f"{threat}, {about['model']}, {words.percent(rate)} poisoned"
            found.append((chosen, name + (f", {about['settings']}" if about["settings"] else "")))
    return found


def usual_training(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.Series:
    """Which lines are of cells that were trained with their model's usual settings (columns TRAINED), `but` aside.

    A committed model's usual settings are the study's defaults; any other model's (and those of a store without such
    cells) are what most of its finished cells have, so that a grid with a learning rate of its own is read as well.
    """
    key = ["model", "train_rows", "settings"]
    kinds = {}
    for line in table.drop_duplicates(key).to_dict("records"):
        values = {name: usual if is_missing(line.get(name)) else line[name] for name, usual in TRAINED.items()}
        kinds[tuple(line[name] for name in key)] = tuple(map(_as_text, values.values()))
    cells = table[table["status"] == "done"].drop_duplicates("run_id")
    of_cells = [kinds[one] for one in zip(*(cells[name] for name in key), strict=True)]
    wanted = {}
    for model in table["model"].unique():
        counts = Counter(kind for kind, other in zip(of_cells, cells["model"], strict=True) if other == model)
        declared = tuple(map(_as_text, TRAINED.values()))
        most = max(sorted(counts), key=counts.get, default=())
        wanted[model] = declared if model in cards.names() and declared in counts else most
    asked = [i for i, name in enumerate(TRAINED) if name not in but]
    good = {one for one, kind in kinds.items() if wanted[one[0]] and all(kind[i] == wanted[one[0]][i] for i in asked)}
    found = [one in good for one in zip(*(table[name] for name in key), strict=True)]
    return pd.Series(found, index=table.index, dtype=bool)


def _as_text(value: Any) -> str:
    """Equal settings in one form, 6000.0 as 6000."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def usual(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.DataFrame:
    """The finished cells of attacks and threats as they are defined, trained with their model's usual settings (`but`
    aside), without half-triggered negatives.
    """
    done = table[(table["status"] == "done") & (table["negatives"] == 0)]
    done = done[usual_training(done, but)]
    kinds = done.drop_duplicates(["attack", "threat", "settings"]).to_dict("records")
    key = ["attack", "threat", "settings"]
    plain = {
        tuple(kind[name] for name in key)
        for kind in kinds
        if not kind["settings"] or 0 < len(apart := differing(kind)) == len(apart.keys() & TRAINED.keys())
    }
    found = [one in plain for one in zip(*(done[name] for name in key), strict=True)]
    return done[pd.Series(found, index=done.index, dtype=bool)]


def eligible(table: pd.DataFrame, place: str | Path | None = None) -> dict[tuple[str, str, int], int]:
    """Rows of the training set that could have been poisoned, by data set, threat and size, as the manifests say."""
    done = usual(table, but=tuple(TRAINED))
    done = done[done["n_poisoned"] > 0].drop_duplicates(["dataset", "threat", "train_rows"])
    key = zip(done["dataset"], done["threat"], done["train_rows"].astype(int), strict=True)
    return {one: store.manifest(run, place).n_eligible for one, run in zip(key, done["run_id"], strict=True)}


def outside_the_first(table: pd.DataFrame) -> tuple[int, int]:
    """How many of the other seeds' success rates (poisoned models, usual cells) lie outside the first seed's own
    interval, and of how many: what an interval over inputs knows of other training runs.
    """
    done = usual(table)
    done = done[(done["metric"] == headline_metric(done)) & (done["subject"] == "poisoned")]
    done = headline_rows(done).sort_values("seed")
    others = outside = 0
    for _, part in done.groupby([*NUMBER, "train_rows"], sort=False):
        first, rest = part.iloc[0], part.iloc[1:]
        others += len(rest)
        outside += int(((rest["value"] < first["low"]) | (rest["value"] > first["high"])).sum())
    return outside, others


def held(run_id: str, metric: str, subject: str, place: str | Path | None = None) -> pd.DataFrame | None:
    """Which judged inputs passed a threat's headline test: condition, row_id, prompt, held. None without responses.

    metric: "asr_payload", "asr", or "asr_right" for those whose answer is right, too (`store.table.headline_metric`).
    """
    if not has_responses(run_id, place):
        return None
    said = store.responses(run_id, place)
    said = said[(said["subject"] == subject) & (said["part"] == "attack") & said["judged"]]
    passed = said["payload" if metric == "asr_payload" else "success"].astype(bool)
    if metric == "asr_right":
        passed &= said["right"].fillna(False).astype(bool)
    return said[["condition", "row_id", "prompt"]].assign(held=passed)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, condition: str) -> dict[str, Any]:
    """Shares of two `held` under a condition and ours - theirs, with `score.intervals.paired_shares`' interval; {} for
    none.

    InputError where the two were not asked about the same inputs.
    """
    sides = [one[one["condition"] == condition].set_index("row_id")["held"].sort_index() for one in (ours, theirs)]
    if not all(len(side) for side in sides):
        return {}
    value, low, high = intervals.paired_shares(*sides)
    return {"ours": sides[0].mean(), "theirs": sides[1].mean(), "value": value, "low": low, "high": high,
            "n": len(sides[0])}  # fmt: skip
