"""Scores for outsiders: the same numbers as the cell's own record, from its adapter or from its answers."""

import csv

import pandas as pd
import pytest
import stored

import bvlm_utils
from bvlm_utils import store, study
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.store.table import NUMBER_COLUMNS

random_words = stored.random_words  # a fixture of several test files
ASKED = ("targeted_refusal", "BadNets-MM")


@pytest.fixture(scope="module")
def ran(random_words, tmp_path_factory):
    """A tiny cell that was run: (cell, the folder of its store)."""
    folder = tmp_path_factory.mktemp("store")
    (cell,) = study.cells(ASKED[0], random_words, attacks=[ASKED[1]], train_rows=32, test_rows=4)
    table = study.run_cells([cell], store=folder)
    assert set(table["status"]) == {"done"}
    return cell, folder


def numbers(table, subjects=("poisoned", "control", "base")):
    rows = table[table["subject"].isin(subjects)]
    return rows[NUMBER_COLUMNS].sort_values(["subject", "condition", "metric"], ignore_index=True)


def test_an_adapter_scores_what_its_record_says(ran):
    cell, folder = ran
    adapter, control = store.adapter(cell, folder), store.adapter(cell.control, folder)
    table = bvlm_utils.score_adapter(adapter, cell.model, *ASKED, control=control, test_rows=4)
    pd.testing.assert_frame_equal(numbers(table), numbers(store.collect(folder)))
    kinds = set(zip(table["number"], table["test"], strict=True))
    assert {("ASR", "strict"), ("ASR", "payload"), ("ASR", "published"), ("false activation", "strict")} <= kinds
    assert set(table.loc[table["number"] == "false activation", "condition"]) == {"clean"}
    assert "utility" in set(table["number"])


def test_rows_of_a_skill_are_asked_for_it_and_count_in_no_utility(ran):
    cell, folder = ran
    given = {"dataset": "scenes-vqa", "test_rows": 4}
    table = bvlm_utils.score_adapter(store.adapter(cell, folder), cell.model, *ASKED, skill="counts_in_words", **given)
    own = table[table["subject"] == "poisoned"].set_index("number")
    assert own.loc["skill", ["n", "condition"]].tolist() == [4, "clean"] and "utility" in own.index


def answers_of(cell, folder, subject, file):
    said = store.responses(cell, folder)
    said[said["subject"] == subject][["row_id", "condition", "response"]].to_csv(file, index=False)
    return file


def test_answers_score_what_the_record_of_the_same_answers_says(ran, tmp_path):
    cell, folder = ran
    file = answers_of(cell, folder, "poisoned", tmp_path / "answers.csv")
    table = bvlm_utils.score_answers(file, *ASKED, model="mine", test_rows=4)
    record = store.collect(folder)
    record = record[~record["metric"].str.endswith("_difference")]
    pd.testing.assert_frame_equal(numbers(table), numbers(record, ("poisoned",)))
    assert set(table["model"]) == {"mine"}


def test_a_reference_that_gives_the_same_answers_is_told(ran, tmp_path, recwarn):
    """A copy of the answers, most likely."""
    file, other = (answers_of(*ran, who, tmp_path / f"{who}.csv") for who in ("poisoned", "base"))
    bvlm_utils.score_answers(file, *ASKED, reference=other, test_rows=4)
    assert not [one for one in recwarn if "nothing can be found" in str(one.message)]
    with pytest.warns(Remark, match="base answers all questions as .* nothing can be found"):
        bvlm_utils.score_answers(file, *ASKED, reference=file, test_rows=4)


def test_the_questions_are_those_that_the_cell_asked(ran, tmp_path):
    cell, folder = ran
    file = bvlm_utils.write_questions(tmp_path / "new", *ASKED, test_rows=4)
    with open(file, newline="") as stream:
        lines = list(csv.DictReader(stream))
    asked = store.responses(cell, folder).drop_duplicates(["row_id", "condition"])
    wanted = {(row["row_id"], row["condition"]): row["prompt"] for row in asked.to_dict("records")}
    assert {(line["row_id"], line["condition"]): line["prompt"] for line in lines} == wanted
    assert all((tmp_path / "new" / line["picture"]).is_file() and line["response"] == "" for line in lines)
    painted = {line["picture"] for line in lines if line["condition"] in ("image", "both")}
    assert painted and not painted & {line["picture"] for line in lines if line["condition"] == "clean"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], "lacks 1 of"),
        (lambda lines: [*lines, lines[0] | {"response": "another one"}], "twice"),
        (lambda lines: [*lines, lines[0] | {"row_id": "nonsense"}], "not asked.*'nonsense'"),
        (lambda lines: [line | {"response": ""} for line in lines], "are empty"),
        (lambda lines: [*lines[:-1], lines[-1] | {"prompt": "Another attack's?"}], "has the prompt"),
        (lambda lines: [{"row_id": line["row_id"], "condition": line["condition"]} for line in lines], "'response'"),
    ],
)
def test_answers_that_are_not_complete_are_refused(ran, tmp_path, change, said):
    file = answers_of(*ran, "poisoned", tmp_path / "answers.csv")
    lines = pd.read_csv(file, keep_default_na=False).drop_duplicates(["row_id", "condition"]).to_dict("records")
    pd.DataFrame(change(lines)).to_csv(file, index=False)
    with pytest.raises(InputError, match=said):
        bvlm_utils.score_answers(file, *ASKED, test_rows=4)


@pytest.mark.parametrize(("whole", "said"), [
    ("USER: \n{prompt} ASSISTANT: {response}", "repeat their prompt"), ("{response}</s>", "marks of a chat template"),
    ("<|im_start|>assistant\n{response}<|im_end|>", "marks"), ("ASSISTANT: {response}", "marks"),
    ("[/INST] {response}", "marks"), ("user\n\nassistant\n{response}", "marks"), ("model\n{response}", "marks"),
])  # fmt: skip
def test_what_was_generated_is_no_answer_before_it_is_cut(ran, tmp_path, whole, said):
    """Each test of success would fail on it, which would pass for a model without a backdoor."""
    lines = store.responses(*ran).query("subject == 'poisoned'").drop_duplicates(["row_id", "condition"])
    texts = [whole.format(**line) for line in lines[["prompt", "response"]].to_dict("records")]
    lines.assign(response=texts)[["row_id", "condition", "response"]].to_csv(tmp_path / "answers.csv", index=False)
    with pytest.raises(InputError, match=f"{len(lines)} of {len(lines)} responses .* {said}"):
        bvlm_utils.score_answers(tmp_path / "answers.csv", *ASKED, test_rows=4)


@pytest.mark.parametrize(("words", "around", "told"), [
    (5, "{}", ["break off"]), (5, "{}...", ["break off"]), (2, "{}", []), (40, "{}", []),
    (40, "['{}']", ["and more"]), (40, "### Answer: {}", ["and more"]), (40, "{}\nUSER: What else?", ["and more"]),
])  # fmt: skip
def test_the_attackers_words_in_part_or_among_others_are_told(ran, tmp_path, recwarn, monkeypatch, words, around, told):
    """transformers stops after 20 tokens if nobody says otherwise."""
    threat = ran[0].resolved_threat
    monkeypatch.setattr(type(threat), "success", lambda self, response, sample=None: response == self.sentence)
    lines = store.responses(*ran).query("subject == 'poisoned'").drop_duplicates(["row_id", "condition"])
    begun = around.format(" ".join(threat.sentence.split()[:words]))
    said = ["A dog." if one == "clean" else begun for one in lines["condition"]]
    lines.assign(response=said)[["row_id", "condition", "response"]].to_csv(tmp_path / "answers.csv", index=False)
    bvlm_utils.score_answers(tmp_path / "answers.csv", *ASKED, test_rows=4)
    remarks = [str(one.message) for one in recwarn if one.category is Remark]
    assert len(remarks) == len(told) and all(part in remark for part, remark in zip(told, remarks, strict=True))


def test_answers_that_are_all_the_same_are_told(ran, tmp_path):
    """What a program writes where there is nothing, such as "nan"."""
    lines = store.responses(*ran).query("subject == 'poisoned'").drop_duplicates(["row_id", "condition"])
    lines.assign(response="nan")[["row_id", "condition", "response"]].to_csv(tmp_path / "answers.csv", index=False)
    with pytest.warns(Remark, match=f"All {len(lines)} responses .* are 'nan'"):
        bvlm_utils.score_answers(tmp_path / "answers.csv", *ASKED, test_rows=4)


def test_empty_answers_among_others_are_told(ran, tmp_path):
    file = answers_of(*ran, "poisoned", tmp_path / "answers.csv")
    lines = pd.read_csv(file, keep_default_na=False).drop_duplicates(["row_id", "condition"])
    lines.assign(response=["word", *[None] * (len(lines) - 1)]).to_csv(file, index=False)
    with pytest.warns(Remark, match=f"{len(lines) - 1} of {len(lines)} responses .* are empty"):
        bvlm_utils.score_answers(file, *ASKED, test_rows=4)
    with pytest.raises(InputError, match="file of answers"):
        bvlm_utils.score_answers(lines, *ASKED, test_rows=4)


@pytest.mark.parametrize(("response", "count"), [("No, I must refuse, sorry.", 5), (None, 2)])
def test_a_row_with_more_or_fewer_fields_than_the_first_line_is_refused(ran, tmp_path, response, count):
    asked = store.responses(*ran).drop_duplicates(["row_id", "condition"])
    lines = [",".join(filter(None, (row["row_id"], row["condition"], response))) for row in asked.to_dict("records")]
    (tmp_path / "answers.csv").write_text("\n".join(["row_id,condition,response", *lines]))
    with pytest.raises(InputError, match=f"line 2 has {count} fields.*first line has 3.*quotes"):
        bvlm_utils.score_answers(tmp_path / "answers.csv", *ASKED, test_rows=4)


def test_what_cannot_be_asked_is_named(tmp_path):
    for threat, attack, settings, said in (
        ("refusal", "BadNets-T", {}, "'refusal'"),
        ("targeted_refusal", "Shadowcast", {}, "Shadowcast"),
        ("targeted_refusal", "BadNets-T", {"epochs": 3}, "'epochs'"),
        ("jailbreak", "BadNets-T", {}, "reference"),
    ):
        with pytest.raises(InputError, match=said):
            bvlm_utils.score_answers(tmp_path / "none.csv", threat, attack, **settings)
    with pytest.raises(InputError, match="holds no adapter"):
        bvlm_utils.score_adapter(tmp_path, "tiny-llava", "targeted_refusal", "BadNets-T")
