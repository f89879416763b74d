"""The experiments behind a number: which they are, in words, and where the leaderboard lists them. Free of torch."""

import html
from urllib.parse import urlencode

import pandas as pd

from bvlm_book import words

# What tells experiments apart, where a table of numbers has the column.
SAME = [
    "run_id", "model", "dataset", "threat", "attack", "poison_rate", "n_poisoned", "negatives", "train_rows", "epochs",
    "half", "seed", "whole",
]  # fmt: skip
# A column -> its name in an address of the leaderboard.
ADDRESS = {"model": "model", "threat": "threat", "attack": "attack", "poison_rate": "rate", "settings": "settings",
           "train_rows": "train_rows", "negatives": "negatives"}  # fmt: skip
LEADERBOARD = "../notebooks/leaderboard.html"  # as seen from every page of the book
NAMED = 3  # more names than these are counted


def experiments(table: pd.DataFrame, lines: pd.DataFrame | None = None) -> pd.DataFrame:
    """The finished experiments of a tidy table, a line each; those that `lines` are about, by columns of `SAME`."""
    finished = table[table["status"] == "done"].drop_duplicates("run_id")
    if lines is None or finished.empty:
        return finished
    if lines.empty:
        return finished.iloc[:0]
    pattern = r"half=\w+, |(, )?half=\w+"  # a trigger's part that was trained alone has a column of its own
    lines = lines[[name for name in (*SAME, "settings") if name in lines and name in finished]].drop_duplicates()
    finished, lines = (
        frame.assign(whole=frame["settings"].fillna("").str.replace(pattern, "", regex=True))
        if "settings" in frame
        else frame
        for frame in (finished, lines)
    )
    columns = [name for name in SAME if name in lines and name in finished]
    return finished.merge(lines[columns].drop_duplicates(), on=columns)


def address(chosen: pd.DataFrame) -> str:
    """What follows # in the leaderboard's address: every value that the experiments have in a column of `ADDRESS`."""
    pairs = ((key, value) for name, key in ADDRESS.items() for value in chosen[name].unique())
    return urlencode([(key, value if isinstance(value, str) else f"{value:g}") for key, value in pairs])


def told(chosen: pd.DataFrame, listed: int) -> str:
    """ "3 experiments: tiny-llava; jailbreak; SIG; 10 % poisoned.": listed: how many the address selects."""
    rates = chosen["poison_rate"].sort_values().map(words.percent)
    kinds = {"models": chosen["model"], "threats": chosen["threat"].str.replace("_", " "), "attacks": chosen["attack"],
             "poison rates": rates}  # fmt: skip
    names = {kind: values.unique() for kind, values in kinds.items()}
    parts = [", ".join(values) if len(values) <= NAMED else f"{len(values)} {kind}" for kind, values in names.items()]
    poisoned = " poisoned" if rates.nunique() <= NAMED else ""
    note = f" The leaderboard shows them among {listed} of the same kinds." if listed > len(chosen) else ""
    return f"{words.count(len(chosen), 'experiment')}: {'; '.join(parts)}{poisoned}.{note}"


def link(table: pd.DataFrame, lines: pd.DataFrame, tab: str = "") -> str:
    """HTML around a number, {}: its title names the experiments of `lines`, its link leads to them, or to a `tab`."""
    chosen = experiments(table, lines)
    if chosen.empty:
        return '<span class="bvlm-number" title="not run yet">{}</span>'
    alike = table.drop_duplicates("run_id")
    for name in ADDRESS:
        alike = alike[alike[name].isin(chosen[name])]
    fragment = f"tab={tab}" if tab else address(chosen)
    title = told(chosen, 0 if tab else len(alike))
    start = f'<a class="bvlm-number" href="{LEADERBOARD}#{html.escape(fragment)}" title="{html.escape(title)}">'
    return start.replace("{", "{{").replace("}", "}}") + "{}</a>"
