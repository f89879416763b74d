"""How often do the 95 % intervals of the rules hold a known truth? Runs are simulated, so the truth is known.

    python benchmarks/coverage.py    # writes benchmarks/results/coverage.json; some minutes

Pairs have a mean logit of their own and runs a deviation of known size. Counted are the intervals that hold the pair's
true mean success, and the wrong outcomes: a pair called above 0.90 that is below it, or the other way round. The last
lines are statsmodels' BinomialBayesMixedGLM on the same kind of runs, for comparison.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import norm
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

from bvlm_book import rules_second

RESULT = Path(__file__).parent / "results" / "coverage.json"
RUNS, ROWS = 3, 200  # per pair, per run
POINTS = np.linspace(-8, 8, 2001)  # a normal's, in standard deviations


def simulated(rng: np.random.Generator, pairs: int, spreads: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Runs of pairs whose deviations have these sizes (pairs,), the pairs' mean logits and true mean successes."""
    logits = rng.normal(1.5, 2.5, pairs)
    own = logits[:, None] + spreads[:, None] * rng.standard_normal((pairs, RUNS))
    k = rng.binomial(ROWS, expit(own))
    lines = [
        {"pair": pair, "seed": seed, "k": k[pair, seed], "n": ROWS, "value": k[pair, seed] / ROWS}
        for pair in range(pairs) for seed in range(RUNS)
    ]  # fmt: skip
    weights = norm.pdf(POINTS) / norm.pdf(POINTS).sum()
    return pd.DataFrame(lines), logits, expit(logits[:, None] + spreads[:, None] * POINTS) @ weights


def of_rules(rng: np.random.Generator, sizes: tuple[float, ...], pairs: int = 60, repeats: int = 20) -> dict:
    held, wrong, told, spreads = 0, 0, 0, []
    for _ in range(repeats):
        runs, _, truth = simulated(rng, pairs, np.resize(sizes, pairs))
        fit = rules_second.pooled(runs, ["pair"])
        low, high = fit.pairs["low"].to_numpy(), fit.pairs["high"].to_numpy()
        held += int(((low <= truth) & (truth <= high)).sum())
        above, below = low > rules_second.HIGH, high < rules_second.HIGH
        told += int((above | below).sum())
        wrong += int((above & (truth < rules_second.HIGH)).sum() + (below & (truth > rules_second.HIGH)).sum())
        spreads.append(fit.spread[0])
    return {
        "way": "rules", "spread": list(sizes), "estimated": float(np.mean(spreads)), "intervals": pairs * repeats,
        "held": held, "told": told, "wrong": wrong,
    }  # fmt: skip


def of_statsmodels(rng: np.random.Generator, way: str, spread: float, pairs: int = 10, repeats: int = 6) -> dict:
    """Intervals of the mean logits, as the library gives them."""
    held, spreads = 0, []
    for _ in range(repeats):
        runs, logits, _ = simulated(rng, pairs, np.full(pairs, spread))
        outcome = np.concatenate([np.repeat([1.0, 0.0], [k, ROWS - k]) for k in runs["k"]])
        run = np.repeat(np.arange(len(runs)), ROWS)
        design, own = np.eye(pairs)[run // RUNS], np.eye(len(runs))[run]
        model = BinomialBayesMixedGLM(outcome, design, own, np.zeros(len(runs), int), vcp_p=2, fe_p=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = model.fit_vb() if way == "variational" else model.fit_map()
        held += int((np.abs(fit.fe_mean - logits) <= norm.ppf(0.975) * fit.fe_sd).sum())
        spreads.append(float(np.exp(fit.vcp_mean[0])))
    return {"way": way, "spread": [spread], "estimated": float(np.mean(spreads)), "intervals": pairs * repeats,
            "held": held}  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(0)
    lines = [of_rules(rng, sizes) for sizes in ((0.4,), (0.8,), (1.2,), (2.0,), (0.6, 1.8))]
    lines += [of_statsmodels(rng, way, 0.8) for way in ("variational", "Laplace")]
    RESULT.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(lines).to_string())


if __name__ == "__main__":
    main()
