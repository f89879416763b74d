"""The table of defences: names, settings, moments, needs, randomness."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils import defences
from bvlm_utils.defences import defence
from bvlm_utils.defences.declare import TABLE, DefenceInfo
from bvlm_utils.defences.rows import Rows
from bvlm_utils.errors import InputError


@pytest.mark.parametrize("name", defences.names())
def test_a_row_says_what_it_is(name):
    row = defences.info(name)
    assert row.moment in defences.MOMENTS and row.needs <= set(defences.NEEDS)
    assert row.source and row.summary and row.version >= 1
    assert all(spec.accepts(spec.default) for spec in row.params.values())
    assert name in defences.names(row.moment)


def test_an_unknown_defence_lists_those_there_are():
    with pytest.raises(KeyError, match="shrink"):
        defences.get("cut")
    with pytest.raises(KeyError, match="repair"):
        defences.names("never")


@given(st.one_of(st.floats(max_value=-1e-9), st.floats(min_value=2.001), st.text(), st.booleans(), st.none()))
def test_a_bad_setting_is_named(value):
    with pytest.raises(InputError, match="'shrink'.*'strength'"):
        defences.get("shrink", strength=value)


def test_an_unknown_setting_and_a_wrong_moment_are_refused():
    with pytest.raises(InputError, match="strength"):
        defences.get("shrink", rate=1)
    with pytest.raises(InputError, match="'repair'"):
        defences.get("shrink").score(None, None)


def test_rows_taken_keep_what_belongs_to_them():
    rows = Rows(["a", "b", "c"], ["1", "2", "3"], None, np.array([5, 3, 9]), ["x", "y", "z"], np.zeros((3, 2, 2, 3)))
    some = rows.take([2, 0])
    assert (some.prompts, some.answers, some.kinds) == (["c", "a"], ["3", "1"], ["z", "x"])
    assert some.feature_rows.tolist() == [9, 5] and some.pictures.shape == (2, 2, 2, 3)


def of_somebody(function, moment, monkeypatch):
    monkeypatch.setattr(defence, "function", lambda named, package: function)
    about = dict(needs=frozenset(), source="", summary="", version=1, function="mine:mine")
    return defence.Defence(DefenceInfo(name="mine", moment=moment, **about), {})


def lora(*values):
    return SimpleNamespace(state={"a": torch.tensor(values)}, config=None)


@pytest.mark.parametrize(
    ("given", "said"),
    [(None, "gave back None"), ({"a": 1}, "GroupResult"), (lora(1.0, float("nan")), "1 of 1 .*'a'")],
    ids=["nothing", "a table", "no numbers"],
)
def test_a_repair_that_gives_back_no_adapter_is_refused(given, said, monkeypatch):
    with pytest.raises(InputError, match=f"mine.*{said}"):
        of_somebody(lambda *_: given, "repair", monkeypatch).repair(None, lora(1.0))


def test_a_repair_that_changes_what_it_is_given_leaves_the_adapter_as_it_was(monkeypatch):
    def emptied(victim, adapter, *_):
        adapter.state["a"].zero_()
        return adapter

    before = lora(1.0, 2.0)
    after = of_somebody(emptied, "repair", monkeypatch).repair(None, before)
    assert before.state["a"].tolist() == [1, 2] and after.state["a"].tolist() == [0, 0]


@pytest.mark.parametrize(("scores", "said"), [([0.0], "shape"), (None, "shape"), ([1.0, float("nan")], "no number")])
def test_scores_that_are_not_one_a_row_or_no_numbers_are_refused(scores, said, monkeypatch):
    rows = Rows(["a", "b"], ["1", "2"], None, np.array([0, 1]), ["x", "y"])
    with pytest.raises(InputError, match=said):
        of_somebody(lambda *_: scores, "data", monkeypatch).scores(None, None, rows)


def test_every_function_stands_in_the_folder():
    from bvlm_utils.registry import function

    for row in map(TABLE.get, TABLE.names()):
        for named in filter(None, (row.function, row.placebo, row.many, row.at_all)):
            assert function(named, "bvlm_utils.defences").__module__.startswith("bvlm_utils.defences.")
