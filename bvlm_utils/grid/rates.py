"""What a grid measured, a line per cell, to be read on a terminal."""

from collections.abc import Sequence

import pandas as pd

from bvlm_utils import store as results
from bvlm_utils.grid.file import Job
from bvlm_utils.store.table import headline_metric


def table(jobs: Sequence[Job] | None, store: str | None) -> pd.DataFrame:
    """One line per cell: success rates of the poisoned model per condition, by the test that the book's headlines are
    read from, and its utility beside the control's.
    """
    found = results.collect(store)
    if jobs is not None:
        found = found[found["run_id"].isin({cell.run_id for job in jobs for cell in job.cells})]
    lines = []
    for run_id, part in found.groupby("run_id", sort=False):
        first = part.iloc[0]
        line = {name: first[name] for name in ("model", "dataset", "threat", "attack", "poison_rate", "seed", "status")}
        value = part.set_index(["subject", "condition", "metric"])["value"]
        measure = headline_metric(part).iloc[0]
        for condition in ("clean", "text", "image", "both"):
            line[f"ASR {condition}"] = value.get(("poisoned", condition, measure), float("nan"))
        for subject in ("poisoned", "control"):
            line[f"utility {subject}"] = value.get((subject, "clean", "utility"), float("nan"))
        lines.append(line | {"run_id": run_id})
    return pd.DataFrame(lines)
