"""The rules of the second edition: when a pair of attack and threat holds, and what verdict a claim gets.

Committed before the runs (book/expectations.md); the page of claims says what was decided after some of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
APART = np.abs(np.subtract.outer(np.arange(LOGITS.size), np.arange(LOGITS.size)))  # in steps of the grid
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
    made_of = np.zeros((groups.ngroups, len(kinds)))
    np.add.at(made_of, (groups.ngroup().to_numpy(), kind.ravel()), 1)
    # pairs with the same runs have the same interval: each mixture of runs is fitted once
    made_of, mixture, pairs = np.unique(made_of, axis=0, return_inverse=True, return_counts=True)
    mixture = mixture.ravel()
    k, n = kinds.T[:, :, None]
    fit = k * log_expit(LOGITS) + (n - k) * log_expit(-LOGITS)
    fit = np.exp(fit - fit.max(axis=1, keepdims=True))  # (kinds, logits): how well a run's own logit explains it
    prior = _normal(LOGITS / WIDE)
    weights, means, evidence = [], [], []
    for spread in SPREADS:
        blur = np.exp(_normal((LOGITS - LOGITS[0]) / spread))[APART]  # (own logit, mean logit)
        blur /= blur.sum(axis=0)
        of_pair = prior + made_of @ np.log(fit @ blur + 1e-300)  # (mixtures, mean logits)
        top = of_pair.max(axis=1, keepdims=True)
        likely = np.exp(of_pair - top)
        total = likely.sum(axis=1, keepdims=True)
        weights.append(likely / total)
        means.append(expit(LOGITS) @ blur)
        evidence.append(pairs @ (top + np.log(total)).ravel())
    evidence = np.array(evidence) + _normal(SPREADS / USUAL_SPREAD) + np.log(SPREADS)  # the grid is geometric
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    weight = np.concatenate([share * one for share, one in zip(chance, weights, strict=True)], axis=1)
    order = np.argsort(np.concatenate(means))
    values, below = np.concatenate(means)[order], np.cumsum(weight[:, order], axis=1)
    low, high = (np.array([np.interp(q, one, values) for one in below])[mixture] for q in (0.025, 0.975))
    found = groups.agg(n_seeds=("seed", "nunique"), value=("value", "mean")).assign(low=low, high=high)
    spread = float(chance @ SPREADS), *(float(np.interp(q, np.cumsum(chance), SPREADS)) for q in (0.025, 0.975))
    return Pooled(found, spread)


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
    done = table[(table["model"] == model) & (table["status"] == "done")]
    done = done[(done["subject"] != "poisoned") | (done["negatives"] == 0)]
    judged_by = {threat: _judged_by(part) for threat, part in done.groupby("threat", sort=False)}
    done = done[(done["subject"] == "poisoned") & done["value"].notna()]
    done = _about(done).assign(epochs=done["epochs"].astype(float).fillna(1).astype(int))
    parts = done[(done["modality"] == "bimodal") & done["condition"].isin(["text", "image"])]
    return Base(
        model, _of_tests(tables.headline_rows(done), judged_by), _beside(_of_tests(parts, judged_by)), judged_by
    )


def _judged_by(of_threat: pd.DataFrame) -> str:
    """`published` where that test tells the clean base from a backdoor, else `payload`."""
    clean = of_threat[(of_threat["subject"] == "base") & (of_threat["condition"] == "clean")]
    passed = clean.loc[clean["metric"] == METRICS[PUBLISHED], "value"]
    return PUBLISHED if len(passed) and passed.max() <= DISCRIMINATES else PAYLOAD


def _about(done: pd.DataFrame) -> pd.DataFrame:
    """With half, shared (settings but for the half), trained (as usual but for passes, attack and half?) and usual."""
    key, kinds = ["attack", "threat", "settings"], []
    for line in done.drop_duplicates(key).to_dict("records"):
        apart = differing(line) if line["settings"] else {}
        half = apart.pop("half", "")
        other = [name for name in apart if name not in tables.TRAINED]
        trained = all(name.startswith(ATTACK) for name in other)
        kinds.append([*(line[name] for name in key), half, text(apart), trained, not other and not half])
    found = pd.DataFrame(kinds, columns=[*key, "half", "shared", "trained", "usual"])
    found = done[key].merge(found, on=key, how="left").set_index(done.index).drop(columns=key)
    own = tables.usual_training(done, but=("epochs",))
    found = found.assign(**{name: found[name].astype(bool) & own for name in ("trained", "usual")})
    return done.drop(columns=found.columns, errors="ignore").join(found)


def _of_tests(done: pd.DataFrame, judged_by: dict[str, str]) -> pd.DataFrame:
    """A line per pair and test."""
    parts, pair = [], [*CELL, "condition", "half", "shared", "trained", "usual"]
    strict = tables.strict_metric(done)
    for test in TESTS:
        runs = done[done["metric"] == METRICS.get(test, strict)]
        if len(runs):
            found = pooled(runs, pair).pairs.reset_index().assign(test=test)
            parts += [found, found[found["threat"].map(judged_by) == test].assign(test=JUDGED)]
    if not parts:
        return pd.DataFrame(columns=[*pair, "n_seeds", "value", "low", "high", "test", "outcome"])
    lines = pd.concat(parts, ignore_index=True)
    return lines.assign(outcome=outcomes(lines["low"] > HIGH, lines["high"] < HIGH, lines["n_seeds"]))


def outcomes(holds: pd.Series, contradicts: pd.Series, seeds: pd.Series) -> np.ndarray:
    told = np.select([holds, contradicts], [HOLDS, CONTRADICTS], OPEN)
    return np.where(seeds >= JUDGED_SEEDS, told, SINGLE)


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
    found = words.merge(pictures, on=["threat", "dataset", "n_poisoned"], suffixes=("", "_image"))
    found = found.assign(difference=found["value"] - found["value_image"],
                         n_seeds=found[["n_seeds", "n_seeds_image"]].min(axis=1))  # fmt: skip
    above, below = found["low"] > found["high_image"], found["high"] < found["low_image"]
    return found.assign(outcome=outcomes(above, below, found["n_seeds"]))


def text_overwhelms(base: Base, passes: int, test: str) -> pd.DataFrame:
    """A line per bimodal attack and threat at MANY: text part alone against image part alone, in the same model."""
    found = _parts(base, passes, test)
    return found[found["usual"] & (found["poison_rate"] == MANY)]


def text_overwhelms_learnable(base: Base, passes: int, test: str) -> pd.DataFrame:
    """The same of the cells, of any rate and patch, whose parts both reach HIGH when they are trained alone."""
    found = _parts(base, passes, test)
    return found[(found["text alone"] >= HIGH) & (found["image alone"] >= HIGH)]


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
    whole = lines[lines["half"] == ""]
    text_only, image_only = (whole[whole["condition"] == part] for part in ("text", "image"))
    found = text_only.merge(image_only[[*cell, *numbers]], on=cell, suffixes=("_text", "_image"))
    for part in ("text", "image"):
        alone = lines[(lines["half"] == part) & (lines["condition"] == part)]
        alone = alone[[*cell, "value", "n_seeds"]].rename(
            columns={"value": f"{part} alone", "n_seeds": f"n_seeds_{part} alone"})  # fmt: skip
        found = found.merge(alone, on=cell, how="left")
    found["difference"] = found["value_text"] - found["value_image"]
    found["low"] = found["low_text"] - found["high_image"]  # the widest that both intervals allow
    found["high"] = found["high_text"] - found["low_image"]
    found["n_seeds"] = found[["n_seeds_text", "n_seeds_image"]].min(axis=1)
    return found.assign(outcome=outcomes(found["low"] > DOMINATES, found["high"] < DOMINATES, found["n_seeds"]))


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
    told = evidence["outcome"]
    single = int((told == SINGLE).sum())
    told = told[told != SINGLE]
    early = single >= len(told) > 0
    if claim.tasks:
        by_task = told.groupby(evidence.loc[told.index, "threat"], sort=False)
        told = by_task.agg(lambda of_task: _majority(of_task, HOLDS, CONTRADICTS, OPEN))
    which = _majority(told, CONFIRMED, REFUTED, UNDECIDED) if len(told) else SINGLES if single else NOT_RUN
    which = EARLY if early else which
    holds, against = (int((told == outcome).sum()) for outcome in (HOLDS, CONTRADICTS))
    return Verdict(which, holds, against, len(told), single, evidence)


def _majority(told: pd.Series, for_it: str, against: str, neither: str) -> str:
    if (told == HOLDS).sum() * 2 > len(told):
        return for_it
    return against if (told == CONTRADICTS).sum() * 2 > len(told) else neither


def passes(base: Base) -> list[int]:
    """The numbers of passes that attacks with text were run with at RATE."""
    lines = base.full[base.full["usual"].astype(bool) & (base.full["poison_rate"] == RATE)]
    return sorted(set(lines.loc[lines["modality"] != "image", "epochs"])) or [1]
