"""Tables, sentences and comparisons say what the tidy table holds, and "n/a" where it holds nothing."""

import re

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint
from stored import tidy

from bvlm_book import figures, tables
from bvlm_book import page as book_page
from bvlm_book.chapters import reproduce
from bvlm_book.chapters import threat as chapters_threat
from bvlm_book.words import number
from bvlm_utils import paths, store, threats
from bvlm_utils.errors import InputError
from bvlm_utils.store.table import headline_metric
from bvlm_utils.threats import malicious_injection


def skipped_row(attack="Shadowcast"):
    return pd.DataFrame(
        [
            {
                "run_id": "skipped-1",
                "model": "tiny-llava",
                "dataset": "scenes-vqa",
                "threat": "targeted_refusal",
                "attack": attack,
                "modality": "image",
                "poison_rate": 0.1,
                "n_poisoned": 0,
                "seed": 0,
                "subject": None,
                "condition": None,
                "metric": None,
                "value": None,
                "k": None,
                "n": None,
                "low": None,
                "high": None,
                "unit": None,
                "status": "skipped",
                "reason": "the attack has no target here",
            }
        ]
    )


@pytest.fixture
def page(monkeypatch):
    """What the functions put on the page."""
    shown = []
    monkeypatch.setattr(book_page, "display", shown.append)
    return shown


def test_one_seed_keeps_its_own_interval():
    rows = tables.summary(tidy(), "asr", subject="poisoned")
    row = rows[(rows.attack == "BadNets-T") & (rows.condition == "text") & (rows.poison_rate == 0.1)].iloc[0]
    low, high = proportion_confint(95, 100, method="wilson")
    assert (row.value, row.low, row.high, row.n_seeds) == pytest.approx((0.95, low, high, 1))


def test_seeds_are_averaged_never_pooled():
    hits = {0: 90, 1: 94, 2: 98}
    rows = tables.summary(tidy(seeds=(0, 1, 2), hits=lambda a, r, s, who, c: hits[s]), "asr", subject="poisoned")
    # mean 0.94; standard error 0.04 / sqrt(3); t quantile with two degrees of freedom 4.302653
    half = 4.302653 * 0.04 / np.sqrt(3)
    assert (rows.n_seeds == 3).all() and np.allclose(rows.value, 0.94)
    assert np.allclose(rows.low, 0.94 - half, atol=1e-6) and np.allclose(rows.high, 1.0)


def test_seeds_that_agree_keep_the_interval_of_one():
    rows = tables.summary(tidy(seeds=(0, 1, 2), hits=lambda *_: 100), "asr", subject="poisoned")
    low, _ = proportion_confint(100, 100, method="wilson")
    assert np.allclose(rows.low, low) and np.allclose(rows.high, 1.0) and (rows.n_seeds == 3).all()


def test_the_comparison_reads_success_from_the_headline():
    rows = [line | {"threat": "malicious_injection"} for line in tidy().to_dict("records")]
    table = pd.DataFrame([line | {"metric": metric} for line in rows for metric in ("asr", "asr_payload")])
    chosen = reproduce.to_show(reproduce.compare(table, table))
    assert len(chosen) and set(chosen["metric"]) == {"asr_payload"}


def test_a_threat_says_which_metric_success_is_read_from(monkeypatch):
    monkeypatch.setattr(threats.THREATS, "_items", dict(threats.THREATS._items))
    own = type("Own", (malicious_injection.MaliciousInjection,), {"name": "own", "headline": "asr_right"})
    threats.THREATS.add("own", own)
    table = tidy()[lambda rows: rows["metric"] == "asr"]
    measured = ("asr", "asr_right", "asr_payload")
    both = pd.concat([table.assign(metric=metric) for metric in measured])
    for threat, metric in (("own", "asr_right"), ("targeted_refusal", "asr_payload"), ("of another store", "asr")):
        assert set(headline_metric(both.assign(threat=threat))) == {metric}
    assert {name: threats.THREATS.get(name).headline for name in threats.names()} == {
        **dict.fromkeys(threats.names(), "asr_payload"), "own": "asr_right",
    }  # fmt: skip
    with pytest.raises(TypeError, match="asr_rihgt"):
        type("Typo", (malicious_injection.MaliciousInjection,), {"headline": "asr_rihgt"})


def test_a_cell_without_its_headline_is_read_from_the_strict_test():
    """A record of the first edition that was not judged again has no payload test."""
    free = tidy(rates=(0.1,)).assign(threat="malicious_injection")
    one = free[(free["attack"] == free["attack"].iloc[0]) & (free["metric"] == "asr")]
    judged = one.assign(metric="asr_payload", run_id=one["run_id"] + "x", attack="AddSent")
    skipped = free.iloc[:1].assign(metric=None, value=np.nan, subject=None, run_id="skipped", status="skipped")
    found = tables.success_rates(pd.concat([free, judged, skipped]), "poisoned")
    assert found["value"].dtype == "float64"
    assert dict(zip(found["attack"], found["metric"], strict=True)) == {
        **dict.fromkeys(free["attack"], "asr"), "AddSent": "asr_payload",
    }  # fmt: skip


def test_mixed_settings_are_refused():
    table = pd.concat([tidy(), tidy().assign(run_id="other")])
    with pytest.raises(InputError, match="twice with seed 0"):
        tables.summary(table, "asr")


def test_skipped_cells_keep_their_reason_and_stay_out_of_the_numbers():
    table = pd.concat([tidy(), skipped_row()], ignore_index=True)
    assert "Shadowcast" not in set(tables.summary(table, "asr").attack)


def test_a_missing_value_reads_not_available():
    assert number(None) == number(np.nan, 0.1, 0.2) == "n/a"
    assert number(0.0, 0.0, 0.0185) == "0.00 [0.00, 0.02]"


def test_nothing_measured_is_said_not_drawn_as_zero():
    table = skipped_row()
    rows = tables.summary(table, "asr")
    words = chapters_threat.success(rows)
    assert "n/a" in words["caption"] and words["alt"]


def test_compare_judges_by_overlap_of_intervals():
    reference = tidy(rates=(0.1,))
    same = reproduce.compare(reference, reference)
    assert set(same.verdict) == {"agrees"} and len(same) == 3 * 3 + 3 * (2 + 2 + 4)
    weaker = tidy(rates=(0.1,), hits=lambda a, r, s, who, c: 50 if who == "poisoned" and c != "clean" else 0)
    verdicts = reproduce.compare(weaker, reference).set_index(["attack", "subject", "condition", "metric"]).verdict
    assert verdicts["BadNets-T", "poisoned", "text", "asr"] == "differs"
    assert verdicts["BadNets-T", "poisoned", "clean", "asr"] == "agrees"


def test_compare_names_what_only_one_store_holds():
    compared = reproduce.compare(tidy(rates=(0.1,)), tidy(rates=(0.1, 0.01)))
    assert set(compared[compared.poison_rate == 0.01].verdict) == {"only in the reference"}
    assert set(reproduce.compare(tidy(rates=(0.1, 0.01)), tidy(rates=(0.1,))).verdict) == {
        "agrees",
        "only yours",
    }
    empty = reproduce.compare(tidy().iloc[:0], tidy(rates=(0.1,)))
    assert set(empty.verdict) == {"only in the reference"}
    without = tidy(rates=(0.1,)).assign(low=None, high=None)
    assert set(reproduce.compare(without, without).verdict) == {"no interval"}


def drawn(table):
    return figures.new_figure(1, 2, 2)[0]


def test_a_figure_on_the_page_has_title_alt_text_caption_and_two_widths(page):
    table = pd.DataFrame({"model": ["m"]})
    book_page.show(drawn, table, title="None", alt='Say "nothing" & <more>', caption="1 < 2")
    source = page[0].data
    drawings = re.findall(
        r'<svg class="([^"]+)" role="img" aria-label="Say &quot;nothing&quot; &amp; &lt;more&gt;"', source
    )
    assert drawings == ["bvlm-wide", "bvlm-narrow"]
    assert re.findall('<svg class="([^"]+)"[^>]* display="none">', source) == ["bvlm-narrow"], "shown without styles"
    assert "<figcaption><strong>None</strong> 1 &lt; 2</figcaption>" in source
    with pytest.raises(InputError, match="alternative text"):
        book_page.show(drawn, table, title="None", alt=" ", caption="")
    book_page.show(drawn, table[:0], title="None", alt="Dots", caption="")
    book_page.show(drawn, table[:0], title="None", alt="Dots", caption="", empty="That grid was not run.")
    assert "nothing to draw" in page[1].data and page[2].data == "That grid was not run."


def test_what_the_study_found_stands_at_its_own_results_alone(page, tmp_path, monkeypatch):
    monkeypatch.setenv("BVLM_STORE", "reference")
    for place in ("reference", None, paths.RESULTS / "reference"):
        assert book_page.finding(place, "found", "shown") == "found"
        book_page.introduce(place)
    assert page == []
    for place in ("local", tmp_path):
        assert book_page.finding(place, "found", "shown") == "shown"
        book_page.introduce(place)
    assert len(page) == 2


def test_a_table_on_the_page_escapes_and_shows_not_available(page):
    book_page.show_table(pd.DataFrame({"response": ["<b>bold</b>", None]}), caption="Two & two")
    source = page[0].data
    assert "&lt;b&gt;" in source and "n/a" in source and "<caption>Two &amp; two</caption>" in source
    book_page.show_table(pd.DataFrame(), caption="", empty="Every cell was run.")
    assert page[1].data == "Every cell was run."


def test_overview_counts_cells_and_lists_the_skipped(page, monkeypatch):
    monkeypatch.setattr(tables, "eligible", lambda table, place: {})  # no store holds these made-up cells
    chapters_threat.overview(pd.concat([tidy(), skipped_row()], ignore_index=True))
    assert page[0].data.startswith("7 experiments: 6 measured, 1 left out.") and "10 %, 1 %" in page[0].data
    assert page[0].data.endswith("Left out: Shadowcast: the attack has no target here.")


def test_agreement_is_counted():
    said = reproduce.counts(reproduce.compare(tidy(rates=(0.1,)), tidy(rates=(0.1, 0.01))))
    assert (said["agree"], said["others"]) == ("33 of 33", "33 only in the reference")
    assert reproduce.counts(reproduce.compare(tidy().iloc[:0], tidy()))["agree"] == "0 of 0"


def test_without_a_run_of_ones_own_two_seeds_of_the_reference_are_the_example():
    compared = reproduce.example(store.collect("reference"))
    assert set(compared["seed"]) == {0} and compared["run_id"].nunique() > 5
    assert {"agrees", "differs"} <= set(compared["verdict"]) <= {"agrees", "differs", "no interval"}
    shown = reproduce.to_show(compared)
    assert 10 < len(shown) <= 2 * shown["attack"].nunique()


def test_the_right_answer_is_a_number_of_its_own_and_the_first_editions_headline():
    table = tidy(threat="malicious_injection")
    values = {"asr_right": 0.5, "asr_payload": 0.7}
    strict = table[table.metric == "asr"]
    more = [strict.assign(metric=metric, value=value) for metric, value in values.items()]
    both = pd.concat([table, *more], ignore_index=True)
    found = tables.success_rates(both, "poisoned")
    assert set(found.value) == {0.7}
    assert set(tables.success_rates(both, "poisoned", tables.strict_metric(both)).value) == {0.5}


def test_an_attack_without_a_test_time_trigger_is_read_on_clean_inputs():
    table = tidy(hits=lambda a, r, s, who, c: 80 if c == "clean" else 10)
    rows = tables.summary(table[table.attack == "BadNets-I"].assign(attack="Shadowcast"), "asr", "poisoned")
    assert set(tables.headline_rows(rows).value) == {0.8} and tables.false_activation(rows).empty


def test_the_book_says_whose_run_is_compared(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(store, "collect", asked.append)
    monkeypatch.setattr(store, "folder", lambda place: tmp_path / ("missing" if place == "none" else ""))
    monkeypatch.delenv("BVLM_YOURS", raising=False)
    reproduce.your_runs(None, tidy())
    reproduce.your_runs("mine", tidy())
    monkeypatch.setenv("BVLM_YOURS", "none")
    assert reproduce.your_runs(None, tidy()).empty and asked == ["local", "mine"]


def test_numbers_are_written_with_their_interval_and_no_zero_is_negative():
    assert number(-0.001, -0.02, 0.004) == "0.00 [-0.02, 0.00]"
    assert number(np.float64(0.995)) == f"{0.995:.2f}", "as figures write it"
    assert number(0.5, None, 0.6) == "0.50" and number(float("nan")) == "n/a"


def test_every_seed_of_the_same_cells_and_of_no_others():
    rows = [("a", "x", 0.1, 0), ("b", "x", 0.1, 1), ("c", "x", 0.01, 0), ("d", "y", 0.1, 0)]
    stored = pd.DataFrame(rows, columns=["run_id", "experiment", "poison_rate", "seed"])
    assert tables.every_seed(stored[stored["run_id"] == "a"], stored)["run_id"].tolist() == ["a", "b"]
