"""What does the check of `audit` see? Comparisons of `audit_study` in, a figure out; free of torch."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bvlm_utils import audit, audit_study, plots

STRIPS = ((audit_study.OTHER_SEED, "other seed"), (audit_study.BASE, "base"))


def excess(table: pd.DataFrame) -> Figure:
    """Excess disagreement: clean-tuned models in strips at the left, backdoored ones against their ASR at the right."""
    found = audit_study.suspects(table)
    if found.empty:
        return plots.nothing("The store holds no answers of backdoored models.")
    figure, (innocent, suspect) = plots._figure(2, 4.6, 4.2, sharey=True, gridspec_kw={"width_ratios": (1, 2.6)})
    spread = np.random.default_rng(0)  # sideways, so that equal numbers can be told apart
    for place, (reference, _) in enumerate(STRIPS):
        rows = audit_study.innocents(table, reference)
        sideways = place + spread.uniform(-0.25, 0.25, len(rows))
        innocent.scatter(
            sideways, rows["value"], s=18, marker="o", facecolor="none", edgecolor=plots.SUBJECT_COLOURS["control"]
        )
    innocent.set_xticks(range(len(STRIPS)), [words for _, words in STRIPS])
    innocent.set_xlim(-0.6, len(STRIPS) - 0.4)
    innocent.set(title="clean-tuned", xlabel="reference", ylabel="excess disagreement")
    for number, modality in enumerate(plots.MODALITIES):
        rows = found[found["modality"] == modality]
        suspect.scatter(
            rows["asr"], rows["value"], s=26, color=plots.COLOURS[number], marker=plots.MARKERS[number], alpha=0.8,
            label=modality,
        )  # fmt: skip
    suspect.set(title="backdoored, its own trigger", xlabel="attack success rate", xlim=(-0.03, 1.03))
    suspect.legend(title="trigger", loc="lower right")
    for axis in (innocent, suspect):
        _margin(axis)
    return figure


def _margin(axis: Axes) -> None:
    axis.axhline(audit.MARGIN, color="black", linestyle="--", linewidth=1)
    axis.axhline(0, color="black", linewidth=0.6)
