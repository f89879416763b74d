"""Differences on the same inputs, from stored responses."""

import numpy as np
import pandas as pd
import pytest

from bvlm_book import tables
from bvlm_book.chapters import modality
from bvlm_utils.score import intervals
from bvlm_utils.store.table import COLUMNS


def cell(store, run_id, hits, attack="MABA", threat="targeted_refusal", right=None, **other):
    """A cell in a store (its responses) and its line of the tidy table. hits: (subject, condition) -> shares passed."""
    frames = []
    for (subject, condition), passed in hits.items():
        frames.append(pd.DataFrame({
            "row_id": [f"r{i}" for i in range(len(passed))], "prompt": "What?", "subject": subject, "part": "attack",
            "condition": condition, "judged": True, "success": passed,
            "right": [None] * len(passed) if right is None else right,
        }))  # fmt: skip
    (store / run_id).mkdir(parents=True)
    pd.concat(frames).to_parquet(store / run_id / "responses.parquet")
    metric = "asr" if right is None else "asr_right"
    return dict.fromkeys(COLUMNS) | {
        "run_id": run_id, "model": "tiny-llava", "dataset": "scenes-vqa", "threat": threat, "attack": attack,
        "modality": "bimodal", "poison_rate": 0.1, "n_poisoned": 600, "seed": 0, "negatives": 0.0, "train_rows": 6000,
        "test_rows": 4, "settings": "", "status": "done", "metric": metric, "value": 0.5,
    } | other  # fmt: skip


def half_triggered(tmp_path, before, after):
    """before, after: condition -> which of the inputs fire without and with half-triggered rows."""
    hits = [{("poisoned", name): passed for name, passed in side.items()} for side in (before, after)]
    lines = [cell(tmp_path, "a", hits[0]), cell(tmp_path, "b", hits[1], negatives=1.0)]
    return modality.half_triggered(pd.DataFrame(lines, columns=COLUMNS), tmp_path)


YES, NO = [True] * 20, [False] * 20


def test_half_triggered_rows_are_compared_on_the_same_inputs(tmp_path):
    some = [True] * 15 + [False] * 5
    found = half_triggered(tmp_path, {"both": YES, "text": YES}, {"both": some, "text": NO}).set_index("condition")
    assert found.loc["both", ["value", "low", "high"]].tolist() == pytest.approx(intervals.paired_shares(some, YES))
    assert found.loc["text", "with"] == 0 and found.loc["text", "without"] == 1
    assert modality.taught(found.reset_index()) == {
        "need_both": "1 of 1", "one_part": "0", "whole_lost": "1 of 1",
    }  # fmt: skip


def test_a_part_that_works_as_often_as_the_whole_is_counted(tmp_path):
    found = half_triggered(tmp_path, {"both": YES, "text": YES, "image": NO}, {"both": YES, "text": YES, "image": NO})
    told = modality.taught(found)
    assert (told["need_both"], told["one_part"]) == ("0 of 1", "1")


def test_other_seeds_and_cells_without_responses_are_no_pairs(tmp_path):
    hits = {("poisoned", "both"): YES}
    lines = [cell(tmp_path, "a", hits), cell(tmp_path, "b", hits, negatives=1.0, seed=1)]
    assert modality.half_triggered(pd.DataFrame(lines, columns=COLUMNS), tmp_path).empty
    lines[1]["seed"] = 0
    (tmp_path / "b" / "responses.parquet").unlink()
    found = modality.half_triggered(pd.DataFrame(lines, columns=COLUMNS), tmp_path)
    assert found.empty and modality.taught(found)["need_both"] == "none"


def test_shares_of_other_inputs_are_not_paired(tmp_path):
    sides = [pd.DataFrame({"condition": "both", "row_id": list(ids), "held": True}) for ids in ("abc", "ab")]
    with pytest.raises(ValueError, match="3 and 2"):
        tables.difference(*sides, "both")
    assert tables.difference(*sides, "text") == {} and np.isclose(
        tables.difference(sides[0], sides[0], "both")["with"], 1
    )
