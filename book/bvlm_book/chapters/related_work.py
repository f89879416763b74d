"""The page "Related work": numbers that others have published, beside ours for the same triggers."""

import pandas as pd

from bvlm_book import words

SIX = ("BadNets-T", "AddSent", "BadNets-I", "Blended", "SIG", "BadNets-MM")  # the attacks of RACER


# Success rates of papers; beside them ours of which defence ("" for none), its placebo?, triggers of which modalities.
PUBLISHED = pd.DataFrame([
    ("no defence", "98.6 %", "RACER", "", False, words.MODALITIES),
    ("clean tuning, text triggers", "98 to 100 %", "RACER", "clean-fine-tuning", False, ("text",)),
    ("consistency tuning, text and bimodal triggers", "97 to 100 %", "RACER", "crow", False, ("text", "bimodal")),
    ("weights rounded to 4 bits", "79 to 100 %", "RACER", "quantise", False, words.MODALITIES),
    ("half of the weights pruned", "0 to 88 %", "RACER", "prune", False, words.MODALITIES),
    ("RACER's own repair", "1.1 %", "RACER", "racer", False, words.MODALITIES),
    ("random channels restored (a placebo)", "0.7 to 34 %", "PSR", "restore", True, words.MODALITIES),
], columns=["what", "said", "source", "defence", "placebo", "modalities"])  # fmt: skip


def beside_published(after: pd.DataFrame) -> pd.DataFrame:
    """A line per published number beside the mean and range of our experiments whose backdoor works, without a defence
    (their `asr_before`) and with one. after: success, of `defences.numbers`.
    """
    lines = []
    for entry in PUBLISHED.itertuples():
        rows = after.drop_duplicates("run_id").assign(value=after["asr_before"])
        if entry.defence:
            rows = after[(after["named"] == entry.defence) & (after["placebo"].astype(bool) == entry.placebo)]
        values = 100 * rows.loc[rows["attack"].isin(SIX) & rows["modality"].isin(entry.modalities), "value"]
        ours = f"{values.mean():.0f} % ({values.min():.0f} to {values.max():.0f} %)" if len(values) else "not run"
        lines.append({"success rate with": entry.what, "published, 7B": f"{entry.said} ({entry.source})", "ours": ours,
                      "our experiments": len(values)})  # fmt: skip
    return pd.DataFrame(lines)
