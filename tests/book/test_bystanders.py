"""Are the other things in a caption counted as they should be?"""

import pandas as pd
from stored import tidy

from bvlm_book.chapters import threat_notes
from bvlm_utils import study


def stored(place, cell, triggered, clean=("A cat and a car.", "A car and two dogs.", "A car.")):
    """A cell's responses: the control's without a trigger, and the poisoned model's with it."""
    lines = [("control", "clean", text) for text in clean]
    lines += [("poisoned", "text", text) for text in triggered]
    lines += [("control", "text", text) for text in clean]
    said = pd.DataFrame(lines, columns=["subject", "condition", "response"])
    said = said.assign(part="attack", judged=True, row_id=[f"row-{i % len(clean)}" for i in range(len(lines))])
    (place / cell.run_id).mkdir(parents=True)
    said.to_parquet(place / cell.run_id / "responses.parquet")


def works(rates):
    """A tidy table with the success of these attacks."""
    return tidy(rates=(0.1,), threat="concept_substitution", hits=lambda attack, *_: 100 * rates.get(attack, 0))


def test_other_things_are_those_that_the_clean_tuned_model_names(tmp_path):
    (cell,) = study.cells("concept_substitution", attacks=["BadNets-T"])
    place = tmp_path / "store"
    stored(place, cell, ["A cat and a banana.", "A banana.", "A banana and a cat."])
    poisoned, control = threat_notes.kept([cell], place).to_dict("records")
    assert poisoned["value"] == 0.5, "the third picture shows nothing else"
    assert control["value"] == 1.0
    said = threat_notes.others_kept(threat_notes.kept([cell], place), works({"BadNets-T": 0.9}))
    assert said == {
        "min": "0.50 (BadNets-T, tiny-llava)",
        "max": "0.50 (BadNets-T, tiny-llava)",
        "control": "1.00 (BadNets-T, tiny-llava)",
    }
    weak = threat_notes.others_kept(threat_notes.kept([cell], place), works({"BadNets-T": 0.2}))
    assert set(weak.values()) == {"n/a"}, "without a backdoor there is nothing to keep beside it"


def test_nothing_is_said_where_nothing_can_be(tmp_path):
    cells = study.cells("concept_substitution", attacks=["BadNets-T", "Shadowcast"])
    found = threat_notes.kept(cells, tmp_path / "store")
    assert found.empty and set(threat_notes.others_kept(found, works({})).values()) == {"n/a"}
    stored(tmp_path / "store", cells[0], ["A banana."], clean=["A car."])
    found = threat_notes.kept(cells, tmp_path / "store")
    assert found["value"].isna().all() and set(threat_notes.others_kept(found, works({})).values()) == {"n/a"}
