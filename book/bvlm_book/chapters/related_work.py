"""The page "Related work": numbers that others have published, beside ours for the same triggers."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

SIX = ("BadNets-T", "AddSent", "BadNets-I", "Blended", "SIG", "BadNets-MM")  # the attacks of RACER


@dataclass(frozen=True)
class Published:
    """A success rate of a paper; ours beside it: of which defence (None: none) and of triggers of which modalities."""

    what: str
    said: str
    source: str
    defence: str | None
    modalities: Sequence[str] = ("text", "image", "bimodal")
    placebo: bool = False


PUBLISHED = (
    Published("no defence", "98.6 %", "RACER", None),
    Published("clean tuning, text triggers", "98 to 100 %", "RACER", "clean-fine-tuning", ("text",)),
    Published("consistency tuning, text and bimodal triggers", "97 to 100 %", "RACER", "crow", ("text", "bimodal")),
    Published("weights rounded to 4 bits", "79 to 100 %", "RACER", "quantise"),
    Published("half of the weights pruned", "0 to 88 %", "RACER", "prune"),
    Published("RACER's own repair", "1.1 %", "RACER", "racer"),
    Published("random channels restored (a placebo)", "0.7 to 34 %", "PSR", "restore", placebo=True),
)


def beside_published(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """A line per published number beside the mean and range of our experiments without (before) and with a defence."""
    lines = []
    for one in PUBLISHED:
        rows = before
        if one.defence is not None:
            rows = after[(after["named"] == one.defence) & (after["placebo"].astype(bool) == one.placebo)]
        values = 100 * rows.loc[rows["attack"].isin(SIX) & rows["modality"].isin(one.modalities), "value"]
        ours = f"{values.mean():.0f} % ({values.min():.0f} to {values.max():.0f} %)" if len(values) else "not run"
        lines.append({"success rate with": one.what, "published, 7B": f"{one.said} ({one.source})", "ours": ours,
                      "our experiments": len(values)})  # fmt: skip
    return pd.DataFrame(lines)
