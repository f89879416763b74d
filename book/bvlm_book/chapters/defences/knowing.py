"""Attackers who know the defence: experiments with settings of their own, beside the same defence on the usual ones."""

from typing import Any

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.chapters import defences as chapter

# What is read of a defence, by when it acts: measure, in words.
READ = {
    "data": (("auroc", "AUROC"),),
    "training": ((chapter.ASR, "success after"),),
    "detect": (("score", "score"),),
    "repair": ((chapter.ASR, "success after"),),
    "inference": (("auroc", "AUROC"), (chapter.ASR, "success after")),
}


def table(found: pd.DataFrame) -> pd.DataFrame:
    """A line per defence, adaptive attacker and measure, to read. found: `defences.collect` with adaptive ones, too."""
    rows = _read(found)
    knowing = chapter.adaptive(rows)
    lines = []
    for line in rows[knowing].to_dict("records"):
        usual = rows[~knowing & (rows["poison_rate"] > 0)]
        for name in ("named", "model", "threat", "attack", "metric"):
            usual = usual[usual[name] == line[name]]
        lines.append(line | {"usual": usual["value"].mean()})
    return tables.readable(pd.DataFrame(lines, columns=[*rows.columns, "usual"]), {
        "acts": "moment", "defence": "named", "attacker": attacker,
        "success without defence": lambda line: words.number(line["asr_before"]), "measure": "measure",
        "usual attacker": lambda line: words.number(line["usual"]),
        "this attacker": lambda line: words.number(line["value"]),
    })  # fmt: skip


def _read(found: pd.DataFrame) -> pd.DataFrame:
    """One line per defended experiment and measure of `READ`, without placebos."""
    done = found[(found["status"] == "done") & (found["decoy"].fillna("") == "") & ~found["placebo"].astype(bool)]
    parts = []
    for moment, measures in READ.items():
        own = done[done["moment"] == moment]
        for metric, title in measures:
            rows = chapter.numbers(own, metric, "poisoned", True if metric == chapter.ASR else None)
            parts.append(rows.assign(measure=title))
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"])


def attacker(line: dict[str, Any]) -> str:
    """ "BadNets-T on targeted refusal, 10 %, epochs=2"."""
    said = [
        f"{line['attack']} on {words.threat(line)}",
        words.percent(line["poison_rate"]),
        chapter.apart(line["settings"]),
    ]
    return ", ".join(filter(None, said))
