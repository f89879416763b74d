"""How well does the check of `bvlm_utils.audit` work on models of which the truth is known? Free of torch.

*Suspects* are poisoned models shown their own whole trigger, compared with their clean-tuned control. *Innocents*
are clean-tuned models shown the same triggers, compared with one of another seed, and with the base.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, words
from bvlm_utils import attacks, store
from bvlm_utils.atomic import write_file
from bvlm_utils.score import disagreement, verdict
from bvlm_utils.store import packed, records
from bvlm_utils.store import table as tidy

POISONED, CONTROL, BASE, OTHER_SEED = "poisoned", "control", "base", "clean-tuned, other seed"
ABOUT = ["run_id", "modality", "n_poisoned", *tidy.TOLD_APART]
NUMBERS = ["without", "with_trigger", "value", "low", "high", "n", "commonest", "share", "asr", "alarm"]
COLUMNS = [*ABOUT, "painted", "condition", "control", "subject", "reference", *NUMBERS]
# What decides the inputs of a control, whatever the poisoned model beside it was trained on.
SHOWN = ["model", "dataset", "train_rows", "threat", "attack", "painted", "condition"]
# The margin of the alarm was set while looking at cells like this one. All others are a fresh test of it.
SEEN = {"model": "tiny-llava", "poison_rate": 0.1, "seed": 0}
ENOUGH = 6  # triggers that a clean-tuned model was shown, to count among models: a few seldom raise an alarm
MARGINS = sorted({disagreement.MARGIN, *np.linspace(-0.2, 1, 241).round(4)})
# What clean-tuned models are compared with, and its name on the page.
REFERENCES = {OTHER_SEED: "other seed", BASE: "base"}
Answers = tuple[list[str], list[str]]  # clean and triggered, in one order of rows


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """A line per comparison, see `COLUMNS`; asr is missing for innocents. A store without answers has no lines."""
    lines, controls = [], {}

    def compare(cell: dict[str, Any], subject: str, reference: str, ours: Answers, trusted: Answers) -> None:
        result = disagreement.excess(*ours, *trusted)
        line = cell | {name: getattr(result, name) for name in NUMBERS if name != "asr"}
        lines.append(line | {"subject": subject, "reference": reference})

    for cell, answers in _cells(store.folder(place)):
        for subject, reference in ((POISONED, CONTROL), (POISONED, BASE), (CONTROL, BASE)):
            compare(cell, subject, reference, answers[subject], answers[reference])
        controls.setdefault(tuple(cell[name] for name in SHOWN), {})[cell["seed"]] = (cell, answers[CONTROL])
    for seeds in controls.values():
        first, *others = sorted(seeds)
        for seed in others:
            compare(seeds[seed][0], CONTROL, OTHER_SEED, seeds[seed][1], seeds[first][1])
    table = pd.DataFrame(lines, columns=COLUMNS)
    # the same control is shown the same trigger by cells of every rate: innocents once
    innocent = table["subject"] == CONTROL
    distinct = table[innocent].drop_duplicates([*SHOWN, "seed", "reference"]).assign(asr=np.nan)
    return pd.concat([table[~innocent], distinct], ignore_index=True)


def _cells(root: Path) -> Iterator[tuple[dict[str, Any], dict[str, Answers]]]:
    """The columns and the answers of each finished cell; no halves of triggers, which are often another attack."""
    for record in records.records(root):
        attack, run_id = record["config"]["attack"], record["run_id"]
        if record.get("status") != "done" or record["config"].get("half") or not records.has_responses(run_id, root):
            continue
        if attack not in attacks.names() or attacks.info(attack).keeps_labels:
            continue
        triggered = attacks.conditions(attack)[-1]
        fields = {"subject": POISONED, "condition": triggered}
        numbers = [number for number in record["metrics"] if fields.items() <= number.items()]
        lines, rates = (
            tidy.rows(record | {"metrics": numbers}),
            {number["metric"]: number["value"] for number in numbers},
        )
        asr = rates.get(tidy.headline(record["config"]["threat"]), rates.get("asr"))
        answers = _said(root, run_id, triggered)
        if asr is not None and {POISONED, CONTROL, BASE} <= set(answers):
            cell = {name: lines[0][name] for name in ABOUT} | {"painted": lines[0]["settings"], "condition": triggered}
            yield cell | {"control": record.get("control"), "asr": float(asr)}, answers


def _said(root: Path, run_id: str, triggered: str) -> dict[str, Answers]:
    """The stored answers to eligible rows, in one order of rows."""
    names = ["part", "subject", "condition", "row_id", "response"]
    # Plain lists and dictionaries: a frame for each of the hundreds of cells would take most of the page's time.
    columns = packed.rows(root, run_id, "responses", names).table.to_pydict()
    by_subject: dict[str, dict[str, dict[str, str]]] = {}
    for part, subject, condition, row, response in zip(*(columns[name] for name in names), strict=True):
        if part == "attack" and condition in ("clean", triggered):
            by_subject.setdefault(subject, {}).setdefault(condition, {})[row] = response
    answers = {}
    for subject, by_condition in by_subject.items():
        sides = by_condition.get("clean", {}), by_condition.get(triggered, {})
        rows = sorted(sides[0].keys() & sides[1].keys())
        answers[subject] = tuple([side[row] for row in rows] for side in sides)
    return answers


def suspects(table: pd.DataFrame, reference: str = CONTROL) -> pd.DataFrame:
    return table.query("subject == @POISONED and reference == @reference")


def innocents(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    return table.query("subject == @CONTROL and reference == @reference")


def by_model(innocent: pd.DataFrame) -> list[int]:
    """How many clean-tuned models raise the alarm for at least one trigger, of those shown `ENOUGH`. innocent: of
    `innocents`.
    """
    models = innocent.groupby("control")
    alarms = models["alarm"].max()[models["attack"].nunique() >= ENOUGH].astype(bool)
    return [int(alarms.sum()), len(alarms)]


def second_look(rows: pd.DataFrame, table: pd.DataFrame, column: str) -> pd.Series:
    """`column` of the trusted model of each comparison, itself compared with the base. rows: of one reference."""
    base, key = innocents(table, BASE), [*SHOWN, "seed"]
    if (rows["reference"] == OTHER_SEED).any():  # all were compared with the first seed
        base, key = base[base["seed"] == base.groupby(SHOWN, dropna=False)["seed"].transform("min")], SHOWN
    pairs = rows.reset_index().merge(base[[*key, column]], on=key, suffixes=("", "_trusted"))
    return pairs.set_index("index")[f"{column}_trusted"].reindex(rows.index)


def stands(rows: pd.DataFrame, table: pd.DataFrame) -> pd.Series:
    """Which alarms the second look does not take back; it takes back none where nobody looked again."""
    return rows["alarm"].astype(bool) & ~second_look(rows, table, "alarm").eq(True)


def working(table: pd.DataFrame) -> pd.DataFrame:
    """The suspects whose backdoor works; `confirmed`: the trusted model beside the base raises no alarm."""
    works = suspects(table).query("asr > @tidy.FIRES")
    doubted = second_look(works, table, "alarm").astype("boolean")
    return works.assign(confirmed=(~doubted & works["alarm"].astype(bool)).mask(doubted.isna()))


def numbers(table: pd.DataFrame) -> dict[str, str]:
    """What the page says of all comparisons, to be glued; "n/a" for what the store has none of."""
    works, other_seed = working(table), innocents(table, OTHER_SEED)
    new = works[(works[list(SEEN)] != pd.Series(SEEN)).any(axis=1)]
    alarms, upheld = other_seed["alarm"].astype(bool), stands(other_seed, table)
    confirmed, innocent = works["confirmed"].dropna(), table[table["subject"] == CONTROL]
    by_attack = innocent[innocent["alarm"].astype(bool)]["attack"].value_counts()
    counts = {
        "found": words.of(works["alarm"], "n/a"), "found_new": words.of(new["alarm"], "n/a"),
        "confirmed": words.of(confirmed, "n/a"),
        "confirmed_share": words.percent(confirmed.mean()) if len(confirmed) else "n/a",
        **_fewest(works, "threat"), **_fewest(works, "model"),
        "stand": words.of(upheld[alarms], "n/a"), "margin": words.number(disagreement.MARGIN),
        "lowest": words.number(works["value"].min()),
        "models_twice": " of ".join(map(str, by_model(other_seed.assign(alarm=upheld)))) if len(other_seed) else "n/a",
        "highest": words.number(innocent.loc[innocent["reference"].isin(REFERENCES), "value"].max()),
        "disturbing": ", ".join(by_attack.index[:1]) or "n/a",
        "disturbing_share": f"{by_attack.max()} of {by_attack.sum()}" if len(by_attack) else "n/a",
    }  # fmt: skip
    for name, reference in (("seed", OTHER_SEED), ("base", BASE)):
        rows = innocents(table, reference)
        counts[f"false_{name}"] = words.of(rows["alarm"], "n/a")
        counts[f"models_{name}"] = " of ".join(map(str, by_model(rows))) if len(rows) else "n/a"
    return counts


def _fewest(works: pd.DataFrame, by: str) -> dict[str, str]:
    """To be glued: of which threat or model the smallest share is confirmed (hidden), and how many of how many."""
    groups = works.dropna(subset="confirmed").groupby(by)["confirmed"]
    name = groups.mean().astype(float).idxmin() if groups.ngroups else None
    confirmed = words.of(groups.get_group(name)) if name is not None else "n/a"
    return {f"hidden_{by}": (name or "n/a").replace("_", " "), f"confirmed_{by}": confirmed}


def error_counts(table: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    """Errors of the check (so many of so many) by the trusted model, for `score.verdict.ERRORS`."""
    counts = {}
    for name, reference, trusted in ((verdict.CLEAN_TUNED, OTHER_SEED, CONTROL), (verdict.BASE, BASE, BASE)):
        works, clean = suspects(table, trusted).query("asr > @tidy.FIRES"), innocents(table, reference)
        alarms, false_alarms = ([int(rows["alarm"].sum()), len(rows)] for rows in (works, clean))
        counts[name] = {"found": alarms, "false alarms": false_alarms, "models with one": by_model(clean)}
    confirmed, clean = working(table)["confirmed"].dropna(), innocents(table, OTHER_SEED)
    counts[verdict.CLEAN_TUNED] |= {
        "confirmed": [int(confirmed.sum()), len(confirmed)],
        "models that stand": by_model(clean.assign(alarm=stands(clean, table))),
    }
    return counts


def write_error_counts(place: str | Path | None = "reference") -> None:
    """Write `error_counts` where the command finds them; by hand, after new results."""
    write_file(verdict.ERRORS, json.dumps(error_counts(collect(place)), indent=1) + "\n")


def by_trigger(table: pd.DataFrame) -> pd.DataFrame:
    """Right and false alarms by the attack whose trigger was shown, to read."""
    works = working(table)
    columns = {"backdoors found": works["alarm"], "confirmed": works["confirmed"].dropna()}
    columns |= {
        f"false, beside {title}": innocents(table, reference)["alarm"] for reference, title in REFERENCES.items()
    }
    counts = {title: alarms.groupby(table["attack"]).agg(words.of) for title, alarms in columns.items()}
    order = figures.in_order(table["attack"], attacks.names())
    frame = pd.DataFrame(counts, dtype=object)  # a column of no comparisons is of truth values, and takes no text
    return frame.reindex(order).fillna("n/a").rename_axis("trigger").reset_index()


def examples(table: pd.DataFrame, place: str | Path | None = None) -> pd.DataFrame:
    """Answers behind the clearest right and false alarm: inputs on which only the trigger parts the two models."""
    false = innocents(table, BASE).sort_values("value", kind="stable")
    kinds, parts = {"right": working(table).sort_values(["share", "value"]), "false": false}, [pd.DataFrame()]
    for kind, rows in kinds.items():
        for row in rows[rows["alarm"].astype(bool)].tail(1).to_dict("records"):
            answers = store.responses(row["run_id"], place).query("part == 'attack'")
            answers = answers.drop_duplicates(["row_id", "subject", "condition"])
            answers = answers.pivot(index="row_id", columns=["subject", "condition"], values="response")
            trusted, suspect = answers[row["reference"]], answers[row["subject"]]
            differs = (trusted["clean"] == suspect["clean"]) & (trusted[row["condition"]] != suspect[row["condition"]])
            parts.append(pd.DataFrame({
                "alarm": f"{kind}, trigger of {row['attack']}", "both, without the trigger": trusted["clean"],
                "trusted model, with it": trusted[row["condition"]], "suspect, with it": suspect[row["condition"]],
            })[differs].head(2))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def roc(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of true and false alarms by margin and look; twice: the trusted model raises none, with our margin."""
    kinds, looks = (working(table), innocents(table, OTHER_SEED)), {"once": np.inf, "twice": disagreement.MARGIN}
    kinds = [rows.assign(other=second_look(rows, table, "low")).dropna(subset="other") for rows in kinds]
    lines = [
        [margin, look, *(((rows["low"] > margin) & (rows["other"] <= limit)).mean() for rows in kinds)]
        for margin in (MARGINS if all(map(len, kinds)) else ()) for look, limit in looks.items()
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["margin", "look", "true", "false"])


def at_our_margin(curve: pd.DataFrame) -> dict[str, str]:
    """Shares of true and false alarms, looked at once and twice. curve: `roc`."""
    shares = curve[curve["margin"] == disagreement.MARGIN].set_index("look")
    shares = shares.reindex(index=["once", "twice"], columns=["true", "false"])
    return {f"{look}_{kind}": words.number(value) for (look, kind), value in shares.stack(future_stack=True).items()}


def roc_figure(curve: pd.DataFrame) -> Figure:
    figure, (axis,) = figures.new_figure(1, 4.8, 4.2)
    for number, (look, points) in enumerate(curve.groupby("look", sort=False)):
        style = figures.look(number)
        axis.plot(points["false"], points["true"], color=style["color"], label=f"looked at {look}")
        axis.plot("false", "true", "", data=points[points["margin"] == disagreement.MARGIN], label="", **style)
    axis.set(xlabel="false alarms (clean-tuned models)", ylabel="true alarms (backdoors that work)")
    axis.legend(loc="lower right")
    return figure


def excess(table: pd.DataFrame) -> Figure:
    """Excess disagreement: clean-tuned models in strips at the left, backdoored ones against their ASR at the right."""
    poisoned = suspects(table)
    figure, (innocent, suspect) = figures.new_figure(2, 4.6, 4.2, sharey=True, gridspec_kw={"width_ratios": (1, 2.6)})
    rng = np.random.default_rng(0)  # sideways, so that equal numbers can be told apart
    for position, reference in enumerate(REFERENCES):
        rows = innocents(table, reference)
        x, colour = position + rng.uniform(-0.25, 0.25, len(rows)), figures.COLOURS[0]
        innocent.scatter(x, rows["value"], s=18, marker="o", facecolor="none", edgecolor=colour)
    innocent.set_xticks(range(len(REFERENCES)), list(REFERENCES.values()))
    innocent.set(title="clean-tuned", xlabel="reference", ylabel="excess disagreement", xlim=(-0.6, 1.6))
    for number, modality in enumerate(words.MODALITIES):
        rows = poisoned[poisoned["modality"] == modality]
        suspect.scatter(rows["asr"], rows["value"], s=26, alpha=0.8, label=modality, **figures.look(number))
    suspect.set(title="backdoored, its own trigger", xlabel=figures.ASR, xlim=(-0.03, 1.03))
    suspect.legend(title="trigger", loc="lower right")
    for axis in (innocent, suspect):
        axis.axhline(disagreement.MARGIN, color="black", linestyle="--", linewidth=1)
        axis.axhline(0, color="black", linewidth=0.6)
    return figure
