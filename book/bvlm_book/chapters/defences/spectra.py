"""Detectors that are fitted to many adapters, asked about those that were left out: spectra of weights, and states.

Reads `data/adapters/spectra.csv` and `probes.csv` there, which `python -m bvlm_utils.defences population` and `probes`
make. Free of torch.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from bvlm_book import words
from bvlm_utils import attacks, paths

FILE = paths.DATA / "adapters" / "spectra.csv"
PROBES = FILE.with_name("probes.csv")
DETECTORS = {"weight-spectrum": FILE, "probe": PROBES}  # defences that read them
TRUTH, KIND = "backdoored", "kind"
LEFT_OUT = ("attack", "threat", "model")
FOLDS = 5  # into which adapters without a backdoor are dealt


def read(file: Path = FILE) -> pd.DataFrame:
    """A line per adapter (of `PROBES`: and way to leave others out); none where the file is missing."""
    columns = [TRUTH, KIND, *LEFT_OUT, "left_out", "control", "placebo"]
    return pd.read_csv(file, keep_default_na=False) if file.is_file() else pd.DataFrame(columns=columns)


def scores(population: pd.DataFrame, by: str) -> pd.Series:
    """Log-odds of each adapter by a regression that has seen none like it: of backdoored ones none of the same attack,
    threat or model (`by`), of others none of its fifth. Numbers are put on one scale within each model first.
    """
    from sklearn.linear_model import LogisticRegression

    columns = [name for name in population if "." in name]
    by_model = population.groupby("model")[columns]
    spread = by_model.transform("std").replace(0, 1).fillna(1)
    numbers = ((population[columns] - by_model.transform("mean")) / spread).to_numpy()
    fold, others = population[by].astype(str), population[TRUTH] == 0
    if by != "model":
        groups = sorted(set(fold[~others]))
        fold[others] = np.resize(groups[:FOLDS] or [""], others.sum())
    log_odds = pd.Series(np.nan, index=population.index)
    for name in fold.unique():
        held, truth = (fold == name).to_numpy(), population[TRUTH].to_numpy()
        if len(set(truth[~held])) == 2:
            model = LogisticRegression(max_iter=1000).fit(numbers[~held], truth[~held])
            log_odds[held] = model.decision_function(numbers[held])
    return log_odds


def auroc(positive: pd.Series, negative: pd.Series) -> float:
    """How often a positive has the higher score; ties count half."""
    from scipy.stats import mannwhitneyu  # slow to load

    return mannwhitneyu(positive, negative, method="asymptotic").statistic / (len(positive) * len(negative))


def area(population: pd.DataFrame, values: pd.Series, kind: str) -> tuple[float, int]:
    """AUROC of backdoored adapters against those of a kind, mean over models; and how many of the kind there are."""
    areas, count = [], 0
    for _, group in population.assign(score=values).dropna(subset=["score"]).groupby("model"):
        others = group[(group[TRUTH] == 0) & (group[KIND] == kind)]
        if len(others) and group[TRUTH].any():
            areas.append(auroc(group.loc[group[TRUTH] == 1, "score"], others["score"]))
            count += len(others)
    return (float(np.mean(areas)) if areas else float("nan")), count


def table(population: pd.DataFrame) -> pd.DataFrame:
    """A line per way to leave adapters out, and one of the norm: AUROC against each kind without a backdoor."""
    if not len(population):
        return pd.DataFrame()
    kinds = sorted(set(population.loc[population[TRUTH] == 0, KIND]))
    ways = {f"spectrum, another {by}": scores(population, by) for by in LEFT_OUT if population[by].nunique() > 1}
    lines = []
    for way, values in (ways | {"norm (placebo)": population["norm"]}).items():
        areas = {kind: area(population, values, kind) for kind in kinds}
        texts = {f"against {kind}": f"{words.number(auc)} ({count})" for kind, (auc, count) in areas.items()}
        lines.append({"detector": way} | texts)
    return pd.DataFrame(lines)


def probe_table(probed: pd.DataFrame) -> pd.DataFrame:
    """Mean AUROC of probes on triggered inputs, a line per way to leave others out and kind of trigger."""
    kinds = probed["attack"].map(lambda name: attacks.info(name).modality)
    lines = []
    for (by, kind), group in probed.groupby(["left_out", kinds.rename("kind")], sort=False):
        numbers = {name: words.number(group[name].mean()) for name in ("backdoored", "control", "placebo")}
        lines.append({"probe asked about": f"another {by}", "trigger": kind, "adapters": len(group)} | numbers)
    return pd.DataFrame(lines)
