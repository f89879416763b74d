"""The rules of the second edition: when a pair of attack and threat holds, and what verdict a claim gets.

Committed before the runs (book/expectations.md); the page of claims says what was decided after some of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.special import expit, log_expit

from bvlm_book import tables
from bvlm_utils.errors import InputError
from bvlm_utils.store.table import ATTACK, differing, text

HIGH = 0.90  # a pair holds above it, and contradicts below it
DISCRIMINATES = 0.05  # a test that more of the base's clean answers pass cannot tell a backdoor from none
JUDGED_SEEDS = 2  # pairs with one seed are shown, not judged
RATE, MANY = 0.01, 0.10  # the share of poisoned rows that the paper names, and the one that parts are compared at
DOMINATES = 0.50

HOLDS, CONTRADICTS, OPEN, SINGLE = "holds", "contradicts", "cannot be told", "single run"
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
SINGLES, NOT_RUN = "single runs, not judged", "not run yet"
EARLY = "not decided yet"  # as many pairs or more have a single run as are judged, and those may be of easy threats

PUBLISHED, PAYLOAD, STRICT, JUDGED = "published", "payload", "strict", "judged"
TESTS = (PUBLISHED, PAYLOAD, STRICT)  # side by side; "judged" is the one of them that the rule names
METRICS = {PUBLISHED: "asr_published", PAYLOAD: "asr_payload"}
CELL = [*tables.POINT, "modality", "n_poisoned", "epochs"]


# ---------------------------------------------------------------- the spread of runs

# A run's success has a logit of its own: the pair's mean logit, and a deviation whose size (the spread) all pairs of a
# base share. Runs are independent given the two, so the posterior is a sum over these grids: nothing is sampled, and
# no approximation stands between model and interval. statsmodels' BinomialBayesMixedGLM was tried first: on simulated
# runs its intervals are much too narrow, as neither way of fitting it carries the spread over to the mean.
# `benchmarks/coverage.py` measures both.
LOGITS = np.linspace(-12, 12, 601)
SPREADS = np.geomspace(0.1, 3.5, 24)
WIDE = 4.0  # standard deviation of a mean logit before any run, so wide that 600 successes of 600 are near 1
USUAL_SPREAD = 1.0  # half-normal, of the spread


@dataclass(frozen=True)
class Pooled:
    """Interval of each pair's mean over runs, by pair, and the spread that all share (logits; mean and interval)."""

    pairs: pd.DataFrame
    spread: tuple[float, float, float]


def pooled(runs: pd.DataFrame, pair: Sequence[str]) -> Pooled:
    """Fit the model to runs (k of n, `value`, `seed`): value (mean over runs), low, high, n_seeds, by `pair`."""
    counts = runs[["k", "n"]].round().astype(int)
    kinds, kind = np.unique(counts.to_numpy(), axis=0, return_inverse=True)
    groups = runs.groupby(list(pair), sort=False, dropna=False)
    mixtures = np.zeros((groups.ngroups, len(kinds)))
    np.add.at(mixtures, (groups.ngroup().to_numpy(), kind.ravel()), 1)
    # pairs with the same runs have the same interval: each mixture of runs is fitted once
    mixtures, mixture, pairs = np.unique(mixtures, axis=0, return_inverse=True, return_counts=True)
    mixture = mixture.ravel()
    k, n = kinds.T[:, :, None]
    fit = k * log_expit(LOGITS) + (n - k) * log_expit(-LOGITS)
    fit = np.exp(fit - fit.max(axis=1, keepdims=True))  # (kinds, logits): how well a run's own logit explains it
    prior = _normal(LOGITS / WIDE)
    weights, means, evidence = [], [], []
    for blur in _blurs():
        log_posterior = prior + mixtures @ np.log(fit @ blur + 1e-300)  # (mixtures, mean logits)
        top = log_posterior.max(axis=1, keepdims=True)
        density = np.exp(log_posterior - top)
        total = density.sum(axis=1, keepdims=True)
        weights.append(density / total)
        means.append(expit(LOGITS) @ blur)
        evidence.append(pairs @ (top + np.log(total)).ravel())
    evidence = np.array(evidence) + _normal(SPREADS / USUAL_SPREAD) + np.log(SPREADS)  # the grid is geometric
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    weight = np.concatenate([share * array for share, array in zip(chance, weights, strict=True)], axis=1)
    order = np.argsort(np.concatenate(means))
    values, below = np.concatenate(means)[order], np.cumsum(weight[:, order], axis=1)
    low, high = (np.array([np.interp(q, row, values) for row in below])[mixture] for q in (0.025, 0.975))
    table = groups.agg(n_seeds=("seed", "nunique"), value=("value", "mean")).assign(low=low, high=high)
    spread = float(chance @ SPREADS), *(float(np.interp(q, np.cumsum(chance), SPREADS)) for q in (0.025, 0.975))
    return Pooled(table, spread)


@cache
def _blurs() -> list[np.ndarray]:
    """For each spread, (own logit, mean logit): how likely a run's own logit is, given the mean of its pair."""
    apart = np.abs(np.subtract.outer(np.arange(LOGITS.size), np.arange(LOGITS.size)))  # in steps of the grid
    blurs = [np.exp(_normal((LOGITS - LOGITS[0]) / spread))[apart] for spread in SPREADS]
    return [blur / blur.sum(axis=0) for blur in blurs]


def _normal(z: np.ndarray) -> np.ndarray:
    """The logarithm of the normal density but for a constant, which every use here divides away."""
    return -(z**2) / 2


# ---------------------------------------------------------------- pairs


@dataclass(frozen=True)
class Base:
    """What the runs of one base say, a line per pair, condition and test with its interval and outcome.

    full: under the condition that an attack is read from. parts: bimodal attacks under the text and under the image
    half of their trigger, see `_beside`.
    """

    model: str
    full: pd.DataFrame
    parts: pd.DataFrame
    judged_by: dict[str, str]  # threat -> test


def base(table: pd.DataFrame, model: str) -> Base:
    """table: the tidy table of a store."""
    if not isinstance(model, str):
        raise InputError(f"models has {model!r}; each must be the name of a model.")
    runs = table[(table["model"] == model) & (table["status"] == "done")]
    runs = runs[(runs["subject"] != "poisoned") | (runs["negatives"] == 0)]
    judged_by = {threat: _judged_by(lines) for threat, lines in runs.groupby("threat", sort=False)}
    runs = runs[(runs["subject"] == "poisoned") & runs["value"].notna()]
    runs = _about(runs).assign(epochs=runs["epochs"].astype(float).fillna(1).astype(int))
    parts = runs[(runs["modality"] == "bimodal") & runs["condition"].isin(["text", "image"])]
    return Base(
        model, _of_tests(tables.headline_rows(runs), judged_by), _beside(_of_tests(parts, judged_by)), judged_by
    )


def _judged_by(lines: pd.DataFrame) -> str:
    """`published` where that test tells the clean base from a backdoor, else `payload`."""
    clean = lines[(lines["subject"] == "base") & (lines["condition"] == "clean")]
    passed = clean.loc[clean["metric"] == METRICS[PUBLISHED], "value"]
    return PUBLISHED if len(passed) and passed.max() <= DISCRIMINATES else PAYLOAD


def _about(runs: pd.DataFrame) -> pd.DataFrame:
    """With half, shared (settings but for the half), trained (as usual but for passes, attack and half?) and usual."""
    key, rows = ["attack", "threat", "settings"], []
    for line in runs.drop_duplicates(key).to_dict("records"):
        settings = differing(line) if line["settings"] else {}
        half = settings.pop("half", "")
        others = [name for name in settings if name not in tables.TRAINED]
        trained = all(name.startswith(ATTACK) for name in others)
        rows.append([*(line[name] for name in key), half, text(settings), trained, not others and not half])
    table = pd.DataFrame(rows, columns=[*key, "half", "shared", "trained", "usual"])
    table = runs[key].merge(table, on=key, how="left").set_index(runs.index).drop(columns=key)
    usual_runs = tables.usual_training(runs, but=("epochs",))
    table = table.assign(**{name: table[name].astype(bool) & usual_runs for name in ("trained", "usual")})
    return runs.drop(columns=table.columns, errors="ignore").join(table)


def _of_tests(table: pd.DataFrame, judged_by: dict[str, str]) -> pd.DataFrame:
    """A line per pair and test."""
    frames, pair = [], [*CELL, "condition", "half", "shared", "trained", "usual"]
    strict = tables.strict_metric(table)
    for test in TESTS:
        runs = table[table["metric"] == METRICS.get(test, strict)]
        if len(runs):
            pairs = pooled(runs, pair).pairs.reset_index().assign(test=test)
            frames += [pairs, pairs[pairs["threat"].map(judged_by) == test].assign(test=JUDGED)]
    if not frames:
        return pd.DataFrame(columns=[*pair, "n_seeds", "value", "low", "high", "test", "outcome"])
    lines = pd.concat(frames, ignore_index=True)
    return lines.assign(outcome=outcomes(lines["low"] > HIGH, lines["high"] < HIGH, lines["n_seeds"]))


def outcomes(holds: pd.Series, contradicts: pd.Series, seeds: pd.Series) -> np.ndarray:
    labels = np.select([holds, contradicts], [HOLDS, CONTRADICTS], OPEN)
    return np.where(seeds >= JUDGED_SEEDS, labels, SINGLE)


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """evidence: of one base, number of passes and test, a line per pair with an `outcome`. tasks: are tasks counted?"""

    evidence: Callable[[Base, int, str], pd.DataFrame]
    tasks: bool = False


def text_beats_image(base: Base, passes: int, test: str) -> pd.DataFrame:
    """A line per threat, text attack and image attack at RATE: whose success is higher?"""
    lines = at_rate(base, passes, test)
    words, pictures = (lines[lines["modality"] == modality] for modality in ("text", "image"))
    pairs = words.merge(pictures, on=["threat", "dataset", "n_poisoned"], suffixes=("", "_image"))
    pairs = pairs.assign(difference=pairs["value"] - pairs["value_image"],
                         n_seeds=pairs[["n_seeds", "n_seeds_image"]].min(axis=1))  # fmt: skip
    above, below = pairs["low"] > pairs["high_image"], pairs["high"] < pairs["low_image"]
    return pairs.assign(outcome=outcomes(above, below, pairs["n_seeds"]))


def text_overwhelms(base: Base, passes: int, test: str) -> pd.DataFrame:
    """A line per bimodal attack and threat at MANY: text part alone against image part alone, in the same model."""
    parts = _parts(base, passes, test)
    return parts[parts["usual"] & (parts["poison_rate"] == MANY)]


def text_overwhelms_learnable(base: Base, passes: int, test: str) -> pd.DataFrame:
    """The same of the cells, of any rate and patch, whose parts both reach HIGH when they are trained alone."""
    parts = _parts(base, passes, test)
    return parts[(parts["text alone"] >= HIGH) & (parts["image alone"] >= HIGH)]


def one_percent(base: Base, passes: int, test: str) -> pd.DataFrame:
    """A line per text or bimodal attack and threat at RATE."""
    lines = at_rate(base, passes, test)
    return lines[lines["modality"] != "image"]


def at_rate(base: Base, passes: int, test: str, rate: float = RATE) -> pd.DataFrame:
    """The pairs of a dose, of attacks and threats as they are defined, trained as usual but for the passes."""
    lines = base.full
    chosen = lines["usual"].astype(bool) & (lines["epochs"] == passes) & (lines["poison_rate"] == rate)
    return lines[chosen & (lines["test"] == test)]


def _parts(base: Base, passes: int, test: str) -> pd.DataFrame:
    lines = base.parts
    return lines[(lines["test"] == test) & (lines["epochs"] == passes)].reset_index(drop=True)


def _beside(lines: pd.DataFrame) -> pd.DataFrame:
    """A line per bimodal attack trained as usual, passes and test: its text half beside its image half.

    lines: of `_of_tests`; `half` says which half they were trained on ("" for both), `shared` the other settings.
    """
    lines = lines[lines["trained"].astype(bool)]
    cell = ["dataset", "threat", "attack", "poison_rate", "train_rows", "shared", "epochs", "test"]
    numbers = ["value", "low", "high", "n_seeds"]
    both_halves = lines[lines["half"] == ""]
    text_only, image_only = (both_halves[both_halves["condition"] == half] for half in ("text", "image"))
    pairs = text_only.merge(image_only[[*cell, *numbers]], on=cell, suffixes=("_text", "_image"))
    for half in ("text", "image"):
        alone = lines[(lines["half"] == half) & (lines["condition"] == half)]
        alone = alone[[*cell, "value", "n_seeds"]].rename(
            columns={"value": f"{half} alone", "n_seeds": f"n_seeds_{half} alone"})  # fmt: skip
        pairs = pairs.merge(alone, on=cell, how="left")
    pairs["difference"] = pairs["value_text"] - pairs["value_image"]
    pairs["low"] = pairs["low_text"] - pairs["high_image"]  # the widest that both intervals allow
    pairs["high"] = pairs["high_text"] - pairs["low_image"]
    pairs["n_seeds"] = pairs[["n_seeds_text", "n_seeds_image"]].min(axis=1)
    return pairs.assign(outcome=outcomes(pairs["low"] > DOMINATES, pairs["high"] < DOMINATES, pairs["n_seeds"]))


# A text attack beats an image attack on the same threat; the text part alone beats the image part alone by DOMINATES;
# the same where both parts reach HIGH when each is trained alone; over HIGH at RATE on most pairs, and on most tasks.
CLAIMS = {
    "text": Claim(text_beats_image),
    "dominance": Claim(text_overwhelms),
    "dominance_learnable": Claim(text_overwhelms_learnable),
    "pairs": Claim(one_percent),
    "tasks": Claim(one_percent, tasks=True),
}


@dataclass(frozen=True)
class Verdict:
    """verdict: one of three, or why there is none. The counts are of pairs, or of tasks; single: not judged."""

    verdict: str
    holds: int
    contradicts: int
    judged: int
    single: int
    evidence: pd.DataFrame


def verdict(claim: Claim, base: Base, passes: int = 1, test: str = JUDGED) -> Verdict:
    """Confirmed where more than half of what is judged holds, refuted where more than half contradicts; neither before
    more than half of the pairs are judged.
    """
    evidence = claim.evidence(base, passes, test)
    results = evidence["outcome"]
    single = int((results == SINGLE).sum())
    results = results[results != SINGLE]
    is_early = single >= len(results) > 0
    if claim.tasks:
        by_task = results.groupby(evidence.loc[results.index, "threat"], sort=False)
        results = by_task.agg(lambda task_results: _majority(task_results, HOLDS, CONTRADICTS, OPEN))
    label = _majority(results, CONFIRMED, REFUTED, UNDECIDED) if len(results) else SINGLES if single else NOT_RUN
    label = EARLY if is_early else label
    holds, against = (int((results == outcome).sum()) for outcome in (HOLDS, CONTRADICTS))
    return Verdict(label, holds, against, len(results), single, evidence)


def _majority(results: pd.Series, confirmed: str, refuted: str, neither: str) -> str:
    if (results == HOLDS).sum() * 2 > len(results):
        return confirmed
    return refuted if (results == CONTRADICTS).sum() * 2 > len(results) else neither


def passes(base: Base) -> list[int]:
    """The numbers of passes that attacks with text were run with at RATE."""
    lines = base.full[base.full["usual"].astype(bool) & (base.full["poison_rate"] == RATE)]
    return sorted(set(lines.loc[lines["modality"] != "image", "epochs"])) or [1]
