"""The chapter on the small patch: is it seen, and is it learned, beside other triggers on the same rows."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_utils.store.table import FIRES

COIN = 0.5  # what a probe that sees nothing gets right


def triggers(runs: Mapping[str, pd.DataFrame], skills: pd.DataFrame) -> pd.DataFrame:
    """A line per trigger: success with it, without it, of the control; is it `seen`? skills: of `cards.skills`."""
    probes, lines = skills.set_index("name"), []
    for trigger, table in runs.items():
        rates = tables.success_rates(table)
        full = tables.headline_rows(rates).set_index("subject")
        clean = rates.query("condition == 'clean' and subject == 'poisoned'")["value"]
        if len(clean):  # else left out, for a reason that its record has
            name = f"probe: {table['attack'].iloc[0]}"
            usual = "attack.patch_size" not in table or table["attack.patch_size"].isna().all()
            probe = probes.loc[name] if name in probes.index and usual else {}
            line = {"trigger": trigger, "without": clean.iloc[0], "control": full.loc["control", "value"]}
            line |= full.loc["poisoned", ["value", "low", "high", "n_seeds"]].to_dict()
            lines.append(line | {f"seen{end}": probe.get(end[1:] or "value") for end in ("", "_low", "_high")})
    return pd.DataFrame(lines)


def draw(lines: pd.DataFrame) -> Figure:
    """Success with each trigger, and how well a linear probe sees it. lines: `triggers`."""
    kinds = {"seen": "seen: probe accuracy", "value": "learned: ASR"}
    figure, axis = figures.beside(lines, list(lines["trigger"]), kinds, 0.4 * len(lines) + 1.2)
    axis.axvline(COIN, color=figures.look(0)["color"], linestyle=":", linewidth=1)
    return figure


def numbers(lines: pd.DataFrame) -> dict[str, str]:
    """To glue: what a probe sees of the small patch (first line), and success with it and with the second."""
    small, large = lines.iloc[0], lines.iloc[1]
    seen = "not probed" if words.is_missing(small["seen"]) else "seen" if small["seen_low"] > COIN else "not seen"
    return {
        "verdict": f"{seen} and {'learned' if small['value'] > FIRES else 'not learned'}",
        "seen": words.interval(small, "seen"), "small": words.interval(small), "large": words.interval(large),
        "each": "; ".join(f"{line['trigger']} {words.interval(line)}" for line in lines.to_dict("records")),
        "runs": words.count(small["n_seeds"], "run"),
        "without": words.number(lines["without"].max()), "control": words.number(lines["control"].max()),
    }  # fmt: skip


def elsewhere(small: pd.DataFrame, stored: pd.DataFrame, skills: pd.DataFrame) -> str:
    """For how many threats the other models learn the same small patch, at the same rate, and how well their probes
    see it. skills: of `cards.skills`.
    """
    first, sentences = small.iloc[0], []
    fields = {name: first[name] for name in ("attack", "poison_rate", "settings", "train_rows", "negatives")}
    rows = stored[(stored[list(fields)] == pd.Series(fields)).all(axis=1) & (stored["model"] != first["model"])]
    for model, cells in rows.groupby("model", sort=False):
        rates = tables.headline_rows(tables.success_rates(cells, "poisoned"))
        works = rates[rates["value"] > FIRES].drop_duplicates("threat").to_dict("records")
        details = ", ".join(f"{words.threat(row)} {words.interval(row)}" for row in works)
        count = f"{len(works)} of {rates['threat'].nunique()} threats" + (f" ({details})" if details else "")
        probe = skills.loc[(skills["model"] == model) & (skills["name"] == f"probe: {first['attack']}"), "value"]
        seen = f" (probe {words.number(probe.iloc[0])})" if len(probe) else ""
        sentences.append(f"{model}{seen} learns the same small patch for {count}, at the same poison rate.")
    return " ".join(sentences) or "No other model was tuned on it in this store."
