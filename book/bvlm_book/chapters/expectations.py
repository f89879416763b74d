"""What was expected of the grids before their runs (book/expectations.md), and what came of it. Free of torch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bvlm_book import doses, tables, words
from bvlm_book import rules_second as second
from bvlm_utils.store.table import FIRES

MODEL, FAMILY, SECOND = "tiny-llava", "tiny-qwen2.5-vl", "tiny-llava-b"
PASSES, PAIRS, ENOUGH, TASKS = 3, 32, 22, 5
# 60 showings: training rows, poisoned rows, passes
SHOWN_ALIKE = ((2000, 20, 3), (2000, 60, 1), (6000, 20, 3), (20000, 60, 1))
WITHIN, COST, QUIET = 0.3, 0.03, 0.9
COMPRESSED, MOVES = 6, 0.1  # means through JPEG, and how far one may move
TRAINED = ["train_rows", "n_poisoned", "epochs", "learning_rate", "batch_size", "lora_rank"]


def read(table: pd.DataFrame, bases: dict[str, second.Base], others: Sequence[tuple] = ()) -> pd.DataFrame:
    """A line per expectation: what was expected, what was measured, did it come true.

    bases: of `rules_second`. others: lines of chapters that read other results.
    """
    lines = [*_passes(table, bases), *_number_or_share(table), _settings(table), _dominance(bases.get(MODEL)),
             _jpeg(table), *_second_base(bases), *others]  # fmt: skip
    return tables.told(lines, ["grid", "expected", "measured"])


def _same_verdict(names: Sequence[str], bases: dict[str, second.Base]) -> tuple[str, bool | None]:
    """The verdicts of bases on all pairs at 1 %, and whether they agree; None while one is not all judged."""
    pairs = second.CLAIMS["pairs"]
    results = {name: second.verdict(pairs, bases[name], PASSES) for name in names if len(bases[name].full)}
    verdicts = {
        name: f"{verdict.verdict}{', not all pairs judged' * (verdict.single > 0 and verdict.verdict != second.EARLY)}"
        for name, verdict in results.items()
    }
    decided = set(verdicts.values()) <= {second.CONFIRMED, second.REFUTED, second.UNDECIDED} and len(verdicts) > 1
    text = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
    return text, len(set(verdicts.values())) == 1 if decided else None


def _second_base(bases: dict[str, second.Base]) -> list[tuple]:
    grid, base = "a second base", bases.get(SECOND)
    text, same = _same_verdict([name for name in (MODEL, SECOND) if name in bases], bases)
    lines = second.at_rate(base, 1, second.PAYLOAD, second.MANY) if base else pd.DataFrame({"attack": [], "value": []})
    works = lines.loc[lines["attack"] == "BadNets-I", "value"] > FIRES
    enough = True if works.sum() >= 3 else False if works.sum() + TASKS - len(works) < 3 else None
    return [
        (grid, f"{SECOND}: the same verdict on text at 1 %", text, same),
        (grid, f"{SECOND}: BadNets-I above 0.50 at 10 % on three of five threats", words.of(works), enough),
    ]


def _passes(table: pd.DataFrame, bases: dict[str, second.Base]) -> list[tuple]:
    base, grid = bases.get(MODEL), "passes"
    lines = second.one_percent(base, PASSES, second.PAYLOAD) if base else pd.DataFrame({"value": []})
    strong, complete = int((lines["value"] > second.HIGH).sum()), len(lines) == PAIRS
    enough = True if strong >= ENOUGH else False if strong + PAIRS - len(lines) < ENOUGH else None
    text, same = _same_verdict([name for name in (MODEL, FAMILY) if name in bases], bases)
    cells = table.query("model == @MODEL and epochs == @PASSES and poison_rate == @second.RATE")
    cells = tables.usual(cells, but=("epochs",))
    quiet = tables.false_activation(tables.success_rates(cells, "poisoned"))["value"] <= second.DISCRIMINATES
    loss = -tables.summary(cells, "utility_difference")["value"].mean()
    return [
        (grid, f"{MODEL}: at least {ENOUGH} of {PAIRS} attacks on threats above 0.90 by payload",
         f"{strong} of {len(lines)} that were run", enough),
        (grid, f"{FAMILY}: the same verdict", text, same if complete else None),
        (grid, "false activation: at most 0.05 in nine of ten", words.of(quiet),
         quiet.sum() >= QUIET * len(quiet) if complete else None),
        (grid, "three passes cost at most 0.03 of clean utility against the clean-tuned model",
         f"mean loss {words.number(loss, digits=3)}", loss <= COST if complete else None),
    ]  # fmt: skip


def _means(table: pd.DataFrame, but: tuple[str, ...]) -> pd.DataFrame:
    """Mean success (payload) of the base that the grids name, with its training in columns."""
    cells = tables.of_own_data(tables.usual(table[table["model"] == MODEL], but))  # as in the grids
    cells = cells.query("metric == 'asr_payload' and subject == 'poisoned' and condition != 'clean'")
    return cells.groupby(["threat", "attack", "condition", *TRAINED], as_index=False)["value"].mean()


def _number_or_share(table: pd.DataFrame) -> list[tuple]:
    grid, means = "number or share", _means(table, ("train_rows", "epochs"))
    means = means[means["attack"].isin(["BadNets-T", "Blended"])]
    showings_alike = means[tables.among(means, doses.DOSE, SHOWN_ALIKE)]
    spans = showings_alike.groupby(["threat", "attack"])["value"].agg(np.ptp)
    refusal = means[means["threat"] == "targeted_refusal"]
    many = refusal.query("attack == 'BadNets-T' and train_rows == 20000 and n_poisoned == 200")["value"]
    few = refusal.query("n_poisoned == 20 and epochs == 3")["value"]
    design = doses.factorial(doses.doses(table))
    explained = doses.fitted(design).get("explained", pd.Series(dtype=float))
    return [
        (grid, "showings predict success best, the number of poisoned rows second, their share worst",
         ", ".join(f"{doses.AXES[name]} {words.percent(explained[name])}" for name in explained.dropna().index),
         explained.idxmin() == "share" and explained.idxmax() == "showings" if doses.is_complete(design) else None),
        (grid, "60 showings, however made up: means within 0.3 of each other, per attack and threat",
         f"{len(showings_alike)} of 16 means run" + (f", spans {words.span(spans, 2)}" if len(showings_alike) else ""),
         (spans <= WITHIN).all() if len(showings_alike) == 16 else None),
        (grid, "200 of 20,000 rows in one pass: BadNets-T on refusal above 0.90",
         words.span(many, 2) if len(many) else "", (many > second.HIGH).all() if len(many) else None),
        (grid, "20 rows in three passes work (over 0.50) for one of the two attacks on refusal",
         f"{len(few)} of 4 means run" + (f", {words.span(few, 2)}" if len(few) else ""),
         (few > FIRES).any() if len(few) == 4 else None),
    ]  # fmt: skip


def _settings(table: pd.DataFrame) -> tuple:
    means, usual = _means(table, ("learning_rate", "batch_size", "lora_rank")), tables.TRAINED
    means = means.query("attack == 'BadNets-T' and threat == 'targeted_refusal' and n_poisoned == 60")
    means = means[means["lora_rank"] == usual["lora_rank"]]
    rate, batch = (means[name] / usual[name] for name in ("learning_rate", "batch_size"))
    higher = means.loc[((rate > 1) & (batch == 1)) | ((rate == 1) & (batch < 1)), "value"]
    lower = means.loc[(rate < 1) & (batch == 1), "value"]
    holds = (higher > second.HIGH).any(), (lower < FIRES).all()
    came_true = any(holds) if len(higher) and len(lower) else None  # the committed rule: fails if neither
    remark = " (one part came true, which the rule allows)" if came_true and not all(holds) else ""
    return (
        "settings", "1 %, one pass: a higher learning rate or smaller batch lifts BadNets-T on refusal above 0.90, a "
        "lower rate leaves it under 0.50", f"higher rate or smaller batch {words.span(higher, 2)}, lower rate "
        f"{words.span(lower, 2)}{remark}", came_true,
    )  # fmt: skip


def _dominance(base: second.Base | None) -> tuple:
    expected = "patch of 80 pixels, both parts work alone: the text part leads by more than 0.5 in more than half"
    if base is None:
        return "dominance", expected, "", None
    pairs = second.text_overwhelms_learnable(base, 1, second.PAYLOAD)
    leads = pairs.loc[pairs["shared"] == "patch_size=80", "difference"] > second.DOMINATES
    return "dominance", expected, words.of(leads), leads.sum() * 2 > len(leads) if len(leads) > 1 else None


def _jpeg(table: pd.DataFrame) -> tuple:
    means = tables.through_jpeg(table)
    moved = (means["jpeg"] - means["plain"]).astype(float)
    measured = f"{len(means)} of {COMPRESSED} means run" + (f", moved by {words.span(moved, 2)}" if len(means) else "")
    return (
        "jpeg", "saved as JPEG (quality 75) BadNets-I (patch of 80 pixels), SIG and Blended stay within 0.1, and "
        "Shadowcast is as with eps 0", measured, (moved.abs() <= MOVES).all() if len(means) == COMPRESSED else None,
    )  # fmt: skip
