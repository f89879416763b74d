"""Do doses come back from data made by a known curve, and is nothing drawn where the data bear no curve?"""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit, xlogy
from scipy.stats import t as student

from bvlm_book import dose_curve, tables
from bvlm_book.chapters import dose
from bvlm_utils import attacks, paths
from bvlm_utils.score import intervals
from bvlm_utils.store.table import COLUMNS

INTERCEPT, SLOPE = -6.0, 4.0  # logit(success) = -6 + 4 log10(rows): 0.5 with 31.6 rows
ROWS = (6, 12, 30, 60, 120, 300, 600)


def curve(rows):
    return expit(INTERCEPT + SLOPE * np.log10(rows))


def tidy(success, rows=ROWS, seeds=(0, 1, 2), attack="BadNets-T", threat="targeted_refusal", n=200, **other):
    """A tidy table of one pair; success(rows, seed) -> share of n inputs."""
    info, lines = attacks.info(attack), []
    for count in rows:
        for seed in seeds:
            value = success(count, seed)
            low, high = intervals.wilson(value * n, n)
            lines.append(dict.fromkeys(COLUMNS) | {
                "run_id": f"{attack}-{threat}-{count}-{seed}-{sorted(other.items())}", "model": "tiny-llava",
                "dataset": "scenes-vqa", "threat": threat, "attack": attack, "modality": info.modality,
                "poison_rate": count / 6000, "n_poisoned": count, "seed": seed, "negatives": 0.0, "train_rows": 6000,
                "settings": "", "status": "done", "subject": "poisoned", "condition": info.headline, "metric": "asr",
                "value": value, "k": value * n, "n": n, "low": low, "high": high, "unit": "share",
            } | other)  # fmt: skip
    return pd.DataFrame(lines, columns=COLUMNS)


def found(*tables):
    table = pd.concat(tables, ignore_index=True)
    cells, means = dose.cells(table), dose.means(table)
    return dose.doses(cells, means), means, cells


def fitted(success, **settings):
    return dose_curve.fit(dose.cells(tidy(success, **settings)))


def test_data_from_a_known_curve_give_back_its_dose():
    (line,) = found(tidy(lambda rows, seed: curve(rows)))[0].to_dict("records")
    assert line["fit"].coefficients == pytest.approx(np.array([[INTERCEPT, SLOPE]] * 3), rel=1e-5)
    assert line["rows"] == pytest.approx(10 ** ((logit(0.90) - INTERCEPT) / SLOPE), rel=1e-5)  # 112 rows
    assert (line["below"], line["reached"], line["why"]) == (60, 120, "")
    assert dose.dose_table(pd.DataFrame([line]))["bracket, in rows"].item() == "more than 60, at most 120"


def test_intervals_of_a_single_seed_by_the_closed_formulas():
    """Data on the curve spread less than binomial ones: the covariance is the plain one, (X' W X)^-1."""
    fit, _ = fitted(lambda rows, seed: curve(rows), seeds=(0,))
    x = np.log10(ROWS)
    design, weight = np.column_stack([np.ones_like(x), x]), 200 * curve(10**x) * (1 - curve(10**x))
    covariance = np.linalg.inv(design.T @ (weight[:, None] * design))
    assert np.allclose(fit.covariance, covariance, rtol=1e-4)
    quantile, at = student.ppf(0.975, 7 - 2), (logit(0.9) - INTERCEPT) / SLOPE
    variance = (covariance[0, 0] + 2 * at * covariance[0, 1] + at**2 * covariance[1, 1]) / SLOPE**2
    half = quantile * np.sqrt(variance)
    assert fit.dose() == pytest.approx((10**at, 10 ** (at - half), 10 ** (at + half)), rel=1e-4)
    middle, low, high = fit.curve(np.array([100.0]))
    error = np.sqrt(covariance[0, 0] + 4 * covariance[0, 1] + 4 * covariance[1, 1])
    assert middle[0] == pytest.approx(expit(2.0), rel=1e-5)
    assert (logit(low[0]), logit(high[0])) == pytest.approx((2 - quantile * error, 2 + quantile * error), rel=1e-4)


def test_a_single_seed_that_leaves_its_curve_has_a_wider_interval():
    def bent(rows, seed):
        return float(np.clip(curve(rows) + (0.15 if rows in (12, 60) else -0.15) * (6 < rows < 300), 0, 1))

    wide, _ = fitted(bent, seeds=(0,))
    (a, b), n = wide.coefficients[0], 200
    p, k = expit(a + b * np.log10(ROWS)), np.array([n * bent(rows, 0) for rows in ROWS])
    deviance = 2 * (xlogy(k, k / (n * p)) + xlogy(n - k, (n - k) / (n * (1 - p)))).sum()
    design = np.column_stack([np.ones(7), np.log10(ROWS)])
    plain = np.linalg.inv(design.T @ ((n * p * (1 - p))[:, None] * design))
    assert deviance / 5 > 2 and np.allclose(wide.covariance, plain * deviance / 5, rtol=1e-3)


def test_the_interval_of_several_seeds_comes_from_their_own_doses():
    shifts = {0: -0.4, 1: 0.1, 2: 0.6}
    fit, _ = fitted(lambda rows, seed: expit(INTERCEPT + shifts[seed] + SLOPE * np.log10(rows)))
    logs = np.array([(logit(0.9) - INTERCEPT - shift) / SLOPE for shift in shifts.values()])
    half = student.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
    expected = 10 ** logs.mean(), 10 ** (logs.mean() - half), 10 ** (logs.mean() + half)
    assert fit.dose() == pytest.approx(expected, rel=1e-4)
    spread = student.ppf(0.975, 2) * np.std([-0.4, 0.1, 0.6], ddof=1) / np.sqrt(3)
    ends = [logit(end[0]) for end in fit.curve(np.array([100.0]))]
    assert ends == pytest.approx([2.1, 2.1 - spread, 2.1 + spread], rel=1e-4)


def test_a_seed_without_a_curve_takes_it_from_the_pair():
    fit, why = fitted(lambda rows, seed: float(rows > 100) if seed == 1 else curve(rows))
    assert fit is None and why == f"{dose_curve.SEPARATED} (seed 1)"


def test_a_seed_with_two_doses_has_no_curve_of_its_own():
    both = pd.concat([tidy(lambda rows, seed: curve(rows), seeds=(0,)),
                      tidy(lambda rows, seed: 0.5, seeds=(1, 2), rows=(60, 600))])  # fmt: skip
    fit, _ = dose_curve.fit(dose.cells(both))
    assert fit.coefficients == pytest.approx(np.array([[INTERCEPT, SLOPE]]), rel=1e-4)


def test_one_failure_far_up_a_steep_curve_does_not_hide_its_slope():
    hits = {6: (0, 0), 12: (0, 0), 30: (1, 0), 60: (150, 175), 120: (196, 197), 300: (200, 200), 600: (199, 200)}
    steep, why = fitted(lambda rows, seed: hits[rows][seed] / 200, seeds=(0,))
    assert why == "" and 55 < steep.dose()[1] < steep.dose()[0] < steep.dose()[2] < 120


@pytest.mark.parametrize(
    ("success", "rows", "why", "bracket"),
    [
        (lambda rows, seed: float(rows > 100), ROWS, dose_curve.SEPARATED, "more than 60, at most 120"),
        (lambda rows, seed: 0.0 if rows < 100 else 0.5 if rows == 120 else 1.0, ROWS, dose_curve.SEPARATED,
         "more than 120, at most 300"),
        (lambda rows, seed: 0.01 if rows < 100 else 0.99, ROWS, dose_curve.NONE_BETWEEN, "more than 60, at most 120"),
        (lambda rows, seed: curve(rows), (60, 600), dose_curve.TOO_FEW, "more than 60, at most 600"),
        (lambda rows, seed: 0.0, ROWS, dose_curve.NONE_BETWEEN, "more than 600"),
        (lambda rows, seed: 1.0, ROWS, dose_curve.NONE_BETWEEN, "at most 6"),
        (lambda rows, seed: 0.3, ROWS, dose_curve.FLAT, "more than 600"),
        (lambda rows, seed: curve(1000 / rows), ROWS, dose_curve.FLAT, "reached with 6, missed again with 600"),
        (lambda rows, seed: 0.9 if rows in (12, 60) else 0.5, ROWS, dose_curve.FLAT,
         "reached with 12, missed again with 600"),
    ],
)  # fmt: skip
def test_where_the_data_bear_no_curve_the_bracket_stands(success, rows, why, bracket):
    lines, means, cells = found(tidy(success, rows=rows))
    line = lines.iloc[0]
    assert line["fit"] is None and line["why"].removesuffix(" (seed 0)") == why and pd.isna(line["rows"])
    table = dose.dose_table(lines)
    assert table["bracket, in rows"].item() == bracket and why in table["rows for 90 %, from the curve"].item()
    figure = dose.curves(cells, means, {"BadNets-T": None})
    assert not figure.axes[0].collections or all("Poly" not in type(c).__name__ for c in figure.axes[0].collections)


def test_a_dose_outside_those_tried_is_not_told():
    lines = found(tidy(lambda rows, seed: curve(rows), rows=(6, 12, 30, 60)))[0]
    assert lines["fit"].notna().all() and lines["rows"].isna().all()
    table = dose.dose_table(lines)
    assert "only outside the doses tried" in table["rows for 90 %, from the curve"].item()
    assert table["bracket, in rows"].item() == "more than 60"


def test_a_curve_that_disagrees_with_its_own_points_is_not_read():
    early = {6: 0.0, 12: 0.0, 30: 0.0, 60: 0.2, 120: 0.91, 300: 0.91, 600: 0.91}
    lines = found(tidy(lambda rows, seed: early[rows]))[0]
    assert lines["why"].item() == dose.AGAINST and lines["rows"].isna().all()
    assert dose.dose_table(lines)["bracket, in rows"].item() == "more than 60, at most 120"


def test_an_interval_says_nothing_beyond_the_doses_tried():
    line = {"rows": 347.0, "low": 130.0, "high": 929.0, "smallest": 6, "largest": 600}
    assert dose._interval(line) == "347 [130, over 600]"
    assert dose._interval(line | {"smallest": 200, "high": 599.0}) == "347 [under 200, 599]"


def test_cells_that_are_other_experiments_stay_out():
    plain = tidy(lambda rows, seed: curve(rows))
    other = [
        tidy(lambda rows, seed: 0.0, settings="patch_size=80"),
        tidy(lambda rows, seed: 0.0, negatives=1.0),
        tidy(lambda rows, seed: 0.0, rows=(60,), train_rows=600),
        tidy(lambda rows, seed: 0.0, rows=(60,), status="skipped"),
        tidy(lambda rows, seed: 0.0, subject="control"),
        tidy(lambda rows, seed: 0.0, condition="clean"),
    ]
    together, alone = found(plain, *other), found(plain)
    pd.testing.assert_frame_equal(together[2], alone[2])
    assert len(alone[2]) == 21 and together[0]["rows"].item() == alone[0]["rows"].item()


def test_means_are_over_seeds_and_ends_are_marked():
    means = found(tidy(lambda rows, seed: {0: 0.5, 1: 0.6, 2: 0.7}[seed], rows=(60,)),
                  tidy(lambda rows, seed: 0.96, rows=(600,), seeds=(0,)))[1]  # fmt: skip
    half = student.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert means.loc[0, ["value", "low", "high"]].tolist() == pytest.approx([0.6, 0.6 - half, 0.6 + half])
    assert means["mark"].tolist() == ["", "ceiling"] and means["n_seeds"].tolist() == [3, 1]
    assert [intervals.mark(v) for v in (0.95, 0.05, 0.949, 0.051)] == ["ceiling", "floor", "", ""]
    table = dose.rates_table(means)
    assert table["mark"].tolist() == ["", "▲ ceiling"] and table["share"].tolist() == ["1 %", "10 %"]


def test_single_seeds_are_drawn_open_and_said_to_support_nothing():
    lines, means, cells = found(tidy(lambda rows, seed: curve(rows), seeds=(0,)))
    words = dose.curves_words("tiny-llava", "targeted_refusal", lines)
    assert "support no verdict" in words["caption"] and "BadNets-T 112" in words["caption"]
    axis = dose.curves(cells, means, {"BadNets-T": lines["fit"].iloc[0]}).axes[0]
    assert "white" in [line.get_markerfacecolor() for line in axis.lines]
    said = " ".join(dose.sentences(lines, means))
    assert "No pair has 3 seeds at any dose yet" in said and "none supports a verdict" in said
    lines, means, cells = found(tidy(lambda rows, seed: curve(rows)))
    axis = dose.curves(cells, means, {"BadNets-T": lines["fit"].iloc[0]}).axes[0]
    assert "white" not in [line.get_markerfacecolor() for line in axis.lines]
    assert "takes from 112 [" in " ".join(dose.sentences(lines, means))


def test_legends_of_many_attacks_stay_inside_the_figure():
    names = ("BadNets-I", "Blended", "SIG", "ImgTrojan", "BadNets-MM", "Dual-Key", "VL-Trojan", "MABA")
    lines, means, cells = found(*(tidy(lambda r, s: curve(r), attack=name, rows=(60, 600)) for name in names))
    figure = dose.curves(cells, means, dict(zip(lines["attack"], lines["fit"], strict=True)))
    figure.draw_without_rendering()
    for axis in figure.axes:
        box = axis.get_legend().get_window_extent()
        assert box.y0 >= 0 and box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_saturation_counts_every_pair_of_a_dose():
    means = found(tidy(lambda rows, seed: curve(rows)), tidy(lambda rows, seed: 0.0, attack="SIG"))[1]
    heights = [bar.get_height() for bar in dose.saturation(means).axes[0].patches]
    assert sum(heights) == 2 * len(ROWS)
    assert "1 of 2 with 600 rows" in dose.saturation_words(means)["caption"]


def test_an_empty_store_says_so():
    lines, means, cells = found(tidy(lambda rows, seed: 0.0).iloc[:0])
    assert "Nothing has been measured yet" in dose.sentences(lines, means)[0]
    assert dose.dose_table(lines).empty and dose.rates_table(means).empty
    assert not list(dose.panels(lines, cells, means))
    assert "n/a" in dose.saturation_words(means)["caption"]
    assert "measured" in dose.saturation(means).axes[0].texts[0].get_text()


def test_two_doses_are_no_panel_and_keep_their_bracket():
    three, two = (
        tidy(lambda r, s: curve(r), rows=(60, 120, 600)),
        tidy(lambda r, s: curve(r), rows=(60, 600), attack="SIG"),
    )
    lines, means, cells = found(three, two)
    ((model, threat, part, *_),) = dose.panels(lines, cells, means)
    assert (model, threat, part["attack"].tolist()) == ("tiny-llava", "targeted_refusal", ["BadNets-T"])
    assert lines["n_doses"].tolist() == [3, 2]
    (line,) = dose.bracket_table(lines[lines["attack"] == "SIG"]).to_dict("records")
    assert line["model"] == "tiny-llava" and line["bracket, in rows"] == "more than 60, at most 600"
    assert dose.bracket_table(lines.iloc[:0]).empty


def test_progress_counts_what_a_grid_lacks(tmp_path):
    file = tmp_path / "grid.yml"
    file.write_text(
        "defaults: {attacks: [BadNets-T], poison_rates: [0.1, 0.01], seeds: [0, 1]}\n"
        "jobs:\n  - {notebook: targeted_refusal}\n"
    )
    (line,) = tables.progress([str(file)], tmp_path / "none").to_dict("records")
    assert (line["cells"], line["in this store"], line["missing"]) == (4, 0, 4)
    assert {"depth.yml", "breadth.yml"} <= {path.name for path in paths.GRIDS.glob("*.yml")}


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import claims, dose\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
