"""What defences find: poisoned rows, suspicious inputs, adapters with a backdoor. Free of torch."""

import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, words
from bvlm_book.chapters import defences as chapter
from bvlm_book.chapters.defences import spectra

WELL = 0.5  # a ranking of rows that nowhere finds as many poisoned ones is not worth a sentence
WIDE = "phrase_everywhere"  # a skill that changes every answer
CAPTIONS = (
    "Target inversion looks for a sentence that the model ends, once it has begun it, whatever the input is: AUROC of "
    "backdoored adapters against each kind without a backdoor, and its number.",
    "Weights: a regression on the spectrum of each layer's update, fitted to many adapters and asked about an attack, "
    "a threat or a model that it has not seen. AUROC against each kind without a backdoor, and its number.",
    "States: a linear probe on half of the layers at an input's last token, fitted to a base's backdoored adapters "
    "without one attack or threat, and asked about that. Mean AUROC on inputs with and without a trigger; what it "
    "finds in the clean-tuned model is how a trigger looks. The placebo's labels were dealt out at random.",
)
# Of an input: title -> measure, subject, with the trigger there?
SUSPECTED = {
    "AUROC": ("auroc", "poisoned", None),
    "of the clean-tuned model": ("auroc", "control", None),
    "alarms, clean": ("alarms", "poisoned", False),
    "alarms, triggered": ("alarms", "poisoned", True),
    "changed, clean": ("changed", "poisoned", False),
    "changed, triggered": ("changed", "poisoned", True),
}


def family(line: dict[str, Any]) -> str:
    """Whose score a line is: "backdoored", "no backdoor learnt", or a family of negatives."""
    control = line["subject"] == "control"
    if line["decoy"] and not control:
        return line["decoy"]
    if control or not line["poison_rate"]:
        return _of_skill(line) if line["skill"] else "clean-tuned"
    return "backdoored" if line["works"] is True else "no backdoor learnt"


def _of_skill(line: dict[str, Any]) -> str:
    if line["skill"] == WIDE:
        return "a phrase after every answer"
    return "skill, other training" if chapter.apart(line["settings"]) or line["seed"] else "skill only"


def adapter_scores(results: pd.DataFrame) -> pd.DataFrame:
    """A line per detector (`named`, `placebo`), model and adapter (`own`): its score and its `family`."""
    rows = results.query("moment == 'detect' and metric == 'score'").dropna(subset=["value"])
    rows = rows.assign(settings=rows["settings"].fillna(""), seed=rows["seed"].fillna(0))
    rows = rows.assign(family=[family(line) for line in rows.to_dict("records")])
    itself = (rows["subject"] == "poisoned") & (rows["poison_rate"] > 0)  # without poison a model is its own control
    rows["own"] = rows["run_id"].where(itself, rows["control"])
    key = ["named", "placebo", "model", "family", "own"]
    backdoored = rows["family"] == "backdoored"
    means = rows[backdoored].groupby(key, sort=False, as_index=False)["value"].mean()  # over its seeds
    others = rows[~backdoored & (rows["family"] != "no backdoor learnt")].drop_duplicates(key)
    return pd.concat([means, others[[*key, "value"]]], ignore_index=True)


def adapters_told_apart(results: pd.DataFrame) -> pd.DataFrame:
    """AUROC of each adapter detector: backdoored adapters against each family of adapters without a backdoor."""
    lines = []
    for (name, placebo, model), group in adapter_scores(results).groupby(["named", "placebo", "model"], sort=False):
        positive = group.loc[group["family"] == "backdoored", "value"]
        line = {"detector": name + " (placebo)" * placebo, "model": model, "backdoored": len(positive)}
        for kind, negative in group[group["family"] != "backdoored"].groupby("family") if len(positive) else ():
            area = spectra.auroc(positive, negative["value"])
            line[f"against {kind}"] = f"{words.number(area)} ({len(negative)})"
        lines.append(line)
    return pd.DataFrame(lines)


def roc(results: pd.DataFrame, population: pd.DataFrame) -> pd.DataFrame:
    """Curves of `detector` against each `kind` of adapters without a backdoor: shares of `false` and `true` alarms.

    Scores are centred within each model first. population: `spectra.read`.
    """
    scores = adapter_scores(results)
    sides = [scores[~scores["placebo"].astype(bool)].rename(columns={"named": "detector", "family": "kind"})]
    if len(population):
        weights = population.assign(value=spectra.scores(population, "threat"), detector="weights, another threat")
        kinds = weights[spectra.KIND].mask(weights[spectra.TRUTH] == 1, "backdoored")
        sides.append(weights.assign(kind=kinds).dropna(subset=["value"]))
    lines = []
    for detector, group in pd.concat(sides).groupby("detector", sort=False):
        values = group["value"] - group.groupby("model")["value"].transform("median")
        positive = values[group["kind"] == "backdoored"].to_numpy()
        for kind, negative in values[group["kind"] != "backdoored"].groupby(group["kind"]):
            for limit in [np.inf, *np.unique([*positive, *negative])[::-1]]:
                shares = [float((side >= limit).mean()) for side in (negative.to_numpy(), positive)]
                lines.append((detector, kind, *shares))
    return pd.DataFrame(lines, columns=["detector", "kind", "false", "true"])


def roc_figure(curves: pd.DataFrame, audited: pd.DataFrame) -> Figure:
    """A panel for each detector, a line for each kind without a backdoor; grey: the audit, which knows the triggers.

    audited: `chapters.audit.roc`.
    """
    names, kinds = list(curves["detector"].unique()), sorted(curves["kind"].unique())
    figure, axes = figures.new_figure(len(names), 7.4, 3.9, sharey=not figures.is_narrow())
    known = audited[audited["look"] == "once"].sort_values("false")
    for axis, name in zip(axes, names, strict=True):
        axis.plot(known["false"], known["true"], color="#8A8A8A", linestyle="--", label="audit, triggers known")
        for number, kind in enumerate(kinds):
            line = curves[(curves["detector"] == name) & (curves["kind"] == kind)]
            axis.plot(line["false"], line["true"], label=kind, **(figures.look(number) | {"marker": ""}))
        axis.set(title=name, xlabel="false alarms", ylabel="true alarms")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=1 if figures.is_narrow() else 4
    )
    return figure


def found_by_threat(results: pd.DataFrame) -> str:
    """In words: where each ranking of rows finds most and fewest poisoned ones, at 5 % false alarms."""
    rows = chapter.measured(results).query("moment == 'data' and named == defence")
    shares = chapter.numbers(rows[~rows["placebo"].astype(bool)], "true_positives")
    texts = []
    for name, group in shares.groupby("named", sort=False):
        means = group.groupby(group["threat"].str.replace("_", " "))["value"].mean()
        if means.max() >= WELL:
            ends = [f"{words.number(means[threat])} ({threat})" for threat in (means.idxmin(), means.idxmax())]
            texts.append(f"{name} {' to '.join(ends)}")
    return f"Found, by threat: {'; '.join(texts)}." if texts else ""


def suspected(results: pd.DataFrame) -> pd.DataFrame:
    """How defences at inference look at inputs, means over experiments: what they suspect, and how much they change."""
    rows = chapter.measured(results).query("moment == 'inference' and named == defence")
    if rows.empty:
        return pd.DataFrame()
    means = chapter.over_cells(rows, SUSPECTED)
    return pd.DataFrame(
        {"defence": means["named"]}
        | {title: means[title].map(words.number) for title in SUSPECTED}
        | {"experiments": means["cells"].map("{:.0f}".format)}
    )


def numbers(results: pd.DataFrame) -> dict[str, str]:
    """To be glued: how many image tokens CleanSight masks of a triggered input, and how many words ONION leaves out."""
    rows = chapter.measured(results)
    rows = rows[chapter.as_declared(rows) & ~rows["placebo"].astype(bool)]
    changed = chapter.numbers(rows, "changed", triggered=True).groupby("defence")["value"].mean()
    return {f"{name}_changes": words.number(changed.get(name)) for name in ("cleansight", "onion")}


def at_all(results: pd.DataFrame) -> pd.DataFrame:
    """A line per experiment and defence that says whether there is poison at all: of its rows (`poisoned`), and of the
    same rows without poison (`control`).
    """
    rows = chapter.measured(results).query("metric == 'at_all' and named == defence")
    both = rows.pivot_table(index=["named", "run_id"], columns="subject", values="value")
    return both.reindex(columns=["poisoned", "control"]).dropna().reset_index()


def at_all_table(results: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for name, pairs in at_all(results).groupby("named", sort=False):
        area = spectra.auroc(pairs["poisoned"], pairs["control"])
        line = {"defence": name, "poisoned rows": words.number(pairs["poisoned"].mean())}
        line |= {"the same rows, clean": words.number(pairs["control"].mean()), "AUROC": words.number(area)}
        lines.append(line | {"larger with poison": words.of(pairs["poisoned"] > pairs["control"])})
    return pd.DataFrame(lines)


def losses(results: pd.DataFrame) -> pd.DataFrame:
    """The mean loss of poisoned and of clean rows (columns: threat, rows) after so many steps of training on them
    (lines), over the experiments that were read at every step; before the first step it is the base's.
    """
    rows = chapter.measured(results).query("metric == 'mean_score' and defence in ['base-likelihood', 'early-loss']")
    rows = rows[~rows["placebo"].astype(bool)]
    steps = [json.loads(params).get("steps", 0) for params in rows["params"]]
    sign = rows["defence"].map({"base-likelihood": 1, "early-loss": -1})  # whose score is minus the loss
    rows = rows.assign(step=steps, loss=rows["value"] * sign.astype(float))
    read = rows.groupby("run_id")["step"].transform("nunique")
    rows = rows[read == read.max()] if len(rows) and read.max() > 1 else rows[:0]
    return rows.pivot_table(index="step", columns=["threat", "condition"], values="loss")


def losses_title(curves: pd.DataFrame) -> str:
    below = [
        bool((curves[threat]["poisoned rows"] < curves[threat]["clean rows"]).any())
        for threat in (curves.columns.unique("threat") if len(curves) else ())
    ]
    return f"Poisoned rows' loss falls below that of clean rows on {words.of(pd.Series(below, dtype=bool))} threats."


def loss_figure(curves: pd.DataFrame) -> Figure:
    """A panel for each threat, a line for poisoned and one for clean rows."""
    threats = list(curves.columns.unique("threat"))
    figure, axes = figures.new_figure(len(threats), 7.4, 2.6, sharey=not figures.is_narrow())
    for axis, threat in zip(axes, threats, strict=True):
        for number, rows in enumerate(curves[threat]):
            axis.plot(curves[threat][rows], label=rows, **figures.look(number))
        axis.set(title=threat.replace("_", " "), xlabel="steps of training", ylabel="loss (nats)")
        axis.legend()
    return figure
