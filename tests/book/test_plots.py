"""Figures draw every row of their table, show what is missing as "n/a", and need no torch."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from stored import tidy

from bvlm_book import examples, figures, tables
from bvlm_book.chapters import models, reproduce


def texts(figure):
    return [t.get_text() for axis in figure.axes for t in axis.texts]


@pytest.fixture
def poisoned():
    return tables.summary(tidy(), "asr", subject="poisoned")


def test_heatmap_has_a_field_per_attack_condition_and_rate(poisoned):
    shown = texts(figures.heatmap(poisoned))
    assert len([t for t in shown if t == "n/a"]) == 2 * (2 + 2 + 0)
    assert len([t for t in shown if t == "0.95"]) == 2 * (1 + 1 + 3)
    assert len([t for t in shown if t == "0.00"]) == 2 * 3


def test_heatmap_never_draws_a_missing_value_as_zero(poisoned):
    poisoned.loc[(poisoned.attack == "BadNets-T") & (poisoned.condition == "text"), "value"] = np.nan
    shown = texts(figures.heatmap(poisoned))
    assert len([t for t in shown if t == "n/a"]) == 2 * (3 + 2 + 0)


def test_dose_draws_each_attack_in_the_panel_of_its_modality(poisoned):
    figure = figures.dose(tables.headline_rows(poisoned))
    assert [axis.get_title() for axis in figure.axes] == [
        "text triggers",
        "image triggers",
        "bimodal triggers",
    ]
    assert [[t.get_text() for t in a.get_legend().get_texts()] for a in figure.axes] == [
        ["BadNets-T"],
        ["BadNets-I"],
        ["BadNets-MM"],
    ]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["10\n1 %", "100\n10 %"]


def test_subjects_and_utility_show_three_models():
    asr = tables.summary(tidy(rates=(0.1,)), "asr")
    for figure in (figures.subjects(asr), figures.utility(tables.summary(tidy(), "utility"))):
        assert [t.get_text() for t in figure.legends[0].get_texts()] == [
            "base model",
            "clean-tuned",
            "poisoned",
        ]


def test_empty_tables_say_so(poisoned):
    nothing = poisoned.iloc[:0]
    for draw in (figures.heatmap, figures.dose, figures.utility, figures.subjects):
        (message,) = texts(draw(nothing))
        assert "measured" in message
    assert "No trigger examples" in texts(examples.pairs({}))[0]


def test_agreement_shades_what_differs():
    reference = tidy(rates=(0.1,))
    mine = tidy(rates=(0.1,), hits=lambda a, r, s, who, c: 50 if who == "poisoned" and c == "both" else 0)
    compared = reproduce.compare(mine, reference)
    figure = reproduce.agreement_figure(compared)
    assert len(figure.axes[0].patches) == (compared.verdict == "differs").sum() > 0


def test_thresholds_of_two_models():
    rows = pd.DataFrame(
        {
            "model": ["a", "a", "b"],
            "name": ["x", "y", "x"],
            "value": [0.95, 0.9, 0.8],
            "threshold": [0.9, 0.9, 0.8],
        }
    )
    assert [axis.get_title() for axis in models.thresholds(rows).axes] == ["a", "b"]


def test_pairs_show_clean_triggered_and_difference():
    clean = np.full((2, 8, 8, 3), 100, np.uint8)
    triggered = clean.copy()
    triggered[:, :2, :2] = 120
    figure = examples.pairs({"patch": (clean, triggered)}, amplify=2)
    assert len(figure.axes) == 6
    difference = np.asarray(figure.axes[2].images[0].get_array())
    assert np.allclose(difference[0, 0], 0.5 + 2 * 20 / 255) and np.allclose(difference[-1, -1], 0.5)


def test_figures_are_opaque(poisoned):
    assert figures.heatmap(poisoned).get_facecolor() == (1, 1, 1, 1)


def test_the_page_side_of_the_package_does_not_import_torch():
    code = "import sys\nfrom bvlm_book import figures, page, tables, words\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
