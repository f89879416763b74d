"""Does a repaired backdoor come back when the model is tuned on with a few poisoned rows?

Beside each repaired model stands its clean-tuned control, which had no repair, after the same steps: what that one
has learnt is what a new backdoor learns.
"""

from pathlib import Path

import pandas as pd

from bvlm_book import words
from bvlm_book.chapters import defences as chapter

FASTER = 0.1  # by so much more success with most rows a backdoor comes back, and is not only learnt


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """Success of repaired models (`value`) and controls (`never`), a line per number of poisoned rows (`relearn`)."""
    results = chapter.measured(chapter.collect(place, relearnt=True))
    ours, control = (chapter.numbers(results, chapter.ASR, subject, True) for subject in ("poisoned", "control"))
    never = control[["name", "value"]].rename(columns={"value": "never"})
    return ours.merge(never, on="name", how="left")


def means(relearnt: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Mean success by repair and rows, and of controls. relearnt: `collect`; results: `defences.collect`."""
    right, key = chapter.numbers(results, chapter.ASR, "poisoned", True), ["run_id", "named"]
    right = right[~right["placebo"].astype(bool)].set_index(key)["value"].rename("right")
    groups = relearnt.join(right, on=key).groupby(["defence", "named", "relearn"], as_index=False, sort=False)
    means = {name: (name, "mean") for name in ("right", "value", "never")}
    return groups.agg(**means, cells=("run_id", "nunique"), attacks=("attack", lambda names: ", ".join(names.unique())))


def table(lines: pd.DataFrame) -> pd.DataFrame:
    """`means` to read, a line per repair: repaired models, and in brackets those without a backdoor."""
    text = [f"{words.number(line['value'])} ({words.number(line['never'])})" for line in lines.to_dict("records")]
    after = lines.assign(text=text).pivot(index="named", columns="relearn", values="text")
    first = lines.drop_duplicates("named").set_index("named")
    frame = after.add_prefix("after ").add_suffix(" rows").reindex(first.index).fillna("n/a")
    frame.insert(0, "right after it", first["right"].map(words.number))
    return frame.assign(experiments=first["cells"]).rename_axis(index="repair", columns=None).reset_index()


def numbers(lines: pd.DataFrame) -> dict[str, str]:
    """What the page says, to be glued: how many repairs there are, and after which the backdoor comes back."""
    largest = lines[(lines["relearn"] == lines["relearn"].max()) & (lines["defence"] != "oracle")]
    back = largest.loc[largest["value"] - largest["never"] >= FASTER, "named"]
    rows = " or ".join(map(str, sorted(lines["relearn"].unique()))) or "n/a"
    cells = f"{words.span(lines['cells'])} experiments with {', '.join(lines['attacks'].unique()) or 'n/a'}"
    return {"repairs": str(len(largest)), "back": str(len(back)), "back_names": ", ".join(back) or "none", "rows": rows,
            "again_cells": cells}  # fmt: skip
