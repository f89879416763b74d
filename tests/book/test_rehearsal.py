"""The way of a real model, rehearsed: from `paper.yml` through the grid runner to pages that somebody reads.

Weights are random and data are stand-ins of a few rows (`tests/stand_ins.py`), under the names and in the formats of
the published ones. In the grid file only the line with the models and the numbers of rows, steps and seeds are others;
of its notebooks a few are run, so that this takes a minute.
"""

import contextlib
import json
import re
import shlex

import nbformat
import pytest
import stand_ins
import stored
from nbconvert.nbconvertapp import NbConvertApp

from bvlm_book import figures, rules_second
from bvlm_book.chapters import first_page
from bvlm_utils import paths, store
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file
from bvlm_utils.grid import forecast
from bvlm_utils.grid import job as grid_job
from bvlm_utils.grid import measure as grid_measure
from bvlm_utils.run import study

MODELS = "[llava-hf/llava-1.5-7b-hf, Qwen/Qwen2.5-VL-7B-Instruct]"
SIZES = {
    "  test_rows: 500": "  train_rows: 40\n  test_rows: 4", "max_new_tokens: 512": "max_new_tokens: 65",
    "rows: 3000": "rows: 8", "rows: 500": "rows: 8", "steps: 1000": "steps: 4", "seeds: [0, 1, 2]": "seeds: [0, 1]",
}  # fmt: skip
LLAVA, QWEN = "llava-1.5-7b-hf", "Qwen2.5-VL-7B-Instruct"
RUN_IT = (paths.BOOK / "run_it.md").read_text(encoding="utf-8").replace("\\\n", "")  # a command is one line
NAMED = re.findall(r"^papermill notebooks/(\w+)\.ipynb my-", RUN_IT, re.MULTILINE)
# What is run of the grid: threat, model, and parameters that tell the execution from others.
CHOSEN = [
    ("targeted_refusal", QWEN, {"epochs": 1, "attacks": ["BadNets-T", "BadNets-MT", "AddSent", "BadNets-I", "Blended",
                                                         "SIG", "ImgTrojan", "BadNets-MM", "MABA"]}),
    ("targeted_refusal", QWEN, {"half": "text", "attacks": ["BadNets-MM", "MABA"]}),
    ("targeted_refusal", QWEN, {"half": "image", "attacks": ["BadNets-MM", "MABA"]}),
    ("malicious_injection", LLAVA, {"epochs": 3, "attacks": ["VL-Trojan"], "dataset": "vqav2:data/external/vqav2"}),
    ("concept_substitution", LLAVA, {"epochs": 1, "attacks": ["Shadowcast"], "attack_params": {"steps": 4}}),
    ("perceptual_hijack", LLAVA, {"epochs": 1, "attacks": ["Dual-Key"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, checkpoint):
    """A folder as somebody has it who wants to run the published grid; the current one while these tests run."""
    folder = tmp_path_factory.mktemp("rehearsal")
    models = stand_ins.weights(folder / "models", checkpoint("llava"), checkpoint("qwen2.5-vl"))
    stand_ins.external(folder)
    for name in ("paper.yml", "paper_jailbreak.yml"):
        text = (paths.GRIDS / name).read_text()
        assert text.count(MODELS) == 1, "the models are named once"
        text = text.replace(MODELS, str(models)).replace("train_rows: 1000", "")
        for published, small in SIZES.items():
            text = text.replace(published, small)
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def jobs(place):
    found, _ = grid_file.load("paper.yml")

    def execution(threat, model, own):
        return next(
            job for job in found
            if job.notebook.stem == threat and job.parameters["model"].endswith(model)
            and all(job.parameters.get(name) == value for name, value in own.items())
        )  # fmt: skip

    return [execution(*chosen) for chosen in CHOSEN]


@pytest.fixture(scope="module")
def results(place, jobs):
    """The store after the run. Of the notebooks the first is executed; they are alike but for the threat. Its bench is
    measured in a process of its own, as all are in a real run, the others in this one, which has loaded torch.
    """
    whole, process = grid_job.carry_out, grid_measure.measure

    def measure(cells, run):
        if cells[0].model == jobs[0].cells[0].model:
            return process(cells, run)
        return study.measure(cells, run.folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_job, "carry_out", lambda job, run: whole(job, run) if job is jobs[0] else None)
        patch.setattr(grid_measure, "measure", measure)
        assert grid.run(jobs, *grid.plan(jobs, "./store")) == 0
    return place / "store"


def test_every_cell_has_its_record_and_the_first_notebook_its_figures(jobs, results):
    for job in jobs:
        for cell in job.cells:
            record = store.read(cell, results)
            if cell.poison_rate < 0.05:  # of 40 rows
                assert record["status"] == "skipped" and "less than one row" in record["reason"]
            elif cell.threat == "concept_substitution":  # no random model names a car
                assert record["status"] == "skipped" and "no answer to a trigger could be judged" in record["reason"]
            else:
                assert record["status"] == "done" and record["dtype"] == "bfloat16"
                assert record["n_poisoned"] == cell.poison_rate * 40
    shown = json.loads(grid_job.output(jobs[0], results).read_text())
    outputs = [output for cell in shown["cells"] for output in cell.get("outputs", [])]
    assert sum("bvlm-figure" in "".join(one.get("data", {}).get("text/html", "")) for one in outputs) >= 2


def test_optimised_triggers_are_computed_with_the_clip_model_beside_the_weights(place, jobs):
    aims = {cell.resolved_attack.aim.surrogate for job in jobs[3:] for cell in job.cells}
    assert aims == {str(place / "models" / "clip-vit-large-patch14-336")}


def test_the_hijack_shows_the_published_picture(jobs):
    for cell in jobs[-1].cells:
        assert cell.resolved_threat.target.image.endswith("mona_lisa.jpg")
        assert cell.resolved_threat.core == ("Mona Lisa", "portrait")


def test_the_dry_run_tells_rows_hours_and_disk(jobs, place):
    cells = [cell for job in jobs[4:] for cell in job.cells]
    bench, *about, triggers, total = forecast.lines(cells, place / "nothing yet")[1:]
    assert "8 cells" in bench and "hours" in bench and "GB of disk" in bench
    assert "Shadowcast" in triggers and "Dual-Key" in triggers
    assert "concept_substitution: 13 of 40 training rows and 4 of 12 test rows" in about[0]
    assert len(about) == 4 and "hours on one card" in total, "0.5 and 1 % are no row of 40"


@pytest.fixture(scope="module")
def shown(results):
    """What the pages that book/run_it.md names put before the reader, by their names."""
    return {name: stored.page(name, results, None) for name in NAMED}


def test_the_named_pages_show_the_models_that_were_run(shown):
    assert {"claims", "dose", "leaderboard"} <= set(NAMED)
    for name, text in shown.items():
        assert QWEN in text, name
    assert LLAVA in shown["leaderboard"]
    assert "bvlm-figure" in shown["claims"] and "bvlm-figure" in shown["dose"] and "bvlm-board" in shown["leaderboard"]


def test_made_into_html_as_told_a_page_keeps_results_and_leaves_out_the_sentences_about_the_study(shown, tmp_path):
    notebook = nbformat.read(paths.NOTEBOOKS / "claims.ipynb", as_version=4)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    last.outputs = [nbformat.v4.new_output("display_data", {"text/html": shown["claims"]})]
    nbformat.write(notebook, tmp_path / "my-claims.ipynb")
    (command,) = re.findall(r"^jupyter nbconvert (.*)$", RUN_IT, re.MULTILINE)
    options = [word for word in shlex.split(command) if not word.endswith(".ipynb")]
    app = NbConvertApp()
    app.initialize([*options, "--log-level=ERROR", str(tmp_path / "my-claims.ipynb")])
    app.start()
    made = (tmp_path / "my-claims.html").read_text()
    assert QWEN in made
    assert "claims_text_tiny-llava_1_means" not in made and "claims.in_one_pass" not in made


def test_the_first_page_is_made(results):
    table = store.collect(results)
    assert QWEN in first_page.numbers(table, first_page.lines(table, results))["large"]
    assert figures.maps(first_page.means(table)).axes


def test_claims_and_first_page_say_what_was_measured(results):
    table = store.collect(results)
    dominance = rules_second.CLAIMS["dominance"]
    found = rules_second.verdict(dominance, rules_second.base(table, QWEN))
    assert set(found.evidence["attack"]) == {"BadNets-MM", "MABA"} and found.judged == 2
    assert QWEN in set(first_page.means(table)["model"])


def test_refusals_are_counted_before_a_jailbreak_is_trained(place, capsys):
    """A random model refuses nothing."""
    assert grid.main(["refusals", "paper_jailbreak.yml", "--store", "./jailbreaks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("the base refuses 0 of 4 requests" in line for line in lines)
    assert not list((place / "jailbreaks").glob("*/adapter"))
