"""Tables of numbers from a store's tidy table. Seeds are put together, never pooled as rows. Free of torch."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_book import words
from bvlm_book.probes import records
from bvlm_utils import attacks, store, threats
from bvlm_utils.errors import InputError
from bvlm_utils.models import cards
from bvlm_utils.score import intervals
from bvlm_utils.store import packed
from bvlm_utils.store.records import has_responses
from bvlm_utils.store.table import SETTINGS, TOLD_APART, differing, headline_metric, text

CELL = ["model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned"]
NUMBER = [*CELL, "subject", "condition", "metric"]
PANEL = ["model", "dataset", "threat", "train_rows", "negatives", "settings", "rows"]
# Settings of training and answering, with the study's defaults; what else a cell may set makes it another experiment.
OTHER_EXPERIMENT = ("run", "half", "picture_last", "trigger_seed", "decoy", "skill", "skill_rate")
TRAINED = {"train_rows": 6000} | {name: value for name, value in SETTINGS.items() if name not in OTHER_EXPERIMENT}
# A cell in the tidy table but for its seed.
POINT = [name for name in TOLD_APART if name != "seed"]


def summary(table: pd.DataFrame, metric: str, subject: str | None = None, more: Sequence[str] = ()) -> pd.DataFrame:
    """One row per cell but for its seed, subject and condition. more: further columns that tell cells apart."""
    key = [*NUMBER, *more]
    rows = table[(table["metric"] == metric) & table["value"].notna()]
    if subject is not None:
        rows = rows[rows["subject"] == subject]
    repeated = rows[rows.duplicated([*key, "seed"])]
    if len(repeated):
        run_id, seed = repeated[["run_id", "seed"]].iloc[0]
        raise InputError(f"Cell {run_id} is in the table twice with seed {seed}; "
                         "show runs that differ in other settings one table at a time.")  # fmt: skip
    return records.over_seeds(rows, key, ["k", "n", "unit"])


def strict_metric(table: pd.DataFrame) -> pd.Series:
    """For every line the metric of the strict test: for malicious injection with a right answer, where measured."""
    right = table["run_id"].isin(table.loc[table["metric"] == "asr_right", "run_id"])
    return pd.Series("asr", index=table.index).mask(right & (table["threat"] == "malicious_injection"), "asr_right")


def success_rates(
    table: pd.DataFrame, subject: str | None = None, metric: pd.Series | None = None, more: Sequence[str] = ()
) -> pd.DataFrame:
    """`summary` of each cell's `headline_metric` (or of the metric that is named line by line), threat by threat."""
    own = table[table["metric"] == (headline_metric(table) if metric is None else metric)]
    groups = own.groupby(["threat", "metric"], sort=False)
    parts = [summary(part, metric, subject, more) for (_, metric), part in groups]
    parts = [part for part in parts if len(part)]  # an empty one has no number types
    return pd.concat(parts, ignore_index=True) if parts else summary(table, "asr", subject, more)


def with_settings(table: pd.DataFrame, metric: Callable[[pd.DataFrame], pd.Series] | None = None) -> pd.DataFrame:
    """`success_rates` of poisoned models by negatives, settings and half; per model with the commonest `train_rows`."""
    done = table[table["status"] == "done"]
    trained, key = usual_training(done), ["model", "negatives", "settings"]
    commonest = done.groupby("model", sort=False)["train_rows"].agg(lambda rows: rows.mode().iloc[0])
    usual = done[done["train_rows"] == done["model"].map(commonest)]
    about = []
    for _, part in usual.groupby(key, sort=False):
        first = part.iloc[0]
        settings = differing(first)
        if trained[part.index].all():  # the model's own learning rate is no setting of the experiment
            settings = {name: value for name, value in settings.items() if name not in TRAINED}
        elif (own := done[trained & (done["model"] == first["model"])]).size:  # the declared one may be another
            named = zip(TRAINED, _trained(first), _trained(own.iloc[0]), strict=True)
            settings = {name: value for name, value, usual in named if value != usual} | settings
        half = settings.pop("half", "")
        about.append([*first[key], half, text(settings)])
    about = pd.DataFrame(about, columns=[*key, "half", "shown"])
    rates = success_rates(usual, "poisoned", metric(usual) if metric else None, key[1:])
    found = rates.merge(about.rename_axis("part").reset_index(), on=key, how="left")
    found = found.sort_values("part", kind="stable", ignore_index=True)  # together what has the same settings
    found = found.drop(columns=["part", "settings"]).rename(columns={"shown": "settings"})
    return found.astype({"negatives": "float64", "half": "str", "settings": "str"})  # of no lines too


def learned_alone(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per part of a bimodal trigger that was trained alone too: success alone and beside the other part."""
    key = ["model", "dataset", "threat", "attack", "poison_rate", "settings", "condition"]
    rows = rates[(rates["negatives"] == 0) & (rates["modality"] == "bimodal")]
    rows = rows[[*key, "value", "low", "high", "n_seeds", "half"]]
    alone, beside = rows[rows["half"] == rows["condition"]], rows[rows["half"] == ""]
    found = beside.merge(alone, on=key, suffixes=("_beside", "_alone"))
    return found.sort_values("condition", ascending=False, kind="stable", ignore_index=True)  # text first


def through_jpeg(table: pd.DataFrame) -> pd.DataFrame:
    """Mean success (payload) with triggered pictures saved as JPEG, and `plain`, a line per cell but for its seed."""
    name, key = "attack.jpeg_quality", [*CELL, "negatives", "others"]
    if name not in table:
        return pd.DataFrame(columns=[*key, "jpeg", "plain", "n_seeds"])
    done = headline_rows(table.query("metric == 'asr_payload' and subject == 'poisoned'"))
    compressed = done[name].fillna(0) > 0  # older records lack the setting
    done = done[among(done, CELL[:4], done.loc[compressed, CELL[:4]].itertuples(index=False, name=None))]
    others = [text(differing(line | {name: None})) for line in done.to_dict("records")]
    done = done.assign(others=others)[[*key, "seed", "value"]].rename(columns={"value": "jpeg"})
    jpeg, plain = done[compressed[done.index]], done[~compressed[done.index]].rename(columns={"jpeg": "plain"})
    both = jpeg.merge(plain, on=[*key, "seed"]).groupby(key, sort=False, as_index=False)
    return both.agg(jpeg=("jpeg", "mean"), plain=("plain", "mean"), n_seeds=("seed", "nunique"))


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows under the condition that an attack is read from: its full trigger, clean inputs for Shadowcast."""
    return table[table["condition"] == read_from(table)]


def read_from(table: pd.DataFrame) -> pd.Series:
    """The condition that the attack of each line is read from; of one that only the store knows, by its modality."""
    known = {name: attacks.info(name).headline for name in table["attack"].unique() if name in attacks.names()}
    return table["attack"].map(known).fillna(table["modality"].replace("bimodal", "both"))


def every_seed(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in seed at most: all pages show all seeds."""
    key = ["experiment", "poison_rate"]
    return table[key].drop_duplicates().merge(stored, on=key)[stored.columns]  # in the order of `table`


def of_own_data(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of experiments on the data set that their threat is defined on."""
    own = table["threat"].map({name: threats.get(name).default_dataset for name in threats.names()})
    return table[table["dataset"] == own]


def false_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Only the clean rows, of attacks that should not fire there."""
    return table[(read_from(table) != "clean") & (table["condition"] == "clean")]


def utility_metric(rows: pd.DataFrame) -> str:
    """What utility is called in these rows of `summary` (its unit), such as "VQA accuracy"."""
    return " or ".join(rows["unit"].dropna().unique()) or "utility"


def readable(frame: pd.DataFrame, columns: Mapping[str, str | Callable[[dict[str, Any]], Any]]) -> pd.DataFrame:
    """A table to read: a line per line of `frame`, and by its title each column's name, or a function of the line."""
    return pd.DataFrame([
        {title: line[of] if isinstance(of, str) else of(line) for title, of in columns.items()}
        for line in frame.to_dict("records")
    ])  # fmt: skip


def told(lines: Sequence[tuple], columns: Sequence[str]) -> pd.DataFrame:
    """Expectations to read. lines: a value per column, and whether it came true; None while it waits for runs."""
    found = pd.DataFrame(lines, columns=[*columns, "came true"])
    came = ["not all run yet" if true is None else "yes" if true else "no" for true in found["came true"]]
    return found.assign(**{"came true": came})


def outcomes(expected: pd.DataFrame) -> dict[str, str]:
    """Of the lines of `told`: how many there are, came true, did not, and wait for runs."""
    kinds = {"true": "yes", "false": "no", "open": "not all run yet"}
    counts = {key: str((expected["came true"] == name).sum()) for key, name in kinds.items()}
    return {"expected": str(len(expected))} | counts


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The parts of `collect` that make a matrix each, with names: of one model, threat and rate, with its control."""
    found, many_data = [], bool((table.groupby("threat")["dataset"].nunique() > 1).any())
    for (model, dataset, threat, _, _, settings, _), part in table.groupby(PANEL, sort=False):
        control = part["subject"] == records.CONTROL
        for rate in sorted(part.loc[~control, "poison_rate"].unique(), reverse=True):
            name = f"{threat.replace('_', ' ').capitalize()}, {model}, {words.percent(rate)} poisoned"
            name = ", ".join(filter(None, [name, dataset * many_data, settings]))
            found.append((part[control | (part["poison_rate"] == rate)], name))
    return found


def usual_training(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.Series:
    """Which lines are of cells trained with their model's usual settings: the defaults, or what most cells have."""
    key = ["model", "train_rows", "settings"]
    lines = table.drop_duplicates(key).to_dict("records")
    kinds = {tuple(line[name] for name in key): _trained(line) for line in lines}
    cells = table[table["status"] == "done"].drop_duplicates("run_id")[key]
    usual = {}
    for model, own in cells.groupby("model", sort=False):
        counts = Counter(kinds[one] for one in own.itertuples(index=False, name=None))
        declared = _trained({})
        known = model in cards.names() and declared in counts
        usual[model] = declared if known else max(sorted(counts), key=counts.get)
    asked = [i for i, name in enumerate(TRAINED) if name not in but]
    good = [one for one, kind in kinds.items() if one[0] in usual and all(kind[i] == usual[one[0]][i] for i in asked)]
    return among(table, key, good)


def _trained(line: Mapping[str, Any]) -> tuple[str, ...]:
    """How a cell was trained: `TRAINED` in one form, 6000.0 as 6000; what is missing is as declared."""
    values = (usual if words.is_missing(line.get(name)) else line[name] for name, usual in TRAINED.items())
    return tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def among(table: pd.DataFrame, names: Sequence[str], kinds: Iterable[tuple]) -> pd.Series:
    """Which lines have one of these combinations of values in the named columns."""
    kinds = set(kinds)
    number = table.groupby(list(names), sort=False, dropna=False).ngroup()  # tuples of all lines would take seconds
    first = table.loc[~number.duplicated(), list(names)].itertuples(index=False, name=None)
    found = np.array([one in kinds for one in first], bool)
    return pd.Series(found[number], index=table.index, dtype=bool)


def usual(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.DataFrame:
    """Finished cells of attacks and threats as defined, trained as usual (`but` aside), without half-triggered rows."""
    done = table[(table["status"] == "done") & (table["negatives"] == 0)]
    done = done[usual_training(done, but)]
    key = ["attack", "threat", "settings"]
    plain = {
        tuple(kind[name] for name in key)
        for kind in done.drop_duplicates(key).to_dict("records")
        if not kind["settings"] or (apart := differing(kind)) and apart.keys() <= TRAINED.keys()
    }
    return done[among(done, key, plain)]


def eligible(table: pd.DataFrame, place: str | Path | None = None) -> dict[tuple[str, str, int], int]:
    """Rows of the training set that could have been poisoned, by data set, threat and size, as the manifests say."""
    done = usual(table, but=tuple(TRAINED))
    done = done[done["n_poisoned"] > 0].drop_duplicates(["dataset", "threat", "train_rows"])
    key = zip(done["dataset"], done["threat"], done["train_rows"].astype(int), strict=True)
    return {one: store.manifest(run, place).n_eligible for one, run in zip(key, done["run_id"], strict=True)}


def outside_the_first(table: pd.DataFrame) -> pd.Series:
    """Which of the other seeds' success rates (poisoned models, usual cells) lie outside the first seed's interval."""
    done = usual(table).sort_values("seed", kind="stable")
    done = headline_rows(done[(done["metric"] == headline_metric(done)) & (done["subject"] == "poisoned")])
    seeds = done.groupby([*NUMBER, "train_rows"], sort=False)
    first, others = seeds[["low", "high"]].transform("first"), seeds.cumcount() > 0
    return ((done["value"] < first["low"]) | (done["value"] > first["high"]))[others]


def held(run_id: str, metric: str, place: str | Path | None = None) -> pd.DataFrame | None:
    """On which judged inputs a backdoored model passed `metric`, a headline test (held); None without responses."""
    if not has_responses(run_id, place):
        return None
    names = ["subject", "part", "judged", "condition", "row_id", "prompt"]
    names += {"asr_payload": ["payload"], "asr_right": ["success", "right"]}.get(metric, ["success"])
    said = packed.rows(store.folder(place), run_id, "responses", names).frame()  # all columns take twice the time
    said = said.query("subject == 'poisoned' and part == 'attack' and judged")
    passed = said["payload" if metric == "asr_payload" else "success"].astype(bool)
    if metric == "asr_right":
        passed &= said["right"].fillna(False).astype(bool)
    return said[["condition", "row_id", "prompt"]].assign(held=passed)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, condition: str) -> dict[str, Any]:
    """Shares of two `held` under a condition, and their difference with its paired interval; {} for none."""
    sides = [one[one["condition"] == condition].set_index("row_id")["held"].sort_index() for one in (ours, theirs)]
    if not all(len(side) for side in sides):
        return {}
    numbers = dict(zip(("value", "low", "high"), intervals.paired_shares(*sides), strict=True))
    return numbers | {"with": sides[0].mean(), "without": sides[1].mean()}
