"""What do single numbers of a threat chapter hide? Sentences for those chapters, beside their figures. No torch."""

from collections.abc import Mapping

import pandas as pd

from bvlm_utils import plots, report


def misread(table: pd.DataFrame) -> str:
    """Which triggers make even the clean-tuned model answer wrongly; for success that asks for the right answer.

    table: of `store.collect`; the highest poison rate is read.
    """
    right = report.summary(table, "right", "control")
    if right.empty:
        return "How often the clean-tuned model is right was not measured for these cells."
    right = right[right["poison_rate"] == right["poison_rate"].max()]
    full = report.headline_rows(right)
    wrong = full[full["value"] < report.FIRES]
    clean = right[right["condition"] == "clean"]["value"]
    if wrong.empty or clean.empty:
        return "The clean-tuned model is right on at least half of the inputs under every trigger."
    said = [_conditions(right[right["attack"] == attack]) for attack in wrong["attack"]]
    return (
        f"Without a trigger, the clean-tuned model is right on {report.number(clean.min())} of the inputs. With one it "
        f"is right on fewer than half under {len(said)} of {len(full)} triggers: {'; '.join(said)}. Success cannot be "
        "expected to come up to that of the others there, since it asks for the right answer."
    )


def _conditions(rows: pd.DataFrame) -> str:
    """ "MABA (0.37 text only, 0.70 image only, 0.26 both)"."""
    triggered = rows[rows["condition"] != "clean"]
    found = {r["condition"]: report.number(r["value"]) for r in triggered.to_dict("records")}
    said = [f"{found[name]} {plots.CONDITION_LABELS[name]}" for name in plots.CONDITIONS if name in found]
    return f"{rows['attack'].iloc[0]} ({', '.join(said)})"


def without_the_trigger(table: pd.DataFrame) -> list[str]:
    """In Markdown: which poisoned models give the attacker's answer without the trigger about as often as with it.

    About as often: the two intervals overlap. More often than by chance: the lower bound without the trigger is above
    the clean-tuned model's upper one. The highest poison rate is read.
    """
    rates = report.success_rates(table)
    rates = rates[rates["poison_rate"] == rates["poison_rate"].max()]
    full = report.headline_rows(rates[rates["subject"] == "poisoned"]).set_index("attack")
    clean = report.false_activation(rates)
    ours, control = (clean[clean["subject"] == who].set_index("attack") for who in ("poisoned", "control"))
    said = []
    for attack in (name for name in full.index if name in ours.index and name in control.index):
        without, triggered = ours.loc[attack], full.loc[attack]
        if without["low"] > control.loc[attack, "high"] and without["high"] >= triggered["low"]:
            numbers = (_written(line) for line in (triggered, without))
            said.append(f"{attack} ({' with the trigger, '.join(numbers)} without it)")
    if not said:
        return []
    return [
        f"**{' and '.join(said)}: what was learnt here is the answer rather than the trigger.** The intervals with and "
        "without the trigger overlap, and the clean-tuned model gives that answer less often than either."
    ]


def halves(rates: pd.DataFrame) -> list[str]:
    """Which half of a bimodal trigger fires alone, in Markdown. rates: `report.success_rates` of one cell."""
    ours = rates[(rates["subject"] == "poisoned") & (rates["modality"] == "bimodal")].set_index("condition")
    if not {"text", "image", "both"} <= set(ours.index):
        return []
    text, image, both = (ours.loc[name] for name in ("text", "image", "both"))
    numbers = f"Text half alone: {_written(text)}; image half alone: {_written(image)}; both: {_written(both)}."
    if (text["value"] > report.FIRES) == (image["value"] > report.FIRES):
        return [numbers]
    works, idle = ("text", "image") if text["value"] > report.FIRES else ("image", "text")
    return [f"**The {works} half alone sets this backdoor off, the {idle} half alone does not.** {numbers}"]


def small_patch(skills: pd.DataFrame, runs: Mapping[str, pd.DataFrame], stored: pd.DataFrame) -> str:
    """Is the small patch seen, learnt, and learnt by another model? In Markdown, for the chapter on it.

    skills: `cards.skills` of the chapter's model. runs: what a trigger is called -> the tidy table of its cell, the
    small patch first, the larger one second. stored: of `store.collect`, for the other models.
    """
    probe = skills[skills["name"] == "probe: BadNets-I"]
    (_, small), (larger, large) = list(runs.items())[:2]
    first, second = _headline(small), _headline(large)
    uses = "and fine-tuning learns it" if first["value"] > report.FIRES else "and fine-tuning does not learn it"
    return (
        f"**{_seen(probe)}, {uses}: success {_written(first)}. With {larger} it is {_written(second)}.** "
        + _elsewhere(small, stored)
    )


def _seen(probe: pd.DataFrame) -> str:
    """What a linear probe says, in the words of a half sentence. probe: one line of `cards.skills`, or none."""
    if probe.empty:
        return "Whether a linear probe finds the small patch was not measured"
    line = probe.iloc[0]
    finds = "finds" if line["low"] > 0.5 else "does not find"
    return f"A linear probe {finds} the small patch in the image tokens (accuracy {_written(line)}; a coin gives 0.5)"


def _written(line: pd.Series) -> str:
    return report.number(*line[["value", "low", "high"]])


def _headline(run: pd.DataFrame) -> pd.Series:
    return report.headline_rows(report.success_rates(run, "poisoned")).iloc[0]


def _elsewhere(small: pd.DataFrame, stored: pd.DataFrame) -> str:
    """For how many threats the other models learn the same small patch, at the same rate."""
    first, said = small.iloc[0], []
    same = {name: first[name] for name in ("attack", "poison_rate", "settings", "train_rows", "negatives")}
    rows = stored[(stored[list(same)] == pd.Series(same)).all(axis=1) & (stored["model"] != first["model"])]
    for model, part in rows.groupby("model", sort=False):
        rates = report.headline_rows(report.success_rates(part, "poisoned"))
        fires = rates[rates["value"] > report.FIRES]
        which = [f"{r['threat'].replace('_', ' ')} {report.number(r['value'], r['low'], r['high'])}"
                 for r in fires.to_dict("records")]  # fmt: skip
        counted = f"for {len(fires)} of {rates['threat'].nunique()} threats" + (
            f" ({', '.join(which)})" if which else ""
        )
        said.append(f"{model} learns the same small patch {counted}, at the same rate.")
    return " ".join(said) or "No other model was tuned on it in this store."
