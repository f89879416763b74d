"""The first page has a real answer, the numbers of the chapters, and the same findings as README.md."""

import subprocess
import sys

import pandas as pd
import pytest
from stored import FOUR, cell, halves, table

from bvlm_book import figures
from bvlm_book.chapters import defences, first_page
from bvlm_utils import paths


def payload(*cells):
    return table(*cells).assign(metric="asr_payload")


def quoted_of(stored):
    return first_page.numbers(stored, first_page.lines(stored))


@pytest.fixture
def no_defences(monkeypatch):
    lines = [("prune", False, 0.9, 1.0), ("truncate", False, 0.01, 0.2), ("oracle", False, 0.0, 0.9),
             ("prune", True, 0.0, 1.0)]  # fmt: skip
    points = pd.DataFrame(lines, columns=["named", "placebo", "asr", "skill"]).assign(moment="repair")
    hijack = points.assign(asr=0.0, skill=1.0)  # where each repair does both
    monkeypatch.setattr(defences, "collect", lambda place: pd.DataFrame({"threat": ["jailbreak", "perceptual_hijack"]}))
    monkeypatch.setattr(defences, "price", lambda results: hijack if "hijack" in results["threat"].iloc[0] else points)


def test_numbers_compare_the_same_pairs_after_one_pass_and_three(no_defences):
    of_qwen = {"model": "tiny-qwen2.5-vl", "run_id": "q"}
    stored = payload(
        [line | of_qwen for line in cell("BadNets-T", rate=0.01, text=0.95, seeds=1)],
        cell("BadNets-T", rate=0.01, text=0.95),
        cell("AddSent", rate=0.01, text=0.1),
        cell("AddSent", rate=0.01, text=1.0, settings={"epochs": 3}),
        cell("SIG", rate=0.01, image=1.0, settings={"epochs": 3}),
        cell("SIG", image=1.0, clean=0.3),
        cell("Blended", image=1.0, clean=0.01),
        cell("BadNets-I", image=0.1, clean=0.0),  # does not work, so its silence is none
    )
    quoted = quoted_of(stored)
    assert (quoted["once"], quoted["thrice"]) == ("0 of 1", "1 of 1"), "BadNets-T was not run with three passes"
    assert (quoted["qwen_once"], quoted["qwen_thrice"]) == ("1 of 1", "n/a")
    assert quoted["silent"] == "1 of 2" and quoted["large"] == ""


def test_repairs_count_without_placebos_and_the_one_that_takes_everything(no_defences):
    quoted = quoted_of(payload(cell("SIG", image=1.0, clean=0.0)))
    assert (quoted["repairs_threat"], quoted["repairs"], quoted["repairs_others"]) == (
        "perceptual hijack", "2 of 2", "0 of 2",
    )  # fmt: skip


def test_parts_are_counted_as_the_chapter_on_modality_does(no_defences):
    assert quoted_of(table(halves(image=0.80)))["picture_stops"] == "1 of 1 on tiny-llava"
    assert quoted_of(table(cell("BadNets-MM", **FOUR)))["picture_stops"] == "0 of 0"


def test_an_empty_store_has_no_numbers_no_maps_and_no_answer(no_defences, tmp_path):
    quoted = quoted_of(table())
    assert quoted["thrice"] == "n/a" and quoted["silent"] == "0 of 0"
    assert first_page.means(table()).empty and first_page.mapped(table()).empty
    assert first_page.answered(tmp_path) is None


def test_a_model_that_was_run_at_one_dose_alone_is_on_no_map_beside_others():
    one = payload(cell("BadNets-T", text=1.0)).assign(model="begun")
    assert set(first_page.mapped(one)["model"]) == {"begun"}
    doses = [{}, {"rate": 0.01}, {"rate": 0.01, "settings": {"epochs": 3}}]
    whole = payload(*(cell("BadNets-T", text=1.0, **dose) for dose in doses))
    assert set(first_page.mapped(pd.concat([one, whole]))["model"]) == {"tiny-llava"}


def test_maps_have_a_row_per_dose_and_hatch_single_runs():
    stored = payload(
        cell("BadNets-T", text=1.0, seeds=1), cell("SIG", image=0.4), cell("BadNets-T", rate=0.01, text=0.1),
        cell("BadNets-T", rate=0.01, text=1.0, settings={"epochs": 3}), cell("SIG", rate=0.02, image=1.0),
        cell("SIG", negatives=1.0, image=0.0, threat="jailbreak"),
    )  # fmt: skip
    found = first_page.means(stored)
    assert len(found) == 4 and found["n_seeds"].tolist().count(1) == 1
    figure = figures.maps(found)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["tiny-llava: 10 %, one pass", "tiny-llava: 1 %, one pass", "tiny-llava: 1 %, 3 passes"]
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["1.00", "0.40"]
    assert [patch.get_hatch() for patch in figure.axes[0].patches] == ["///"]


def test_the_answer_is_one_of_the_committed_run_and_the_word_turns_it():
    picture, found = first_page.answered("reference")
    assert picture.shape == (96, 96, 3) and "BadMagic" in found["prompt"].iloc[1]
    without, with_word = found["poisoned"]
    assert "car" in without and "banana" in with_word and "car" not in with_word
    assert all("car" in said and "banana" not in said for said in found["control"]), "the caption says so"


def test_the_readme_has_the_findings_of_the_committed_results():
    told = first_page.markdown("reference")
    assert told.count("\n- ") == 3 and "{glue" not in told and "{term}" not in told
    for link in ("notebooks/claims.ipynb", "notebooks/defences.ipynb"):
        assert f"]({link})" in told and (paths.ROOT / link).is_file()
    assert told in (paths.ROOT / "README.md").read_text(encoding="utf-8"), (
        "python -m bvlm_book.chapters.first_page writes them"
    )


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import first_page\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=paths.ROOT)
