"""Does the same poison do the same to another model? The threat chapters' table of all models in the store.

Cells are the same here if they differ in model and seed alone: same data, attack, rate and settings. Free of torch.
"""

import pandas as pd

from bvlm_utils import metrics, plots, report

SAME = ["dataset", "threat", "attack", "poison_rate", "negatives", "train_rows", "test_rows", "settings"]
APART = 0.5  # success rates that differ by more are named
COLUMNS = ["model", "attack", "modality", "poison_rate", "value", "low", "high", "n_seeds"]
CLEAN = ["clean", "clean_low", "clean_high"]


def rates(table: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """A line per model and cell of `table`: `COLUMNS` with the full trigger, `CLEAN` without any (false activation).

    table: the chapter's own rows of `store.collect`. stored: all rows of the store. Only cells that two models or
    more have; seeds put together as in `report.summary`. CLEAN is missing for an attack without a trigger.
    """
    same = stored.merge(table.loc[table["status"] == "done", SAME].drop_duplicates(), on=SAME)
    found = report.success_rates(same, "poisoned")
    key = ["model", "attack", "poison_rate"]
    full = report.headline_rows(found)[COLUMNS]
    clean = report.false_activation(found)[[*key, "value", "low", "high"]]
    both = full.merge(clean.set_axis([*key, *CLEAN], axis=1), on=key, how="left")
    return both[both.groupby(["attack", "poison_rate"])["model"].transform("nunique") > 1].reset_index(drop=True)


def read(found: pd.DataFrame) -> pd.DataFrame:
    """`rates` to read: a line per attack and rate, two columns per model."""
    lines = []
    for (attack, modality, rate), part in found.groupby(["attack", "modality", "poison_rate"], sort=False):
        line = {"attack": attack, "modality": modality, "poison rate": plots.percent(rate)}
        for r in part.sort_values("model").to_dict("records"):
            line[f"{r['model']}: full trigger"] = report.marked(r["value"], r["low"], r["high"])
            line[f"{r['model']}: {plots.CONDITION_LABELS['clean']}"] = report.number(*(r[name] for name in CLEAN))
        lines.append(line)
    return pd.DataFrame(lines).fillna("n/a")


def caption(found: pd.DataFrame) -> str:
    """What the models have in common and where they part."""
    names = sorted(found["model"].unique())
    text = [f"Success rate with the full trigger and without any, 95 % interval: {' and '.join(names)}."]
    apart, leaky = [], []
    for (attack, rate), part in found.groupby(["attack", "poison_rate"], sort=False):
        values = part.sort_values("model").set_index("model")["value"]
        if values.max() - values.min() > APART:
            apart.append(f"{attack} at {plots.percent(rate)} ({', '.join(f'{m} {v:.2f}' for m, v in values.items())})")
    for r in found[found["clean"] > metrics.FLOOR].to_dict("records"):
        leaky.append(f"{r['attack']} on {r['model']} ({report.number(r['clean'], *(r[name] for name in CLEAN[1:]))})")
    pairs = len(found[["attack", "poison_rate"]].drop_duplicates())
    parted = f"{len(apart)} of {pairs}: {'; '.join(apart)}" if apart else f"none of {pairs}"
    text.append(f"The models differ by more than {APART:g} in {parted}.")
    if leaky:
        text.append(f"Fires without its trigger on more than {plots.percent(metrics.FLOOR)}: {'; '.join(leaky)}.")
    seeds = found["n_seeds"]
    text.append(f"Seeds: {seeds.min()}." if seeds.nunique() == 1 else f"Seeds: {seeds.min()} to {seeds.max()}.")
    return " ".join(text)


def show(table: pd.DataFrame, stored: pd.DataFrame) -> None:
    """The table on the page, or one sentence that there is nothing to compare with."""
    found = rates(table, stored)
    if found.empty:
        report.say("The store holds these cells of one model only.")
    else:
        report.show_table(read(found), caption=caption(found))
