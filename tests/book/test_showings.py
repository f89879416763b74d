"""Does the chapter on doses tell number, share and showings apart, and count each dose in all its forms?"""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from bvlm_book import doses
from bvlm_book.chapters import dose
from bvlm_utils import threats
from bvlm_utils.store import table as tidy

DESIGN = [(2000, 20, 1), (2000, 20, 3), (2000, 60, 1), (6000, 20, 3), (6000, 60, 3), (6000, 200, 1), (20000, 60, 1),
          (20000, 200, 1)]  # fmt: skip


def runs(logit, design=DESIGN, rows=100_000):
    """Runs of the factorial's pairs whose success is a function of training rows, poisoned rows and passes."""
    lines = []
    for size, number, passes in design:
        k = round(rows * expit(logit(size, number, passes)))
        for attack in doses.ATTACKS:
            for threat in doses.THREATS:
                about = {"model": doses.MODEL, "dataset": threats.get(threat).default_dataset, "attack": attack,
                         "threat": threat, "train_rows": size, "seed": 0}  # fmt: skip
                own = {"n_poisoned": number, "epochs": passes, "share": number / size, "showings": number * passes}
                lines.append(about | own | {"k": k, "n": rows, "value": k / rows})
    return pd.DataFrame(lines)


@pytest.mark.parametrize(
    ("logit", "slopes", "best"),
    [
        (lambda size, number, passes: 3 * np.log10(number * passes / 60), (3, 3, 0), "showings"),
        (lambda size, number, passes: 2 * np.log10(number / size / 0.01), (2, 0, -2), "share"),
        (lambda size, number, passes: 2 * np.log10(number / 60), (2, 0, 0), "n_poisoned"),
    ],
)
def test_the_model_finds_what_decides(logit, slopes, best):
    fit = doses.fitted(doses.factorial(runs(logit)))
    assert fit.loc[list(doses.TERMS), "value"].tolist() == pytest.approx(slopes, abs=0.01)
    assert fit["explained"].idxmax() == best and fit.loc[best, "explained"] == pytest.approx(1, abs=0.01)
    table = dose.explained_table(fit).set_index("counted as")["explains alone"]
    assert table[doses.AXES[best]] == "100 %"


def test_without_another_size_of_the_training_set_nothing_is_fitted():
    lines = runs(lambda *_: 0.0, [one for one in DESIGN if one[0] == 6000])
    assert doses.fitted(lines).empty and dose.explained_table(doses.fitted(lines)).empty
    assert dose.counted_as(lines) == ["n_poisoned", "showings"]


def test_a_dot_per_run_and_no_runs_of_an_empty_store():
    lines = runs(lambda size, number, passes: 0.0)
    figure = dose.by_size(lines)
    dots = sum(len(line.get_xdata()) for axis in figure.axes for line in axis.lines if line.get_linestyle() == "None")
    assert dots == len(lines) * len(doses.AXES)
    assert doses.factorial(doses.doses(tidy.table([]))).empty


def test_the_grid_is_complete_with_three_runs_of_every_dose():
    three = pd.concat([runs(lambda *_: 0.0, doses.DOSES).assign(seed=seed) for seed in range(3)], ignore_index=True)
    assert doses.is_complete(three) and not doses.is_complete(three.iloc[:-1])
    assert not doses.is_complete(three[three["seed"] < 2]) and not doses.is_complete(three.iloc[:0])
