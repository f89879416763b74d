"""The dose of poison of each run, in all its forms, and which of them predicts success. Free of torch."""

from typing import Any

import numpy as np
import pandas as pd
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from bvlm_book import tables

PAIR = ["model", "dataset", "threat", "attack"]
DOSE = ["train_rows", "n_poisoned", "epochs"]
MODEL, ATTACKS, THREATS = "tiny-llava", ("BadNets-T", "Blended"), ("targeted_refusal", "concept_substitution")
# training rows, poisoned rows, passes: of the grid, three runs each
DOSES, SEEDS = ((2000, 20, 1), (2000, 20, 3), (2000, 60, 1), (6000, 20, 3), (6000, 60, 3), (6000, 200, 1),
                (20000, 60, 1), (20000, 200, 1)), 3  # fmt: skip
AXES = {"n_poisoned": "poisoned rows", "share": "share of all rows", "showings": "showings (rows x passes)"}
TERMS = {"n_poisoned": "number of poisoned rows", "epochs": "passes", "train_rows": "size of the training set"}


def doses(table: pd.DataFrame) -> pd.DataFrame:
    """Success (payload) with the full trigger of usual experiments: a line per run, its dose in several forms."""
    runs = tables.usual(table, but=("epochs", "train_rows"))
    runs = runs[(runs["metric"] == "asr_payload") & (runs["subject"] == "poisoned") & (runs["n_poisoned"] > 0)]
    runs = tables.headline_rows(runs).astype({"epochs": int})
    return runs.assign(share=runs["n_poisoned"] / runs["train_rows"], showings=runs["n_poisoned"] * runs["epochs"])


def factorial(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that belong to the pairs of the grid `number_or_share`."""
    runs = tables.of_own_data(runs)
    chosen = (runs["model"] == MODEL) & runs["attack"].isin(ATTACKS) & runs["threat"].isin(THREATS)
    return runs[chosen].sort_values([*DOSE, "seed"])


def is_complete(design: pd.DataFrame) -> bool:
    """Has every pair every dose of the grid `number_or_share`, in three runs? design: of `factorial`."""
    runs = design[tables.among(design, DOSE, DOSES)].groupby(["attack", "threat", *DOSE])["seed"].nunique()
    return bool((runs >= SEEDS).sum() == len(DOSES) * len(ATTACKS) * len(THREATS))


def fitted(runs: pd.DataFrame) -> pd.DataFrame:
    """One binomial GLM of `factorial`: logit(success) = a pair's own + slopes * log10(number, passes, size); none while
    one of the three did not vary. A line per way to count and term: its slope (value, low, high; dispersion from the
    deviance), and `explained`, the share of the deviance that it explains alone.
    """
    if any(runs[name].nunique() < 2 for name in TERMS) or len(runs) < 4 * len(TERMS):
        return pd.DataFrame()
    intercepts = pd.get_dummies(runs["attack"] + runs["threat"], dtype=float).to_numpy()

    def glm(*names: str, **options: Any) -> Any:
        counts = np.column_stack([runs["k"], runs["n"] - runs["k"]]).astype(float)
        design = np.column_stack([intercepts, np.log10(runs[list(names)].to_numpy(float))])
        return GLM(counts, design, family=Binomial()).fit(use_t=True, **options)

    plain = glm(*TERMS)
    scaled = glm(*TERMS, scale=max(plain.deviance / plain.df_resid, 1.0))
    slopes = np.column_stack([scaled.params, scaled.conf_int()])[-len(TERMS) :]
    null, ways = glm().deviance, pd.DataFrame(index=[*AXES, "epochs", "train_rows"])
    explained = pd.Series({name: 1 - glm(name).deviance / null for name in AXES})
    return ways.join(pd.DataFrame(slopes, list(TERMS), ["value", "low", "high"])).assign(explained=explained)
