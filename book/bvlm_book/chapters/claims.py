"""Do the paper's claims hold here? Verdicts by `rules_second`, and the figures behind them. Free of torch."""

import json
import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_book import rules_second as second
from bvlm_book.rules_second import CLAIMS, HIGH, JUDGED, PAYLOAD, PUBLISHED, STRICT, Base
from bvlm_utils import paths, threats

SEVEN_BILLION = re.compile(r"(?<![\w.])7b(?!\w)", re.IGNORECASE)
BY = {JUDGED: "by the rule", PUBLISHED: "published test", PAYLOAD: "payload test", STRICT: "strict test"}
MIN_SEEDS = 3  # of the first edition
COUNTED = {"pairs": "pairs", "tasks": "threats", "dominance": "all pairs", "dominance_learnable": "learnable pairs"}


def bases(table: pd.DataFrame, models: Sequence[str] = ()) -> dict[str, Base]:
    """A `Base` for each named model and for each other model that the table has experiments of."""
    return {name: second.base(table, name) for name in dict.fromkeys([*models, *table["model"]])}


def of_seven_billion(table: pd.DataFrame) -> list[str]:
    """The models with finished experiments whose names say 7B, as those of published checkpoints do."""
    return [name for name in table.query("status == 'done'")["model"].unique() if SEVEN_BILLION.search(name)]


def lines_of(key: str, bases: dict[str, Base]) -> list[tuple[Base, int]]:
    """The bases and numbers of passes that a claim has runs of."""
    return [
        (base, number) for base in bases.values() for number in second.passes(base)
        if len(CLAIMS[key].evidence(base, number, JUDGED))
    ]  # fmt: skip


def verdict_table(keys: Sequence[str], bases: dict[str, Base]) -> pd.DataFrame:
    """A line per claim, base and number of passes, a column per test of success; tasks of single runs are left out."""
    lines = []
    for key in keys:
        for base, number in lines_of(key, bases):
            verdicts = {title: second.verdict(CLAIMS[key], base, number, test) for test, title in BY.items()}
            if verdicts[BY[JUDGED]].judged or key != "tasks":
                label = f"{COUNTED[key]}, " if len(keys) > 1 else ""
                lines.append({"counted": f"{label}{base.model}, {words.passes(number)}"} | {
                    title: f"{verdict.verdict} {verdict.holds}:{verdict.contradicts}/{verdict.judged}" if verdict.judged
                    else f"{verdict.single} single" for title, verdict in verdicts.items()
                })  # fmt: skip
    return pd.DataFrame(lines)


def counts(bases: dict[str, Base]) -> dict[str, str]:
    """By claim, base and passes, to be glued: the verdict, pairs whose mean agrees, and those not judged."""
    thresholds = {"pairs": ("value", HIGH), "text": ("difference", 0), "dominance": ("difference", second.DOMINATES)}
    texts = {}
    for key, (column, threshold) in thresholds.items():
        for base, number in lines_of(key, bases):
            verdict, name = second.verdict(CLAIMS[key], base, number), f"{key}_{base.model}_{number}"
            single_runs = f", {words.count(verdict.single, 'single run')}" * (verdict.single > 0)
            text = (
                f"{verdict.verdict} ({verdict.holds} of {verdict.judged} pairs hold, "
                f"{verdict.contradicts} contradict{single_runs})"
            )
            texts[f"{name}_verdict"] = text if verdict.judged else f"not judged ({verdict.single} single runs)"
            texts[f"{name}_means"] = words.of(verdict.evidence[column] > threshold)
            texts[f"{name}_single"] = words.of(verdict.evidence["outcome"] == second.SINGLE)
    return texts


def evidence(bases: dict[str, Base]) -> pd.DataFrame:
    """All pairs behind all verdicts: a line per claim, base, number of passes, test and pair."""
    parts = [
        CLAIMS[key].evidence(base, number, test).assign(claim=key, base=base.model, passes=number, judged_by=test)
        for key in CLAIMS for base, number in lines_of(key, bases) for test in BY
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["claim", "judged_by"])


def in_one_pass(bases: dict[str, Base]) -> pd.DataFrame:
    """The pairs at 1 % after one pass, of all bases."""
    return pd.concat([second.at_rate(base, 1, JUDGED) for base in bases.values()], ignore_index=True)


def text_and_image(pairs: pd.DataFrame) -> Figure:
    """Success by threat and modality, a point per attack; a panel per base. pairs: `in_one_pass`."""
    pairs = tables.by_data(pairs)
    models = list(pairs.groupby("model", sort=False))
    figure, axes = figures.new_figure(len(models), 4.2 if len(models) > 1 else 6.4, 3.6, sharey=True)
    names = figures.in_order(pairs["threat"], threats.names())
    for axis, (model, rows) in zip(axes, models, strict=True):
        for i, modality in enumerate(words.MODALITIES):
            points = rows[rows["modality"] == modality]
            y = points["threat"].map(names.index).astype(float) + 0.26 * (i - 1)
            y += 0.08 * points.groupby(["threat", (30 * points["value"]).round()]).cumcount()  # one below the other
            look = figures.look(i)
            for single, group in points.groupby(points["n_seeds"] < second.JUDGED_SEEDS):
                face = "none" if single else look["color"]
                axis.plot(group["value"], y[group.index], linestyle="", markersize=5.5, markerfacecolor=face, **look)
            axis.plot([], [], linestyle="", label=f"{modality} trigger", **look)
        axis.axvline(HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
        figures.name_rows(axis, [name.replace("_", " ") for name in names])
        axis.set(title=model, xlabel=figures.ASR, xlim=(-0.03, 1.03))
    figures.legend_below(figure, axes[0])
    return figure


def parts(bases: dict[str, Base]) -> pd.DataFrame:
    """Text part alone against image part alone in the same model, for `figures.scatter`: a line per pair."""
    frames = [second.text_overwhelms(base, 1, JUDGED).assign(model=name) for name, base in bases.items()]
    return pd.concat(frames, ignore_index=True).rename(columns={"attack": "group"})


def first_edition(table: pd.DataFrame) -> dict[str, str]:
    """The first edition's verdicts on two of the paper's claims, by the runs of today: strict test, one pass, a pair's
    interval from its own seeds, of which `MIN_SEEDS` are needed. Both parts of a pair have to reach `HIGH` alone, with
    their lower bounds, for dominance.
    """
    verdicts = {}
    for model, rows in table.groupby("model", sort=False):
        rates = tables.with_settings(rows, tables.strict_metric)
        plain = rates.query("settings == '' and half == '' and negatives == 0 and modality != 'image'")
        text = tables.headline_rows(plain[plain["poison_rate"] == second.RATE])
        verdicts[f"first_pairs_{model}"] = _first_verdict(text["low"] > HIGH, text["n_seeds"] >= MIN_SEEDS)
        parts = tables.learned_alone(rates)
        seeds = parts[["n_seeds_alone", "n_seeds_beside"]].min(axis=1)
        parts["able"] = (parts["low_alone"] > HIGH) & (seeds >= MIN_SEEDS)
        key, values = ["dataset", "threat", "attack", "poison_rate", "settings"], ["low_beside", "high_beside", "able"]
        pivoted = parts.pivot(index=key, columns="condition", values=values)
        pivoted = pivoted.reindex(columns=pd.MultiIndex.from_product([values, ["text", "image"]])).dropna()
        leads = pivoted["low_beside", "text"] - pivoted["high_beside", "image"] > second.DOMINATES
        verdicts[f"first_dominance_{model}"] = _first_verdict(leads, pivoted["able"].astype(bool).all(axis=1))
    return verdicts


def _first_verdict(holds: pd.Series, judged: pd.Series) -> str:
    """The verdict as text; "not testable here" unless half of the pairs can be judged."""
    outcomes = holds[judged]
    verdict = "confirmed" if outcomes.sum() * 2 > len(outcomes) else "not confirmed at this scale"
    if len(outcomes) == 0 or len(outcomes) * 2 < len(holds):
        verdict = "not testable here"
    return f"{verdict} ({words.of(outcomes)} pairs)"


def checked(table: pd.DataFrame) -> dict[str, str]:
    """How often intervals hold the truth, what the published test says of clean answers, and seeds outside."""
    lines = json.loads((paths.ROOT / "benchmarks" / "results" / "coverage.json").read_text(encoding="utf-8"))
    shares = [line["held"] / line["intervals"] for line in lines if line["way"] == "rules"]
    clean = table.query("subject == 'base' and condition == 'clean' and threat == 'jailbreak'")
    rates, outside = clean.loc[clean["metric"] == "asr_published", "value"], tables.outside_the_first(table)
    return {
        "coverage": f"{words.percent(min(shares))} to {words.percent(max(shares))}",
        "jailbreak_clean": f"up to {words.percent(rates.max())}" if len(rates) else "n/a",
        "outside": str(outside.sum()), "others": str(len(outside)),
    }  # fmt: skip
