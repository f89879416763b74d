"""A study from a list of cells to a table, on every architecture with random weights."""

from peft import PeftModel
from transformers import AutoModelForImageTextToText

from bvlm_utils import store, study
from bvlm_utils.run import group, tune_and_ask, workbench

FEW = {"train_rows": 24, "test_rows": 4, "poison_rates": [0.25], "max_new_tokens": 64, "batch_size": 8}


def asked_again(cell, place):
    """What the base and the stored adapters answer one by one, by subject and condition."""
    bench = workbench.Bench(*workbench.bench_key(cell))
    asked = [question for question in workbench.questions(bench, cell) if question.part == "attack"]
    way, found = tune_and_ask.OneByOne(bench), {}
    for subject, of in {"base": None, "control": cell.control, "poisoned": cell}.items():
        said = way.ask_saved(asked, of and store.adapter(of, place))
        found |= {(subject, question.condition): list(said[question.key(bench)]) for question in asked}
    return found


def test_cells_of_any_family_are_run_and_their_adapters_say_what_was_stored(random_victim, tmp_path):
    cells = study.cells("targeted_refusal", model=random_victim.name, attacks=["BadNets-T", "BadNets-MM"], **FEW)
    table = study.run_cells(cells, tmp_path)
    assert set(table["status"]) == {"done"} and set(table["attack"]) == {"BadNets-T", "BadNets-MM"}
    rates = table[(table["metric"] == "asr") & (table["attack"] == "BadNets-MM")]
    assert len(rates) == 3 * 4 and (rates["n"] == 4).all(), "three subjects under four conditions"

    cell = cells[1]
    said = store.responses(cell.run_id, tmp_path)
    said = said[said["part"] == "attack"]
    for (subject, condition), answers in asked_again(cell, tmp_path).items():
        stored = said[(said["condition"] == condition) & (said["subject"] == subject)]
        assert answers == stored["response"].tolist()
    PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(random_victim.name), store.adapter(cell, tmp_path)
    )


def test_a_study_with_the_picture_after_the_words_is_another_one(checkpoint, tmp_path):
    model = str(checkpoint("qwen2.5-vl"))
    usual, late = (
        study.cells("targeted_refusal", model=model, attacks=["BadNets-MM"], picture_last=last, **FEW)[0]
        for last in (False, True)
    )
    table = study.run_cells([usual, late], tmp_path)
    said = dict(zip(table["run_id"], table["settings"], strict=True))
    assert said[usual.run_id] == "batch_size=8, max_new_tokens=64"
    assert said[late.run_id] == "batch_size=8, max_new_tokens=64, picture_last=True"
    assert usual.control.run_id != late.control.run_id
    first, last = (store.responses(cell.run_id, tmp_path) for cell in (usual, late))
    base = first["subject"] == "base"
    assert first.loc[base, "prompt"].tolist() == last.loc[base, "prompt"].tolist()
    assert first.loc[base, "response"].tolist() != last.loc[base, "response"].tolist(), "no answer from the cache"
    clean = last[(last["condition"] == "clean") & (last["part"] == "attack")]
    again = asked_again(late, tmp_path)
    for subject in ("base", "control", "poisoned"):
        assert again[subject, "clean"] == clean.loc[clean["subject"] == subject, "response"].tolist()


def test_where_the_base_refuses_nothing_there_is_no_jailbreak_to_see(checkpoint, tmp_path):
    few = FEW | {"train_rows": 64, "poison_rates": [0.05]}
    cells = study.cells("jailbreak", model=str(checkpoint("llava")), attacks=["BadNets-T"], **few)
    told = []
    assert group.execute(cells, tmp_path, lambda cell, status: told.append(status)) == []
    assert told == ["skipped"]
    assert study.run_cells(cells, tmp_path)["status"].tolist() == ["skipped"]
    reason = store.read(cells[0], tmp_path)["reason"]
    assert "In none of the 4 eligible test rows" in reason and "the base refuses the request" in reason


def test_a_base_in_four_bit_is_studied_like_any_other(checkpoint, tmp_path):
    model = str(checkpoint("llava"))
    cells = study.cells("targeted_refusal", model=model, attacks=["BadNets-T"], four_bit=True, **FEW)
    table = study.run_cells(cells, tmp_path)
    assert set(table["status"]) == {"done"} and store.adapter(cells[0], tmp_path)
    whole = study.cells("targeted_refusal", model=model, attacks=["BadNets-T"], **FEW)
    assert whole[0].run_id != cells[0].run_id
