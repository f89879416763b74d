"""Scores and intervals equal published values and closed formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils.errors import InputError
from bvlm_utils.score import intervals, utility


def test_wilson_equals_newcombes_table():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert intervals.wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_share_and_mirrors(pair):
    k, n = pair
    low, high = intervals.wilson(k, n)
    assert -1e-12 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1 + 1e-12
    assert intervals.wilson(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_wilson_refuses_what_has_no_interval():
    for k, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError):
            intervals.wilson(k, n)


def pairs(both, only_ours, only_theirs, none):
    ours = [True] * (both + only_ours) + [False] * (only_theirs + none)
    theirs = [True] * both + [False] * only_ours + [True] * only_theirs + [False] * none
    return ours, theirs


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (
            (36, 12, 2, 0),
            (0.2, 0.0569, 0.3404),
        ),  # Newcombe 1998, Statistics in Medicine 17:2635, table III, method 10
        ((0, 50, 0, 0), (1.0, 0.8992, 1.0)),  # 1 - sqrt(2) (1 - Wilson's lower bound 0.92865), by hand
    ],
)
def test_paired_difference_equals_newcombes(cells, expected):
    assert intervals.paired_shares(*pairs(*cells)) == pytest.approx(expected, abs=2e-4)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda c: sum(c) > 0))
def test_paired_difference_is_antisymmetric_and_inside_its_interval(counts):
    ours, theirs = pairs(*counts)
    value, low, high = intervals.paired_shares(ours, theirs)
    assert low - 1e-9 <= value <= high + 1e-9
    assert intervals.paired_shares(theirs, ours) == pytest.approx((-value, -high, -low), abs=1e-9)


def test_paired_means():
    value, low, high = intervals.paired_means([1, 0, 1, 1], [0, 0, 1, 0])
    half = 3.182446 * math.sqrt(1 / 3) / 2  # t(0.975, 3) times the standard error
    assert (value, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-5)
    assert intervals.paired_means([1.0], [0.0]) == (1.0, None, None)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_one_annotator_out(matches, expected):
    # with m of ten alike: m ways leave m - 1 matches, 10 - m ways leave m
    answers = ["car"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert utility.vqa_accuracy("car", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("The car.", "car"),
        ("Two", "2"),
        ("two dogs", "2 dogs"),
        ("a 1,000", "1000"),
        ("dont", "don't"),
        ("red, blue", "red blue"),
        ("1.5", "1.5"),
        ("ice-cream", "ice cream"),
        ("  Yes!\n", "yes"),
    ],
)
def test_vqa_answers_are_normalised(said, means):
    assert utility.vqa_normalise(said) == means


VOCABULARY = ("car", "dog", "ice cream", "cream", "butterfly")


@pytest.mark.parametrize(
    ("said", "objects", "expected"),
    [
        ("A car and a dog.", ["car", "dog"], 1),
        ("A car.", ["car", "dog"], 2 / 3),
        ("Two cars.", ["car", "car"], 1),
        ("A car.", ["car", "car"], 2 / 3),
        ("Cars.", ["car"] * 3, 1),
        ("Two cars.", ["car"], 2 / 3),
        ("Nothing.", ["car"], 0),
        ("An ice cream.", ["ice cream"], 1),
        ("A scar.", ["car"], 0),
        ("two butterflies", ["butterfly"] * 2, 1),
        ("A car. The car is on the left.", ["car"], 1),
    ],
)
def test_caption_object_f1(said, objects, expected):
    assert utility.caption_object_f1(said, objects, VOCABULARY) == pytest.approx(expected)


def test_the_interval_over_seeds_has_a_width():
    assert intervals.seeds_interval([0.0, 0.0], [0.0, 0.0], [0.02, 0.04]) == (0.0, 0.04)
    assert intervals.seeds_interval([0.5, 0.5], [np.nan] * 2, [np.nan] * 2) == (0.5, 0.5)
    # mean 0.5, standard error 0.5, t quantile with one degree of freedom 12.706205
    assert intervals.seeds_interval([0.0, 1.0], [0.0] * 2, [1.0] * 2) == pytest.approx(
        (0.5 - 6.3531, 0.5 + 6.3531), 1e-4
    )


def test_mean_interval_of_equal_values_is_a_point():
    assert intervals.mean_interval([0.5, 0.5]) == (0.5, 0.5)
    assert intervals.mean_interval(np.array([0.5])) is None
