"""Cells that cannot be run, runs that fail and runs that are killed: each says why, and what is done stays."""

import json

import pandas as pd
import pytest
from small import SMALL, small

from bvlm_utils import attacks, store
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.run import group, study, tune_and_ask, workbench
from bvlm_utils.store import records
from bvlm_utils.store.cell import VERSION
from bvlm_utils.train import unfinished


def test_an_attack_without_a_target_is_skipped_with_the_reason(tmp_path):
    (cell,) = small("Shadowcast", "targeted_refusal")
    (line,) = study.run_cells([cell], tmp_path).to_dict("records")
    assert line["status"] == "skipped" and line["reason"] == attacks.unsupported("Shadowcast", "targeted_refusal")
    assert pd.isna(line["value"]) and pd.isna(line["metric"])


def test_too_many_poisoned_rows_are_skipped_with_the_reason(tmp_path):
    (line,) = study.run_cells(small(poison_rates=[0.75]), tmp_path).to_dict("records")
    assert line["status"] == "skipped" and "at least as many" in line["reason"]


def test_a_trigger_that_cannot_be_made_is_a_failure_not_a_skip(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise InputError("The function 'mine:word' of a trigger is not found.")

    monkeypatch.setattr(attacks.Attack, "apply_text", missing)
    with pytest.raises(StudyError, match="not found"):
        study.run_cells(small(), tmp_path)
    assert store.collect(tmp_path).empty  # a skipped record would stand for n/a for ever


def test_a_base_in_four_bit_has_answers_of_its_own(tmp_path, monkeypatch):
    subjects = []
    monkeypatch.setattr(group, "_kept_answers", lambda way, place, subject, *_: subjects.append(subject))
    for four_bit in (False, True):
        (cell,) = small(four_bit=four_bit)
        group.known_answers(None, cell, [], tmp_path)
    assert subjects[0] == ["base", VERSION, cell.identity["model_digest"]] and subjects[2] != subjects[0]


def test_rows_that_the_data_does_not_have_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="train_rows is 10000000"):
        study.run_cells(small(train_rows=10**7), tmp_path)
    assert store.collect(tmp_path).empty


def test_a_store_that_is_named_and_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no store"):
        store.collect(tmp_path / "none")
    monkeypatch.setenv("BVLM_STORE", str(tmp_path / "none"))  # nobody named it here: nothing was run yet
    assert store.collect().empty


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"key": ["a"]}', None])
def test_what_a_killed_run_kept_of_a_cells_answers_may_be_damaged(tmp_path, text):
    bench, (cell,) = workbench.Bench("tiny-llava", "scenes-vqa", 64), small()
    asked = workbench.questions(bench, cell)
    key, right = asked[0].key(bench), ["yes"] * len(asked[0].positions)
    held = json.dumps({key: right, asked[1].key(bench): right[1:]}) if text is None else text.replace("key", key)
    records.cache_texts(tmp_path, records.asked_name(cell), ["digest", held])
    found = tune_and_ask._kept(tmp_path, tune_and_ask.Work(cell, None, asked), "digest", bench)
    assert found == ({key: right} if text is None else {})


def test_one_failing_cell_does_not_stop_the_others(tmp_path, monkeypatch):
    good, bad = small("Shadowcast", "targeted_refusal")[0], small("BadNets-T")[0]

    def fail(*_):
        raise ArithmeticError("the sun went out")

    monkeypatch.setattr(group, "_run", fail)
    with pytest.raises(StudyError, match="1 of 2 cells failed") as caught:
        study.run_cells([bad, good], tmp_path)
    assert bad.run_id in str(caught.value) and "the sun went out" in str(caught.value)
    assert store.has(good, tmp_path) and "Traceback" in store.failures(tmp_path)[bad.run_id]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("plain", [False, True], ids=["grouped", "plain"])
def test_a_run_that_is_killed_while_it_asks_asks_no_question_twice(plain, tmp_path, monkeypatch):
    """And it does not train again: the group's state is kept until its records are there, its control's too."""
    cells = study.cells("malicious_injection", attacks=["BadNets-T", "BadNets-MM"], **SMALL)
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    way, asked, trained = tune_and_ask.OneByOne if plain else tune_and_ask.Grouped, [], []
    ask, save = way.ask, unfinished.Saved.save

    def killed_at_the_fourth(self, questions, results):
        asked.append([question.key(self.bench) for own in questions for question in own])
        if len(asked) == 4:
            raise Killed
        return ask(self, questions, results)

    monkeypatch.setattr(way, "ask", killed_at_the_fourth)
    monkeypatch.setattr(
        unfinished.Saved,
        "save",
        lambda self, tensors, at, *last: trained.append((*self.names, at.step)) or save(self, tensors, at, *last),
    )
    with pytest.raises(Killed):
        study.run_cells(cells, tmp_path, plain=plain)
    cache = tmp_path / "cache"
    assert list(cache.glob("asked-*.json")) and store.adapter(cells[0].control, tmp_path)
    assert not store.has(cells[1], tmp_path)
    study.run_cells(cells, tmp_path, plain=plain)
    assert asked[3] == asked[4], "what was being asked is asked again"
    assert len(asked) == 1 + (2 + 4 if plain else 4), "the first cell has two sets of inputs, the second four"
    assert len(trained) == len(set(trained)), "no step was done twice"
    assert not list(cache.glob("asked-*.json")) and not list(cache.glob("training-*"))
    assert all(store.has(cell, tmp_path) for cell in cells)
