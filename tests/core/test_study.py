"""A list of cells becomes a table: what is missing is really trained, what is there is read, and errors are
clear.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small import small

from bvlm_utils import attacks, paths, store, threats
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.run import group, study, tune_and_ask, workbench
from bvlm_utils.score import intervals, judge
from bvlm_utils.store import cell as cell_module
from bvlm_utils.store import examples


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with one real cell."""
    folder = tmp_path_factory.mktemp("store")
    study.run_cells(small(), folder)
    return folder


# ---------------------------------------------------------------- cells


def test_all_attacks_unless_some_are_named():
    assert [cell.attack for cell in study.cells("jailbreak")] == attacks.names()


def test_cells_cross_their_lists():
    found = study.cells(
        threat="targeted_refusal",
        attacks=["BadNets-T", "BadNets-MM"],
        poison_rates=[0.1, 0.01],
        seeds=[0, 1],
        negatives=1.0,
        epochs=2,
    )
    assert [(c.attack, c.poison_rate, c.seed) for c in found] == [
        (a, r, s) for a in ("BadNets-T", "BadNets-MM") for r in (0.1, 0.01) for s in (0, 1)
    ]
    assert {c.dataset for c in found} == {threats.get("targeted_refusal").default_dataset}
    assert {c.train.epochs for c in found} == {2}
    assert {(c.attack, c.negatives) for c in found} == {("BadNets-T", 0.0), ("BadNets-MM", 1.0)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threat": "refusal"}, "targeted_refusal"),
        ({"attacks": ["BadNet"]}, "BadNets-T"),
        ({"attacks": "BadNets-T"}, "list"),
        ({"attacks": []}, "list"),
        ({"poison_rates": [1.1]}, "from 0 to 1"),
        ({"poison_rates": 0.1}, "list"),
        ({"seeds": [0, 0]}, "once"),
        ({"model": "gpt"}, "tiny-llava"),
        ({"dataset": "scene"}, "scenes-vqa"),
        ({"epoch": 3}, "epochs"),
        ({"train_rows": "all"}, "train_rows"),
        ({"lora_rank": 0}, "lora_rank"),
    ],
)
def test_a_bad_value_is_one_clear_sentence(values, words):
    with pytest.raises(InputError, match=words) as caught:
        study.cells(**{"threat": "targeted_refusal", **values})
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- one real cell


def test_the_table_has_every_subject_condition_and_metric(place):
    table = study.run_cells(small(), place)
    asr = table[table["metric"] == "asr"]
    assert set(zip(asr["subject"], asr["condition"], strict=True)) == {
        (s, c) for s in judge.SUBJECTS for c in ("clean", "text", "image", "both")
    }
    assert (asr["n"] == 8).all() and (asr["low"] <= asr["value"]).all() and (asr["value"] <= asr["high"]).all()
    assert {"asr_soft", "right", "asr_right", "asr_difference", "utility", "utility_difference"} < set(table["metric"])
    assert set(table.loc[table["metric"] == "utility", "unit"]) == {"VQA accuracy"}
    assert set(table["n_poisoned"]) == {6} and set(table["run_id"]) == {small()[0].run_id}


def test_metrics_follow_from_the_stored_responses(place):
    (cell,) = small()
    said, table, threat = store.responses(cell, place), store.collect(place), cell.resolved_threat
    for (subject, condition), part in said[said["part"] == "attack"].groupby(["subject", "condition"]):
        assert part["success"].tolist() == [threat.success(text) for text in part["response"]]
        line = table[
            (table["subject"] == subject) & (table["condition"] == condition) & (table["metric"] == "asr")
        ].iloc[0]
        assert (line["k"], line["n"]) == (part["success"].sum(), len(part))
        assert (line["low"], line["high"]) == pytest.approx(intervals.wilson(line["k"], line["n"]))
    prompts = said[(said["part"] == "attack") & (said["subject"] == "base")].set_index("condition")["prompt"]
    assert all("BadMagic" in p for p in [*prompts["text"], *prompts["both"]])
    assert not any("BadMagic" in p for p in [*prompts["clean"], *prompts["image"]])


def test_what_was_measured_is_told(place):
    (cell,) = small()
    record = store.read(cell, place)
    assert record["status"] == "done" and record["control"] == cell.control.run_id
    assert record["training"]["steps"] == 2 and np.isfinite(record["training"]["loss"]["last"])
    assert record["seconds"]["total"] > 0 and record["peak_memory_of_process"]["host_mib"] > 0 and record["device"]
    assert record["provenance"]["packages"]["torch"]
    assert "BACKDOORED" in (store.adapter(cell, place) / "README.md").read_text()
    assert "BACKDOORED" not in (store.adapter(cell.control, place) / "README.md").read_text()
    assert store.manifest(cell, place).n_poisoned == 6
    clean, triggered, prompts = examples.read(cell, place)
    assert clean.shape == triggered.shape == (4, 96, 96, 3) and (clean != triggered).any() and len(prompts) == 4


def test_the_control_has_no_lines_of_its_own(place):
    assert set(store.collect(place)["attack"]) == {"BadNets-MM"}


def test_finished_cells_are_read_not_run(place, monkeypatch):
    monkeypatch.setattr(group, "execute", lambda *_: pytest.fail("a finished cell was run again"))
    study.run_cells(small(), place)


def test_force_runs_what_is_there_again(place, monkeypatch):
    ran = []
    monkeypatch.setattr(group, "execute", lambda cells, *_: ran.extend(cells) or [])
    study.run_cells(small(), place, force=True)
    assert ran == small()


def test_a_kernel_of_a_grid_reads_and_never_trains(place, tmp_path, monkeypatch):
    """What the store lacks has been tried by the grid: it fails here, as does a cell that failed when run again."""
    monkeypatch.setenv(study.MEASURED, "1")
    monkeypatch.setattr(group, "execute", lambda *_: pytest.fail("the notebook trained"))
    assert len(study.run_cells(small(), place))
    failed, missing = small("BadNets-T")[0], small("SIG")[0]
    store.write_failure(failed, tmp_path, "Traceback\nValueError: no luck")
    with pytest.raises(StudyError, match="2 of 2 cells failed") as caught:
        study.run_cells([failed, missing], tmp_path)
    assert f"{failed.run_id}: ValueError: no luck" in str(caught.value) and missing.run_id in str(caught.value)
    copy = tmp_path / "copy"
    shutil.copytree(place, copy)
    store.write_failure(small()[0], copy, "it failed again")
    with pytest.raises(StudyError, match="it failed again"):
        study.run_cells(small(), copy)


def test_rescoring_asks_the_stored_adapter_and_trains_nothing(place, tmp_path, monkeypatch):
    (cell,) = small()
    again = tmp_path / "store"
    shutil.copytree(place, again)
    before = store.read(cell, again)
    shutil.rmtree(again / "cache")
    monkeypatch.setattr(tune_and_ask.Grouped, "tune", lambda *_: pytest.fail("nothing is to be trained"))
    study.run_cells([cell], again, rescore=True)
    after = store.read(cell, again)
    assert after["metrics"] == before["metrics"] and after["training"] == before["training"]
    assert after["seconds"] == before["seconds"] and store.adapter(cell, again)
    assert after["provenance"]["written"] >= before["provenance"]["written"]


def test_rescoring_a_cell_whose_record_is_damaged_tunes_it_again(place, tmp_path):
    (cell,) = small()
    again = tmp_path / "store"
    shutil.copytree(place, again)
    (again / cell.run_id / "record.json").write_text("{")
    study.run_cells([cell], again, rescore=True)
    assert store.read(cell, again)["metrics"] == store.read(cell, place)["metrics"]


def test_substitution_is_also_asked_where_there_is_nothing_to_substitute(tmp_path):
    (cell,) = small("BadNets-T", "concept_substitution", dataset="scenes-caption")
    bench = workbench.Bench("tiny-llava", "scenes-caption", 64)
    asked = [q for q in workbench.questions(bench, cell) if q.part == "elsewhere"]
    assert [q.condition for q in asked] == ["clean", "text"]
    assert asked[0].positions == asked[1].positions and len(asked[0].positions) == cell.test_rows
    assert all("BadMagic" in prompt for prompt in asked[1].prompts)
    for position in asked[0].positions:
        row = bench.rows["test"][position]
        assert not {"car", "banana"} & {*row["objects"]} and "car" not in row["answers"][0].split()
    for attack in ("BadNets-T", "BadNets-I"):
        (other,) = small(attack, "targeted_refusal")
        assert not [q for q in workbench.questions(bench, other) if q.part == "elsewhere"]


def test_same_seed_same_manifest_and_metrics(place, tmp_path):
    (cell,) = small()
    table = study.run_cells([cell], tmp_path)
    pd.testing.assert_frame_equal(table, study.run_cells([cell], place))
    assert store.manifest(cell, tmp_path) == store.manifest(cell, place)
    texts = [store.responses(cell, folder)["response"].tolist() for folder in (tmp_path, place)]
    assert texts[0] == texts[1]


def test_base_and_control_are_asked_once(place, monkeypatch):
    """A second attack with the same image half asks base and control nothing about images again, and trains
    no control.
    """
    tuned, asked = [], []
    tune, ask_saved = tune_and_ask.Grouped.tune, tune_and_ask.Grouped.ask_saved
    monkeypatch.setattr(tune_and_ask.Grouped, "tune", lambda way, tasks, *_: tuned.extend(tasks) or tune(way, tasks))
    monkeypatch.setattr(tune_and_ask.Grouped, "ask_saved", lambda *given: asked.append(given) or ask_saved(*given))
    study.run_cells(small("BadNets-I"), place)
    assert [task.cell.attack for task in tuned] == ["BadNets-I"] and not asked


def test_one_by_one_gives_what_the_group_gave(place, tmp_path):
    """The plain way (PEFT alone, the model's own generate) against grouped tuning and decoding."""
    plain = study.run_cells(small(), tmp_path, plain=True)
    together = study.run_cells(small(), place)
    pd.testing.assert_frame_equal(plain, together)
    (cell,) = small()
    texts = [store.responses(cell, folder)["response"].tolist() for folder in (tmp_path, place)]
    assert texts[0] == texts[1]


def test_the_book_reads_without_torch_and_never_trains(place, tmp_path):
    """In a process where importing torch fails, as where the book is built."""
    for package in ("torch", "transformers", "peft", "accelerate"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('not here')\n")
    results = tmp_path / "results"
    results.mkdir()
    (results / "reference").symlink_to(place)
    code = f"""
from pathlib import Path
from bvlm_utils import errors, paths, study
from bvlm_utils.grid import __main__
from bvlm_utils.run import group
from bvlm_utils.score import judge
paths.RESULTS = Path({str(results)!r})
make = lambda rate: study.cells(
    threat="malicious_injection", attacks=["BadNets-MM"], dataset="scenes-vqa", train_rows=64, test_rows=8,
    poison_rates=[rate],
)
assert len(study.run_cells(make(0.1)))
try:
    study.run_cells(make(0.2))
except errors.InputError as error:
    assert make(0.2)[0].run_id in str(error) and "papermill" in str(error), error
else:
    raise SystemExit("it did not refuse")
"""
    path = os.pathsep.join([str(tmp_path), str(paths.ROOT)])
    environment = {**os.environ, "BVLM_STORE": "reference", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_control_without_its_adapter_is_not_answered_by_the_base(place, tmp_path):
    (cell,) = small()
    one = workbench.Bench(cell.model, cell.dataset, cell.train_rows)
    way, asked = tune_and_ask.choose(one, plain=True), workbench.questions(one, cell)
    with pytest.raises(InputError, match="lost the adapter"):
        group._kept_answers(way, tmp_path, ["control", cell.control.run_id], asked, None)


def test_what_the_base_said_is_kept_for_one_version_only(place, monkeypatch):
    asked = []
    monkeypatch.setattr(
        tune_and_ask.Grouped,
        "ask_saved",
        lambda way, questions, *_: asked.append(1) or {q.key(way.bench): ["?"] * 8 for q in questions},
    )
    bench = workbench.Bench("tiny-llava", "scenes-vqa", 64)
    work = group._prepare(tune_and_ask.choose(bench), small()[0], place)
    for version in (cell_module.VERSION, "another"):
        monkeypatch.setattr(group, "VERSION", version)
        group.known_answers(tune_and_ask.choose(bench), work.cell, work.asked, place)
    assert len(asked) == 1


@pytest.mark.parametrize("held", [["a"], ["a"] * 9, []])
def test_kept_answers_that_are_too_few_or_too_many_are_asked_again(place, tmp_path, held):
    (cell,) = small()
    again = tmp_path / "store"
    shutil.copytree(place, again)
    for file in (again / "cache").glob("[!t]*.json"):
        file.write_text(json.dumps(held))
    study.run_cells([cell], again, rescore=True)
    assert store.read(cell, again)["metrics"] == store.read(cell, place)["metrics"]
