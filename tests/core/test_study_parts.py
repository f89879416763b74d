"""Parts of a study by themselves: poisoned rows, saved states, who is judged where."""

import os

import pandas as pd
import pytest
import torch
from small import small

from bvlm_utils import store, threats
from bvlm_utils.errors import InputError, StudyError
from bvlm_utils.run import study, tune_and_ask, workbench
from bvlm_utils.run.pace import Pace, forget_finished
from bvlm_utils.score import judge, utility
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import poison, unfinished


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
