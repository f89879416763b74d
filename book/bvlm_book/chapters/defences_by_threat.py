"""What is left of each threat on each model under each defence: the means of the chapter, taken apart."""

import pandas as pd

from bvlm_book import defended, words
from bvlm_book.words import nothing_measured


def matrix(found: pd.DataFrame) -> pd.DataFrame:
    """Mean success over attacks and seeds: a line per defence, a column per threat and model."""
    rows = defended.numbers(defended.acting(defended.measured(found)), defended.ASR, "poisoned", triggered=True)
    rows = rows[~rows["placebo"].astype(bool) & ~defended.on_the_curve(rows)]
    if rows.empty:
        return pd.DataFrame()
    said = [(defended.named(one), f"{words.threat(one)}, {one['model']}") for one in rows.to_dict("records")]
    lines, columns = (list(dict.fromkeys(names)) for names in zip(*said, strict=True))
    rows = rows.assign(line=[one for one, _ in said], column=[one for _, one in said])
    grid = rows.pivot_table(index="line", columns="column", values="value")
    return grid.reindex(index=lines, columns=sorted(columns, key=lambda name: name.rpartition(", ")[::-1]))


def matrix_words(grid: pd.DataFrame) -> dict[str, str]:
    """Title, alternative text and caption of the heat map of `matrix`."""
    if grid.empty:
        return nothing_measured("Success under each defence, by threat and model")
    whole = grid.drop(index="oracle", errors="ignore").dropna()
    low = int((whole < defended.FLOOR).all(axis=1).sum())
    title = (
        f"{low} of {len(whole)} defences leave under {words.percent(defended.FLOOR)} success on every threat and model."
    )
    alt = f"Heat map: success after each defence (rows) on {len(grid.columns)} threats and models. {title}"
    return {"title": title, "alt": alt, "caption": "Means over attacks; the title leaves out the oracle."}


def extremes(grid: pd.DataFrame) -> dict[str, str]:
    """To be glued: the defence whose mean over threats differs most between models, and by how much.

    Of each defence the threats on which it was measured on all models; "n/a" of one model.
    """
    threats, models = ([name.rpartition(", ")[at] for name in grid] for at in (0, 2))
    whole = grid.T.set_axis(pd.MultiIndex.from_arrays([threats, models])).stack().unstack(1).dropna()
    means = whole.groupby(level=1, sort=False).mean()
    if means.shape[1] < 2 or means.empty:
        return {"differs": "n/a", "differs_means": "n/a"}
    name = (means.max(axis=1) - means.min(axis=1)).idxmax()
    return {
        "differs": str(name),
        "differs_means": " and ".join(f"{words.number(value)} on {model}" for model, value in means.loc[name].items()),
    }
