"""The first page says what the store holds, and says so when it holds nothing."""

import pandas as pd
import pytest
from stored import tidy

from bvlm_book.chapters import first_page


@pytest.fixture
def table():
    frame = tidy(
        hits=lambda a, r, s, subject, c: {0.1: 99, 0.01: 40}[r] if subject == "poisoned" and c != "clean" else 1
    )
    frame["negatives"] = 0.0
    frame["settings"] = ""
    return frame


def test_the_headline_is_the_full_trigger_at_the_highest_rate(table):
    rows = first_page.overview_rows(table)
    assert set(rows["poison_rate"]) == {0.1} and set(rows["subject"]) == {"poisoned"}
    assert dict(zip(rows["attack"], rows["condition"], strict=True)) == {
        "BadNets-T": "text", "BadNets-I": "image", "BadNets-MM": "both",
    }  # fmt: skip


def test_the_sentences_count_what_is_strong_and_what_fires_by_itself(table):
    said = first_page.overview_sentences(table)
    assert "With 10 % of the training rows poisoned, 3 of 3 pairs" in said and "more than 90 %" in said
    assert "0.99 [0.95, 1.00]" in said
    assert "fire on at most 0.01 [0.00, 0.05]" in said


def test_a_weak_attack_is_not_called_strong(table):
    weak = table[table["poison_rate"] == 0.01]
    assert "0 of 3 pairs" in first_page.overview_sentences(weak)


def test_cells_with_negatives_and_skipped_ones_are_left_out(table):
    other = table[table["attack"] == "BadNets-MM"].assign(negatives=1.0, run_id="other")
    skipped = table.iloc[:1].assign(status="skipped", value=None, attack="MABA")
    rows = first_page.overview_rows(pd.concat([table, other, skipped]))
    assert len(rows) == 3 and "MABA" not in set(rows["attack"])


def test_the_figure_has_a_field_for_every_pair_and_words_for_it(table):
    rows = first_page.overview_rows(table)
    figure = first_page.overview(rows)
    columns, lines = figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in columns] == ["BadNets-T", "BadNets-I", "BadNets-MM"]
    assert [label.get_text() for label in lines] == ["targeted refusal"]
    words = first_page.overview_words(rows)
    assert "3 attacks" in words["alt"] and "1 seed, 100 inputs each" in words["caption"]


def test_the_caption_does_not_lend_the_seeds_of_a_few_pairs_to_all(table):
    again = table[table["attack"] == "BadNets-T"]
    more = [again.assign(seed=seed, run_id=again["run_id"] + f"-{seed}") for seed in (1, 2)]
    words = first_page.overview_words(first_page.overview_rows(pd.concat([table, *more])))
    assert "1 to 3 seeds, 100 inputs each" in words["caption"]


def test_an_empty_store_is_said_to_be_empty(table):
    none = table.iloc[:0]
    assert "Nothing has been measured yet" in first_page.overview_sentences(none)
    assert first_page.overview_rows(none).empty and first_page.overview(first_page.overview_rows(none)).axes
    assert "nothing" in first_page.overview_words(first_page.overview_rows(none))["alt"]
