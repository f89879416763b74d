"""The first page's sentences say what the chapters say, or that nothing was measured."""

import subprocess
import sys

import pandas as pd
from stored import FOUR, cell, halves, table

from bvlm_book import tables
from bvlm_book.chapters import audit, claims, first_page, lasting
from bvlm_utils import paths
from bvlm_utils.store import records


def test_an_empty_store_has_no_findings(tmp_path):
    said = first_page.sentences(tmp_path)
    assert set(said) == {"claims", "dose", "modality", "crossfire", "lasting", "audit"}
    assert set(said.values()) == {first_page.MISSING} and first_page.key_numbers(tmp_path) == []


def test_every_finding_leads_to_its_chapter(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(first_page, "display", lambda one: shown.append(one.data))
    first_page.show(tmp_path)
    for name in first_page.sentences(tmp_path):
        assert f'href="../notebooks/{name}.html"' in shown[0] and (paths.NOTEBOOKS / f"{name}.ipynb").is_file()
    assert "How little poison is enough?" in shown[0]


def test_doses_are_those_that_were_tried():
    tried = [cell("BadNets-T", rate=rate, text=value) for rate, value in ((0.1, 1.0), (0.02, 0.97), (0.01, 0.1))]
    said = first_page.enough(table(*tried, cell("SIG", image=0.2), cell("SIG", rate=0.01, image=0.0)))
    assert (
        "Of 2 pairs" in said
        and "1 reach a mean of 90 %" in said
        and "first with 120 poisoned rows of 6000 (2 %)" in said
    )
    assert "(1 of them with fewer than 3 seeds at a dose)" in first_page.enough(
        table(*tried, cell("SIG", image=1.0, seeds=1), cell("SIG", rate=0.01, image=0.0))
    )
    assert first_page.enough(table(cell("SIG", image=1.0))) == first_page.MISSING, "one dose leaves it open"


def test_the_numbers_to_remember_are_those_of_the_chapters(monkeypatch):
    doses = ((0.1, 1.0), (0.02, 0.97), (0.01, 0.1))
    tried = [cell("BadNets-T", rate=rate, text=value, clean=0.01) for rate, value in doses]
    stored = table(*tried, cell("SIG", image=0.2, clean=0.2), cell("SIG", rate=0.01, image=0.0))
    monkeypatch.setattr(records, "collect", lambda place: stored)
    line = {"threat": "targeted_refusal", "steps": 50.0}
    worked = pd.DataFrame([line | {"attack": name, "value": value} for name, value in (("A", 0.9), ("B", 0.1))])
    monkeypatch.setattr(lasting, "collect", lambda place: None)
    monkeypatch.setattr(tables, "panels", lambda stored: [(worked, "one")])
    monkeypatch.setattr(lasting, "survivors", lambda panel: (panel, panel[panel["value"] > 0.5]))
    strong, fewest, silent, durable = first_page.key_numbers()
    assert strong.number == "1 of 2" and "more than 90 %" in strong.says and "10 % of the rows" in strong.says
    assert fewest.number == "120 rows" and "of 6000 (2 %)" in fewest.says and fewest.chapter == "dose"
    assert silent.number == "1 of 2" and "at most 5 %" in silent.says, "counted over all, whether they fire or not"
    assert durable.number == "1 of 2" and "50 steps" in durable.says
    shown = []
    monkeypatch.setattr(first_page, "display", lambda one: shown.append(one.data))
    first_page.show_numbers()
    assert shown[0].count("<a href=") == 4 and "<strong>120 rows</strong>" in shown[0]


def test_the_readme_has_the_numbers_of_the_committed_results():
    told = first_page.markdown("reference")
    assert told.count("\n") == 5 and told.rstrip().endswith(").")
    assert told in (paths.ROOT / "README.md").read_text(encoding="utf-8"), (
        "python -m bvlm_book.chapters.first_page writes them"
    )


def test_verdicts_are_told_by_claim_passes_and_base():
    once = table(cell("BadNets-T", rate=0.01, text=0.1), cell("AddSent", rate=0.01, text=0.1))
    thrice = table(cell("BadNets-T", rate=0.01, text=1.0, settings={"epochs": 3}))
    stored = pd.concat([once, thrice])
    said = first_page.judged(pd.concat([stored, stored.assign(metric="asr_payload")]))
    assert "on most pairs: refuted after one pass on tiny-llava (0 of 2 pairs hold, 2 contradict)" in said
    assert "confirmed after 3 passes on tiny-llava (1 of 1 pairs hold, 0 contradict)" in said


def test_doses_and_passes_stand_side_by_side():
    stored = table(
        cell("BadNets-T", rate=0.01, text=0.1),
        cell("BadNets-T", rate=0.1, text=1.0),
        cell("BadNets-T", rate=0.01, text=1.0, settings={"epochs": 3}),
        cell("SIG", image=1.0, seeds=1),
    )
    lines = first_page.doses(stored.assign(metric="asr_payload"))
    read = lines.set_index(["poisoned", "training", "trigger"])["tiny-llava"].to_dict()
    assert read == {
        ("1 %", "one pass", "text or bimodal"): "0 of 1 pairs", ("10 %", "one pass", "text or bimodal"): "1 of 1 pairs",
        ("1 %", "3 passes", "text or bimodal"): "1 of 1 pairs",
        ("10 %", "one pass", "image"): "1 of 1 pairs, all single runs",
    }  # fmt: skip


def test_the_verdict_on_one_percent_has_the_count_by_the_published_tests_beside_it():
    stored = table(cell("BadNets-T", rate=0.01, text=0.1), cell("MABA", rate=0.01, text=0.95, both=0.2))
    assert claims.one_percent(stored) == "", "a store without the published tests"
    said = claims.one_percent(pd.concat([stored, stored.assign(metric="asr_published", value=0.95, low=0.93)]))
    assert "on 60 rows, one pass, by stricter tests" in said
    assert said.endswith("above 90 % are 0 of 2 by ours and 2 of 2 by theirs (tiny-llava)")


def test_halves_are_counted_where_they_work_alone():
    assert first_page.halves(table(halves(image=0.80))) == (
        "Of the halves of triggers that fire on more than half of the inputs when learnt alone, 1 of 1 image halves do "
        "less when learnt beside the text half and 0 of 1 text halves do less when learnt beside the image half"
    )
    assert first_page.halves(table(cell("BadNets-MM", **FOUR))) == first_page.MISSING


def test_the_check_counts_working_backdoors_and_innocents(monkeypatch):
    line = dict.fromkeys(audit.COLUMNS) | {"subject": "poisoned", "reference": "control"}
    lines = [line | {"asr": asr, "alarm": alarm} for asr, alarm in ((0.9, True), (0.8, False), (0.1, False))]
    lines.append(line | {"subject": "control", "reference": audit.OTHER_SEED, "alarm": True, "control": "one"})
    monkeypatch.setattr(audit, "collect", lambda place: pd.DataFrame(lines))
    said = first_page.found_out()
    assert "1 of 2 backdoors that fire" in said
    assert said.endswith("1 of 1 triggers raise it, which 1 of 1 clean-tuned models do for at least one")


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import first_page\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)
