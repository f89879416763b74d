"""Published numbers stand beside ours of the same attacks, modality and defence, and nothing else."""

import pandas as pd
import pytest

from bvlm_book.chapters import related_work
from bvlm_utils import attacks, defences


@pytest.fixture
def rows():
    own = [("AddSent", "text", "clean-fine-tuning", 0, 0.2), ("BadNets-T", "text", "clean-fine-tuning", 0, 0.4),
           ("Blended", "image", "clean-fine-tuning", 0, 0.9), ("MABA", "bimodal", "clean-fine-tuning", 0, 0.9),
           ("SIG", "image", "restore", 0, 0.9), ("SIG", "image", "restore", 1, 0.1)]  # fmt: skip
    made = pd.DataFrame(own, columns=["attack", "modality", "named", "placebo", "value"])
    return made.assign(run_id=made["attack"], asr_before=[0.8, 1.0, 0.9, 0.9, 0.7, 0.7])


def test_ours_is_the_mean_and_range_of_the_same_kind(rows):
    found = related_work.beside_published(rows).set_index("success rate with")
    assert found.loc["no defence", "ours"] == "85 % (70 to 100 %)", "each experiment once; MABA is not among their six"
    tuned = found.loc["clean tuning, text triggers"]
    assert (tuned["ours"], tuned["our experiments"]) == ("30 % (20 to 40 %)", 2)
    assert found.loc["random channels restored (a placebo)", "ours"].startswith("10 %")
    assert found.loc["weights rounded to 4 bits", "ours"] == "not run"


def test_unusual_settings_stay_out(rows):
    found = related_work.beside_published(rows.assign(named=rows["named"] + " (steps 9)")).set_index(
        "success rate with"
    )
    assert set(found.drop("no defence")["ours"]) == {"not run"}


def test_what_is_compared_exists():
    assert set(related_work.SIX) <= set(attacks.names())
    assert set(related_work.PUBLISHED["defence"]) - {""} <= set(defences.names())
