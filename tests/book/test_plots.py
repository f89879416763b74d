"""Figures draw every row of their table, show what is missing as "n/a", and need no torch."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from stored import tidy

from bvlm_book import figures, svg, tables
from bvlm_book.chapters import models, reproduce


def texts(figure):
    return [t.get_text() for axis in figure.axes for t in axis.texts]


@pytest.fixture
def poisoned():
    return tables.summary(tidy(rates=(0.1,)), "asr", subject="poisoned")


def test_families_has_a_field_per_attack_and_condition(poisoned):
    shown = texts(figures.families(poisoned))
    assert len([t for t in shown if t == "n/a"]) == 2 + 2 + 0
    assert len([t for t in shown if t == "0.95"]) == 1 + 1 + 3
    assert len([t for t in shown if t == "0.00"]) == 3


def test_families_never_draws_a_missing_value_as_zero(poisoned):
    poisoned.loc[(poisoned.attack == "BadNets-T") & (poisoned.condition == "text"), "value"] = np.nan
    shown = texts(figures.families(poisoned))
    assert len([t for t in shown if t == "n/a"]) == 3 + 2 + 0


def test_families_groups_by_modality_and_hatches_single_runs(poisoned):
    poisoned["n_seeds"] = np.where(poisoned["attack"] == "BadNets-I", 1, 3)
    axis = figures.families(poisoned).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["BadNets-T", "BadNets-I", "BadNets-MM"]
    assert [line.get_ydata()[0] for line in axis.lines] == [1, 2], "lines between the modalities"
    hatched = [patch.get_xy() for patch in axis.patches if patch.get_hatch()]
    assert hatched == [(0, 1), (2, 1)], "the two fields of the single run"
    assert axis.get_ylim() == (3, 0), "the first attack is on top"


def test_families_has_a_panel_per_model(poisoned):
    other = poisoned.assign(model="b-model", value=0.5)
    figure = figures.families(pd.concat([poisoned.assign(model="a-model"), other]))
    assert [axis.get_title() for axis in figure.axes] == ["a-model", "b-model"]
    assert [len([t for t in axis.texts if t.get_text() == "0.50"]) for axis in figure.axes] == [0, len(other)]


def test_paired_shows_differences_about_zero_and_the_seeds_where_there_are_several():
    lines = [["m", "BadNets-T", "text", 0.1, -0.02, -0.03, -0.01, 2], ["m", "Blended", "image", 0.1, 0.01, 0, 0.02, 1]]
    columns = ["model", "attack", "modality", "poison_rate", "value", "low", "high", "n_seeds"]
    table = pd.DataFrame(lines, columns=columns)
    seeds = pd.DataFrame(
        {"attack": ["BadNets-T", "BadNets-T", "Blended"], "poison_rate": 0.1, "value": [-0.03, -0.01, 0.01]}
    )
    (axis,) = figures.paired(table, "VQA accuracy", seeds).axes
    zero, dots, means = axis.lines
    assert list(zero.get_xdata()) == [0, 0] and list(means.get_xdata()) == [-0.02, 0.01]
    assert list(dots.get_xdata()) == [-0.03, -0.01] and set(dots.get_ydata().round()) == {0}
    assert axis.get_xlabel() == "change of VQA accuracy"


def test_scatter_has_a_dot_per_row():
    table = pd.DataFrame({
        "alone": [0.9, 0.8, 0.1, np.nan], "together": [0.1, 0.8, 0.2, 0.5], "group": ["image", "text", "image", "text"],
        "model": "m",
    })  # fmt: skip
    figure = figures.scatter(table, "alone", "together", "learnt alone", "learnt together", panel="model")
    (axis,) = figure.axes
    _, image, text = axis.lines
    assert list(image.get_xdata()) == pytest.approx([0.9, 0.1]) and list(text.get_ydata()) == pytest.approx([0.8])
    assert axis.get_title() == "m"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["image", "text"]


def test_long_labels_are_wrapped_for_a_narrow_page():
    with svg.narrow():
        figure, (axis,) = figures.new_figure(1, 6, 2)
    axis.set_xlabel("a label of an axis that is longer than a phone is wide")
    figures.name_rows(axis, ["short", "a row with a name of many words"])
    svg.wrapped(figure)
    assert axis.get_xlabel().count("\n") == 1
    assert [label.get_text().count("\n") for label in axis.get_yticklabels()] == [0, 1]


def test_paired_differences_of_single_runs_have_no_small_dots():
    table = tidy(rates=(0.1,))
    table = table[table["metric"] == "utility_difference"]
    rows = tables.summary(table, "utility_difference")
    for attacks in (table["attack"], table["attack"].astype("string[pyarrow]"), table["attack"].astype("str")):
        (axis,) = figures.paired(rows, "x", table.assign(attack=attacks)).axes
        assert axis.get_xlabel() == "change of x" and sum(line.get_marker() == "o" for line in axis.lines) == 1


def test_points_on_each_other_are_moved_apart_and_others_stay():
    points = pd.DataFrame({"x": [1.0, 1.0, 0.99, 0.5], "y": [0.0, 0.0, 0.01, 0.5]})
    moved = figures.spread(points)
    assert moved.loc[[0, 3]].equals(points.loc[[0, 3]]) and (moved - points).abs().to_numpy().max() < 0.05
    assert len(moved.round(2).drop_duplicates()) == 4


def test_agreement_shades_what_differs():
    reference = tidy(rates=(0.1,))
    mine = tidy(rates=(0.1,), hits=lambda a, r, s, who, c: 50 if who == "poisoned" and c == "both" else 0)
    compared = reproduce.compare(mine, reference).assign(label="a number")
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


def test_figures_have_no_ground_of_their_own(poisoned):
    figure = figures.families(poisoned)
    assert figure.get_facecolor()[3] == 0 and figures.new_figure(1, 2, 2)[1][0].get_facecolor()[3] == 0


@pytest.mark.parametrize("colour", [*figures.COLOURS[:-1], "#7F7F7F"])
def test_colours_are_seen_in_the_light_and_in_the_dark(colour):
    for ground in ("#ffffff", "#14181e"):
        assert contrast(to_rgb(colour), to_rgb(ground)) >= 3


def test_the_numbers_of_a_heat_map_can_be_read_on_every_field():
    grid = pd.DataFrame([np.linspace(0, 1, 41)])
    _, (axis,) = figures.new_figure(1, 8, 1)
    figures.success_map(axis, grid)
    colours = figures.success_colours()
    for text in axis.texts:
        assert contrast(to_rgb(text.get_color()), colours(float(text.get_text()))[:3]) >= 4
    assert contrast(colours(1.0)[:3], to_rgb("#14181e")) > 1.7, "the deepest field is not lost in the dark"


def test_a_narrow_heat_map_of_many_columns_has_short_numbers():
    grid = pd.DataFrame([[0.0, 0.066, 0.97, 1.0, *[np.nan] * 4]])
    with svg.narrow():
        figure, (axis,) = figures.new_figure(1, 8, 1)
        figures.success_map(axis, grid)
    assert [text.get_text() for text in axis.texts] == [".00", ".07", ".97", "1.0", *["n/a"] * 4]


def contrast(one, two):
    def light(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
        return np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05

    return max(light(one), light(two)) / min(light(one), light(two))


def test_a_narrow_figure_has_its_panels_one_below_another(poisoned):
    rows = pd.concat([poisoned, poisoned.assign(model="other")])
    wide = figures.families(rows)
    with svg.narrow():
        slim = figures.families(rows)
    assert not svg.is_narrow()
    assert [axis.get_title() for axis in slim.axes] == [axis.get_title() for axis in wide.axes]
    assert slim.get_size_inches()[0] == svg.NARROW < wide.get_size_inches()[0]
    assert len({axis.get_subplotspec().rowspan.start for axis in slim.axes}) == len(slim.axes)


def test_an_svg_keeps_its_names_and_style_to_itself(poisoned):
    one, two = (svg.drawing(figures.families(poisoned), alt, "bvlm-wide") for alt in ("A & b", "another"))
    assert 'role="img" aria-label="A &amp; b"' in one and 'class="bvlm-wide"' in one
    assert one == svg.drawing(figures.families(poisoned), "A & b", "bvlm-wide"), "the same figure, the same text"
    assert ">0.95</text>" in one and "currentColor" in one
    for leak in ("<style", "<!DOCTYPE", "<metadata", "#000000", "DejaVu"):
        assert leak not in one
    names = re.findall(r' id="([^"]+)"', one)
    assert len(set(names)) == len(names) and not set(names) & set(re.findall(r' id="([^"]+)"', two))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', one)) == set(names)


def test_the_page_side_of_the_package_does_not_import_torch():
    code = "import sys\nfrom bvlm_book import figures, page, tables, words\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
