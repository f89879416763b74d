"""A model with training settings of its own, as `paper.yml` gives the large ones, is read, judged and shown."""

import pandas as pd
import pytest
import stored
from stored import page

from bvlm_book import doses, rules_second, tables
from bvlm_book import page as book_page
from bvlm_book.chapters import claims, dose, first_page, modality
from bvlm_utils import store, study

random_words = stored.random_words  # a fixture
OWN = {"learning_rate": 0.0002, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def shelf(random_words, tmp_path_factory):
    """A store with the cells of a model that no card knows, all with another learning rate than the study's."""
    place = tmp_path_factory.mktemp("store") / "s"
    cells = [
        cell for attack, rate in (("BadNets-T", 0.01), ("BadNets-MM", 0.1))
        for cell in study.cells("targeted_refusal", random_words, attacks=[attack], poison_rates=[rate], seeds=[0, 1],
                                train_rows=100, test_rows=3, batch_size=50, **OWN)
    ]  # fmt: skip
    study.run_cells(cells, place)
    return place, "llava", store.collect(place)


def test_its_cells_are_usual_and_get_verdicts(shelf):
    _, model, table = shelf
    assert tables.usual(table)["run_id"].nunique() == 4
    base = rules_second.base(table, model)
    pairs = rules_second.CLAIMS["pairs"]
    assert rules_second.verdict(pairs, base).judged == 1
    assert claims.verdict_table(["pairs"], {model: base})["counted"].tolist() == [f"{model}, one pass"]
    assert set(tables.with_settings(table)["settings"]) == {""}
    assert len(modality.plain(modality.four_cells(tables.with_settings(table)))) == 1
    plain = rules_second.CLAIMS["dominance"]
    assert rules_second.verdict(plain, base).judged == 1


def test_a_cell_with_the_declared_settings_is_told_from_those_with_its_own(shelf):
    _, model, table = shelf
    usual = tables.TRAINED
    (run, *_) = table["run_id"].unique()
    declared = table[table["run_id"] == run].assign(run_id="declared", settings="", **{
        name: usual[name] for name in ("learning_rate", "batch_size", "max_new_tokens")
    })  # fmt: skip
    found = tables.with_settings(pd.concat([table, declared], ignore_index=True))
    other = f"learning_rate={usual['learning_rate']}, max_new_tokens={usual['max_new_tokens']}"
    assert set(found["settings"]) == {"", f"batch_size={usual['batch_size']}, {other}"}


def test_its_doses_are_counted_in_all_their_forms(shelf):
    place, model, table = shelf
    eligible = tables.eligible(table, place)
    lines = dose.with_eligible(doses.doses(table), eligible)
    found = dose.means(lines)
    assert set(found["model"]) == {model} and len(found) == 2 and (found["least"] <= found["most"]).all()
    assert len(lines) == 4 and set(lines["n_poisoned"]) == {10, 1}
    (count,) = eligible.values()
    assert (lines["of_eligible"] == lines["n_poisoned"] / count).all() and count <= 100
    assert set(lines["share"]) == {0.1, 0.01} and (lines["showings"] == lines["n_poisoned"]).all()


def test_the_pages_show_it_and_none_of_the_studys_findings(shelf, capsys, monkeypatch):
    place, model, table = shelf
    findings, finding = [], book_page.finding
    monkeypatch.setattr(book_page, "finding", lambda at, text, other: findings.append(text) or finding(at, text, other))
    monkeypatch.setattr(book_page, "introduce", lambda at: book_page.say(f"These are results of {at}."))
    shown = {name: page(name, place, capsys) for name in ("claims", "modality", "dose")}
    assert model in shown["claims"] and model in shown["modality"]
    assert "bvlm-figure" not in shown["dose"], "one number of rows is no curve"
    assert len(findings) == 8
    for text in shown.values():
        assert not [found for found in findings if found in text]
        assert text.startswith(f"These are results of {place}."), "before anything else"
    assert set(first_page.means(table)["model"]) == {model}
