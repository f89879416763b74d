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
    rows = table[table["metric"] == (headline_metric(table) if metric is None else metric)]
    groups = rows.groupby(["threat", "metric"], sort=False)
    parts = [summary(part, metric, subject, more) for (_, metric), part in groups]
    parts = [part for part in parts if len(part)]  # an empty one has no number types
    return pd.concat(parts, ignore_index=True) if parts else summary(table, "asr", subject, more)


def with_settings(table: pd.DataFrame, metric: Callable[[pd.DataFrame], pd.Series] | None = None) -> pd.DataFrame:
    """`success_rates` of poisoned models by negatives, settings and half; per model with the commonest `train_rows`."""
    finished = table[table["status"] == "done"]
    trained, key = usual_training(finished), ["model", "negatives", "settings"]
    commonest = finished.groupby("model", sort=False)["train_rows"].agg(lambda rows: rows.mode().iloc[0])
    chosen = finished[finished["train_rows"] == finished["model"].map(commonest)]
    labels = []
    for _, part in chosen.groupby(key, sort=False):
        line = part.iloc[0]
        settings = differing(line)
        if trained[part.index].all():  # the model's own learning rate is no setting of the experiment
            settings = {name: value for name, value in settings.items() if name not in TRAINED}
        elif (peers := finished[trained & (finished["model"] == line["model"])]).size:  # the declared one may differ
            triples = zip(TRAINED, _trained(line), _trained(peers.iloc[0]), strict=True)
            settings = {name: value for name, value, default in triples if value != default} | settings
        half = settings.pop("half", "")
        labels.append([*line[key], half, text(settings)])
    labels = pd.DataFrame(labels, columns=[*key, "half", "shown"])
    rates = success_rates(chosen, "poisoned", metric(chosen) if metric else None, key[1:])
    lines = rates.merge(labels.rename_axis("part").reset_index(), on=key, how="left")
    lines = lines.sort_values("part", kind="stable", ignore_index=True)  # together what has the same settings
    lines = lines.drop(columns=["part", "settings"]).rename(columns={"shown": "settings"})
    return lines.astype({"negatives": "float64", "half": "str", "settings": "str"})  # of no lines too


def learned_alone(rates: pd.DataFrame) -> pd.DataFrame:
    """A line per part of a bimodal trigger that was trained alone too: success alone and beside the other part."""
    key = ["model", "dataset", "threat", "attack", "poison_rate", "settings", "condition"]
    rows = rates[(rates["negatives"] == 0) & (rates["modality"] == "bimodal")]
    rows = rows[[*key, "value", "low", "high", "n_seeds", "half"]]
    alone, beside = rows[rows["half"] == rows["condition"]], rows[rows["half"] == ""]
    pairs = beside.merge(alone, on=key, suffixes=("_beside", "_alone"))
    return pairs.sort_values("condition", ascending=False, kind="stable", ignore_index=True)  # text first


def through_jpeg(table: pd.DataFrame) -> pd.DataFrame:
    """Mean success (payload) with triggered pictures saved as JPEG, and `plain`, a line per cell but for its seed."""
    column, key = "attack.jpeg_quality", [*CELL, "negatives", "others"]
    if column not in table:
        return pd.DataFrame(columns=[*key, "jpeg", "plain", "n_seeds"])
    rows = headline_rows(table.query("metric == 'asr_payload' and subject == 'poisoned'"))
    compressed = rows[column].fillna(0) > 0  # older records lack the setting
    rows = rows[among(rows, CELL[:4], rows.loc[compressed, CELL[:4]].itertuples(index=False, name=None))]
    others = [text(differing(line | {column: None})) for line in rows.to_dict("records")]
    rows = rows.assign(others=others)[[*key, "seed", "value"]].rename(columns={"value": "jpeg"})
    jpeg, plain = rows[compressed[rows.index]], rows[~compressed[rows.index]].rename(columns={"jpeg": "plain"})
    pairs = jpeg.merge(plain, on=[*key, "seed"]).groupby(key, sort=False, as_index=False)
    return pairs.agg(jpeg=("jpeg", "mean"), plain=("plain", "mean"), n_seeds=("seed", "nunique"))


def headline_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows under the condition that an attack is read from: its full trigger, clean inputs for Shadowcast."""
    return table[table["condition"] == read_from(table)]


def read_from(table: pd.DataFrame) -> pd.Series:
    """The condition that the attack of each line is read from; of one that only the store knows, by its modality."""
    conditions = {name: attacks.info(name).headline for name in table["attack"].unique() if name in attacks.names()}
    return table["attack"].map(conditions).fillna(table["modality"].replace("bimodal", "both"))


def by_data(rows: pd.DataFrame) -> pd.DataFrame:
    """The same lines; a threat that was run on several data sets is named with each: "targeted_refusal (vqav2)"."""
    if rows.empty:
        return rows
    kinds = {name: name.partition(":")[0] for name in rows["dataset"].unique()}  # of "vqav2:data/external/vqav2"
    data = rows["dataset"].map(kinds) if len(set(kinds.values())) == len(kinds) else rows["dataset"]
    several = rows.groupby("threat")["dataset"].transform("nunique") > 1
    return rows.assign(threat=rows["threat"].mask(several, rows["threat"] + " (" + data + ")"))


def every_seed(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """The rows of `stored` whose cells differ from those of `table` in seed at most: all pages show all seeds."""
    key = ["experiment", "poison_rate"]
    return table[key].drop_duplicates().merge(stored, on=key)[stored.columns]  # in the order of `table`


def of_own_data(table: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of experiments on the data set that their threat is defined on."""
    datasets = table["threat"].map({name: threats.get(name).default_dataset for name in threats.names()})
    return table[table["dataset"] == datasets]


def false_activation(table: pd.DataFrame) -> pd.DataFrame:
    """Only the clean rows, of attacks that should not fire there."""
    return table[(read_from(table) != "clean") & (table["condition"] == "clean")]


def utility_metric(rows: pd.DataFrame) -> str:
    """What utility is called in these rows of `summary` (its unit), such as "VQA accuracy"."""
    return " or ".join(rows["unit"].dropna().unique()) or "utility"


def readable(frame: pd.DataFrame, columns: Mapping[str, str | Callable[[dict[str, Any]], Any]]) -> pd.DataFrame:
    """A table to read: a line per line of `frame`, and by its title each column's name, or a function of the line."""
    return pd.DataFrame([
        {title: line[column] if isinstance(column, str) else column(line) for title, column in columns.items()}
        for line in frame.to_dict("records")
    ])  # fmt: skip


def told(lines: Sequence[tuple], columns: Sequence[str]) -> pd.DataFrame:
    """Expectations to read. lines: a value per column, and whether it came true; None while it waits for runs."""
    table = pd.DataFrame(lines, columns=[*columns, "came true"])
    answers = ["not all run yet" if holds is None else "yes" if holds else "no" for holds in table["came true"]]
    return table.assign(**{"came true": answers})


def outcomes(expected: pd.DataFrame) -> dict[str, str]:
    """Of the lines of `told`: how many there are, came true, did not, and wait for runs."""
    kinds = {"true": "yes", "false": "no", "open": "not all run yet"}
    counts = {key: str((expected["came true"] == name).sum()) for key, name in kinds.items()}
    return {"expected": str(len(expected))} | counts


def panels(table: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The parts of `collect` that make a matrix each, with names: of one model, threat and rate, with its control."""
    parts, many_data = [], bool((table.groupby("threat")["dataset"].nunique() > 1).any())
    for (model, dataset, threat, _, _, settings, _), part in table.groupby(PANEL, sort=False):
        control = part["subject"] == records.CONTROL
        for rate in sorted(part.loc[~control, "poison_rate"].unique(), reverse=True):
            name = f"{threat.replace('_', ' ').capitalize()}, {model}, {words.percent(rate)} poisoned"
            name = ", ".join(filter(None, [name, dataset * many_data, settings]))
            parts.append((part[control | (part["poison_rate"] == rate)], name))
    return parts


def usual_training(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.Series:
    """Which lines are of cells trained with their model's usual settings: the defaults, or what most cells have."""
    key = ["model", "train_rows", "settings"]
    lines = table.drop_duplicates(key).to_dict("records")
    kinds = {tuple(line[name] for name in key): _trained(line) for line in lines}
    cells = table[table["status"] == "done"].drop_duplicates("run_id")[key]
    usual = {}
    for model, rows in cells.groupby("model", sort=False):
        counts = Counter(kinds[cell] for cell in rows.itertuples(index=False, name=None))
        declared = _trained({})
        has_declared = model in cards.names() and declared in counts
        usual[model] = declared if has_declared else max(sorted(counts), key=counts.get)
    indices = [i for i, name in enumerate(TRAINED) if name not in but]
    matching = [
        cell for cell, kind in kinds.items() if cell[0] in usual and all(kind[i] == usual[cell[0]][i] for i in indices)
    ]
    return among(table, key, matching)


def _trained(line: Mapping[str, Any]) -> tuple[str, ...]:
    """How a cell was trained: `TRAINED` in one form, 6000.0 as 6000; what is missing is as declared."""
    values = (usual if words.is_missing(line.get(name)) else line[name] for name, usual in TRAINED.items())
    return tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def among(table: pd.DataFrame, names: Sequence[str], kinds: Iterable[tuple]) -> pd.Series:
    """Which lines have one of these combinations of values in the named columns."""
    kinds = set(kinds)
    groups = table.groupby(list(names), sort=False, dropna=False).ngroup()  # tuples of all lines would take seconds
    first = table.loc[~groups.duplicated(), list(names)].itertuples(index=False, name=None)
    matches = np.array([values in kinds for values in first], bool)
    return pd.Series(matches[groups], index=table.index, dtype=bool)


def usual(table: pd.DataFrame, but: Sequence[str] = ()) -> pd.DataFrame:
    """Finished cells of attacks and threats as defined, trained as usual (`but` aside), without half-triggered rows."""
    rows = table[(table["status"] == "done") & (table["negatives"] == 0)]
    rows = rows[usual_training(rows, but)]
    key = ["attack", "threat", "settings"]
    plain = {
        tuple(line[name] for name in key)
        for line in rows.drop_duplicates(key).to_dict("records")
        if not line["settings"] or (apart := differing(line)) and apart.keys() <= TRAINED.keys()
    }
    return rows[among(rows, key, plain)]


def eligible(table: pd.DataFrame, place: str | Path | None = None) -> dict[tuple[str, str, int], int]:
    """Rows of the training set that could have been poisoned, by data set, threat and size, as the manifests say."""
    rows = usual(table, but=tuple(TRAINED))
    rows = rows[rows["n_poisoned"] > 0].drop_duplicates(["dataset", "threat", "train_rows"])
    key = zip(rows["dataset"], rows["threat"], rows["train_rows"].astype(int), strict=True)
    return {point: store.manifest(run_id, place).n_eligible for point, run_id in zip(key, rows["run_id"], strict=True)}


def outside_the_first(table: pd.DataFrame) -> pd.Series:
    """Which of the other seeds' success rates (poisoned models, usual cells) lie outside the first seed's interval."""
    rows = usual(table).sort_values("seed", kind="stable")
    rows = headline_rows(rows[(rows["metric"] == headline_metric(rows)) & (rows["subject"] == "poisoned")])
    seeds = rows.groupby([*NUMBER, "train_rows"], sort=False)
    first, others = seeds[["low", "high"]].transform("first"), seeds.cumcount() > 0
    return ((rows["value"] < first["low"]) | (rows["value"] > first["high"]))[others]


def held(run_id: str, metric: str, place: str | Path | None = None) -> pd.DataFrame | None:
    """On which judged inputs a backdoored model passed `metric`, a headline test (held); None without responses."""
    if not has_responses(run_id, place):
        return None
    names = ["subject", "part", "judged", "condition", "row_id", "prompt"]
    names += {"asr_payload": ["payload"], "asr_right": ["success", "right"]}.get(metric, ["success"])
    responses = packed.rows(store.folder(place), run_id, "responses", names).frame()  # all columns take twice the time
    responses = responses.query("subject == 'poisoned' and part == 'attack' and judged")
    passed = responses["payload" if metric == "asr_payload" else "success"].astype(bool)
    if metric == "asr_right":
        passed &= responses["right"].fillna(False).astype(bool)
    return responses[["condition", "row_id", "prompt"]].assign(held=passed)


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, condition: str) -> dict[str, Any]:
    """Shares of two `held` under a condition, and their difference with its paired interval; {} for none."""
    sides = [side[side["condition"] == condition].set_index("row_id")["held"].sort_index() for side in (ours, theirs)]
    if not all(len(side) for side in sides):
        return {}
    numbers = dict(zip(("value", "low", "high"), intervals.paired_shares(*sides), strict=True))
    return numbers | {"with": sides[0].mean(), "without": sides[1].mean()}
