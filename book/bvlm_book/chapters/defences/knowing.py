"""Attackers who know the defence: experiments with settings of their own, beside the same defence on the usual ones."""

from typing import Any

import pandas as pd

from bvlm_book import tables, words
from bvlm_book.chapters import defences as chapter

MEASURES = {"auroc": "AUROC", chapter.ASR: "success after", "score": "score"}
# What is read of a defence, by when it acts.
READ = {"data": ["auroc"], "training": [chapter.ASR], "detect": ["score"], "repair": [chapter.ASR],
        "inference": ["auroc", chapter.ASR]}  # fmt: skip
SAME = ["named", "model", "threat", "attack", "metric"]
EVADED = 0.1  # by so much more success, or so much less AUROC or score, an attacker does better than the usual one


def read(results: pd.DataFrame) -> pd.DataFrame:
    """A line per defence, attacker and measure of `READ`; usual: the mean on usual attackers. results: of `every`."""
    done = results[
        (results["status"] == "done") & (results["decoy"].fillna("") == "") & ~results["placebo"].astype(bool)
    ]
    rows = pd.concat([
        chapter.numbers(done[done["moment"] == moment], metric, triggered=True if metric == chapter.ASR else None)
        .assign(measure=MEASURES[metric]) for moment, metrics in READ.items() for metric in metrics
    ], ignore_index=True).dropna(subset=["value"])  # fmt: skip
    knowing = chapter.adaptive(rows)
    usual = rows[~knowing & (rows["poison_rate"] > 0)].groupby(SAME)["value"].mean().rename("usual")
    return rows[knowing].join(usual, on=SAME)


def evaded(lines: pd.DataFrame) -> str:
    """To be glued: in how many lines of `read` the attacker does better than the usual one."""
    better = (lines["value"] - lines["usual"]).where(lines["metric"] == chapter.ASR, lines["usual"] - lines["value"])
    return words.of(better >= EVADED)


def table(lines: pd.DataFrame) -> pd.DataFrame:
    return tables.readable(lines, {
        "acts": "moment", "defence": "named", "attacker": attacker,
        "success without defence": lambda line: words.number(line["asr_before"]), "measure": "measure",
        "usual attacker": lambda line: words.number(line["usual"]),
        "this attacker": lambda line: words.number(line["value"]),
    })  # fmt: skip


def attacker(line: dict[str, Any]) -> str:
    """ "BadNets-T on targeted refusal, 10 %, epochs=2"."""
    rate, settings = words.percent(line["poison_rate"]), chapter.apart(line["settings"])
    return ", ".join(filter(None, [f"{line['attack']} on {words.threat(line)}", rate, settings]))
