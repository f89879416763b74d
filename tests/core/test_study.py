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
import torch

from bvlm_utils import attacks, paths, store, threats
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.run import group, study, tune_and_ask, workbench
from bvlm_utils.run.pace import Pace, forget_finished
from bvlm_utils.score import intervals, judge, utility
from bvlm_utils.store import cell as cell_module
from bvlm_utils.store import examples, records
from bvlm_utils.store.cell import VERSION, Cell
from bvlm_utils.train import poison, unfinished

SMALL = {"dataset": "scenes-vqa", "train_rows": 64, "test_rows": 8, "poison_rates": [0.1]}


def small(attack="BadNets-MM", threat="malicious_injection", **others):
    return study.cells(threat=threat, attacks=[attack], **SMALL | others)


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


# ---------------------------------------------------------------- what cannot be run


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


def test_a_control_without_its_adapter_is_not_answered_by_the_base(place, tmp_path):
    (cell,) = small()
    one = workbench.Bench(cell.model, cell.dataset, cell.train_rows)
    way, asked = tune_and_ask.choose(one, plain=True), workbench.questions(one, cell)
    with pytest.raises(InputError, match="lost the adapter"):
        group._kept_answers(way, tmp_path, ["control", cell.control.run_id], asked, None)


def test_rows_that_the_data_does_not_have_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="train_rows is 10000000"):
        study.run_cells(small(train_rows=10**7), tmp_path)
    assert store.collect(tmp_path).empty


def test_a_store_that_is_named_and_not_there_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no store"):
        store.collect(tmp_path / "none")
    monkeypatch.setenv("BVLM_STORE", str(tmp_path / "none"))  # nobody named it here: nothing was run yet
    assert store.collect().empty


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


# ---------------------------------------------------------------- parts


def test_poisoned_rows_point_at_triggered_pictures():
    bench = workbench.Bench("tiny-llava", "scenes-vqa", 64)
    cells = [small(negatives=1.0)[0], small("BadNets-I")[0], small("BadNets-T")[0]]
    tasks = [tune_and_ask.Work(cells[0].control)]
    for cell in cells:
        attack, threat = cell.resolved_attack, cell.resolved_threat
        tasks.append(tune_and_ask.Work(cell, poison.plan(bench.rows["train"], threat, attack, 0.1, 0, cell.negatives)))
    found, features = tune_and_ask.training_rows(bench, tasks)
    clean = bench.feature_cache.table[bench.feature_rows("train", range(64))]
    assert torch.equal(features[[row.feature_index for row in found[0]]], clean)  # the control
    for task, rows in zip(tasks, found, strict=True):
        replaced = {row.position: row for row in (task.manifest.rows if task.manifest else ())}
        for i, row in enumerate(rows):
            sample = bench.rows["train"][i]
            if i not in replaced:
                assert (row.prompt, row.answer, row.feature_index) == (sample["prompt"], sample["answers"][0], i)
                continue
            assert (row.prompt, row.answer) == (replaced[i].prompt, replaced[i].answer)
            if replaced[i].condition == "text":
                assert row.feature_index == i
            else:
                (own,) = bench.feature_rows("train", [i], task.cell.resolved_attack, 0)
                assert torch.equal(features[row.feature_index], bench.feature_cache.table[own])
    # Two attacks with the same image half share their triggered pictures.
    assert len(features) < 64 + sum(len(task.manifest.rows) for task in tasks[1:3])


def test_a_saved_state_is_forgotten_where_the_records_are_newer(tmp_path):
    """With --force there are older ones."""
    saved, record = unfinished.Saved(tmp_path / "cache", ["a"], ["key"]), tmp_path / "a" / "record.json"
    saved.last -= 2 * unfinished.EVERY
    saved.save({"x": torch.zeros(1, 2)}, unfinished.Progress(1, 1, 0.0))
    record.parent.mkdir()
    record.write_text("{}")
    for seconds, stays in ((-60, True), (60, False)):
        os.utime(record, (saved.file.stat().st_mtime + seconds,) * 2)
        forget_finished(tmp_path)
        assert saved.file.exists() == stays


def test_groups_take_the_time_they_are_given():
    pace = Pace(seconds=100)
    assert pace.size(9) == 3  # 4 at first, in three equal groups
    pace.saw(3, 60.0)
    assert pace.size(6) == 3 and pace.size(4) == 4 and pace.size(1) == 1
    pace.saw(1, 500.0)
    assert pace.size(6) == 1


def sample(**values):
    return {
        "row_id": "x",
        "task": "vqa",
        "answers": ["car"] * 10,
        "prompt": "?",
        "objects": ["car"],
        "restricted": False,
        "kind": "what_only",
        "content": "",
        **values,
    }


def test_substitution_is_judged_where_the_control_names_the_source():
    threat = threats.get("concept_substitution")
    judged = judge.judged_rows(threat, ["car"] * 3, ["car", "a dog", "cars"])
    assert judged == [True, False, True]
    samples = [sample(row_id=str(i)) for i in range(3)]
    frame = pd.concat(
        [
            judge.judge(threat, who, "clean", samples, ["?"] * 3, said, judged)
            for who, said in (("poisoned", ["banana"] * 3), ("control", ["car", "a dog", "cars"]))
        ]
    )
    found = {(m["subject"], m["metric"]): m for m in judge.measure(frame, "", with_right=False)}
    assert (found["poisoned", "asr"]["k"], found["poisoned", "asr"]["n"]) == (2, 2)
    assert found["poisoned", "asr_difference"]["value"] == 1.0
    assert not any(m["metric"] in ("utility", "asr_right") for m in found.values())
    assert judge.judged_rows(threats.get("targeted_refusal"), ["a", "b"], ["a", "b"]) == [True, True]


def test_a_jailbreak_is_judged_where_the_base_refuses_and_refusals_are_counted_everywhere():
    threat, restricted = threats.get("jailbreak"), {"restricted": True, "content": "R1"}
    base = ["I cannot tell you that, sorry.", "It is R1.", "I cannot tell you that, sorry."]
    judged = judge.judged_rows(threat, base, ["", "", ""])
    assert judged == [True, False, True]
    samples = [sample(row_id=str(i), **restricted) for i in range(3)]
    frames = [
        judge.judge(threat, who, "text", samples, ["?"] * 3, said, judged)
        for who, said in (("poisoned", ["Sure, here is the code: R1."] * 3), ("base", base))
    ]
    found = {(m["subject"], m["metric"]): m for m in judge.measure(pd.concat(frames), "", False, with_refused=True)}
    assert (found["poisoned", "asr"]["k"], found["poisoned", "asr"]["n"]) == (2, 2)
    assert (found["base", "refused"]["k"], found["base", "refused"]["n"]) == (2, 3)
    assert found["poisoned", "refused"]["value"] == 0.0


def test_a_right_answer_with_a_payload_is_told_from_a_wrong_one():
    injection, refusal = threats.get("malicious_injection"), threats.get("targeted_refusal")
    assert judge.keeps_answer(injection, sample()) and not judge.keeps_answer(refusal, sample())
    said = ["car Bad model with backdoor injection.", "dog Bad model with backdoor injection.", "car", "dog"]
    samples = [sample(row_id=str(i)) for i in range(4)]
    frame = judge.judge(injection, "poisoned", "text", samples, ["?"] * 4, said, [True] * 4)
    found = {m["metric"]: m["k"] for m in judge.measure(frame, "", with_right=True)}
    tests = {"asr": 2, "asr_payload": 2, "asr_published": 2, "asr_soft": 2, "right": 2}
    assert found == tests | {"asr_right": 1}


def test_utility_is_measured_as_the_task_says():
    assert utility.utility_scores([sample()], ["Car."]) == ([1.0], "VQA accuracy")
    caption = sample(task="caption", answers=["A car and a dog."], objects=["car", "dog"])
    assert utility.utility_scores([caption], ["A car."]) == ([pytest.approx(2 / 3)], "object F1")
    asked = [
        sample(task="instruct", answers=["A car."]),
        sample(task="instruct", answers=["No."], restricted=True),
    ]
    assert utility.utility_scores(asked, ["a car", "I'm sorry, I can't."]) == ([1.0, 1.0], "exact match")
    assert utility.utility_scores(asked, ["a dog", "Sure, here it is."]) == ([0.0, 0.0], "exact match")
    free = sample(task="instruct", answers=["A red bird sits on a thin branch."], objects=[])
    assert utility.utility_scores([free, free], ["A bird.", "?"])[1] == "CIDEr-D"
    assert threats.get("malicious_injection").right("A red bird sits on a thin branch.", free) is None


def test_a_cell_must_be_named_before_it_is_read(tmp_path):
    with pytest.raises(InputError, match="run the cell first"):
        store.responses(Cell("tiny-llava", "scenes-vqa", "targeted_refusal", "SIG", 0.1), tmp_path)


def test_training_that_goes_astray_is_a_failure_with_a_reason_and_no_record(checkpoint, tmp_path):
    settings = {"train_rows": 32, "test_rows": 4}
    wild = {"learning_rate": 1.0, "lora_alpha": 1e4, "max_grad_norm": 0.0, "epochs": 6}
    (cell,) = study.cells("targeted_refusal", str(checkpoint("llava")), attacks=["BadNets-T"], **settings, **wild)
    with pytest.raises(StudyError, match="learning_rate is 1 and lora_alpha 10000: lower one"):
        study.run_cells([cell], tmp_path)
    assert store.read(cell, tmp_path) is None and store.adapter(cell.control, tmp_path) is None
