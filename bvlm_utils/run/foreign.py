"""Scores of what was not made here: a foreign adapter, or the answers of a model that only its owner can run.

    import bvlm_utils
    bvlm_utils.score_adapter("my-adapter", "tiny-llava", "targeted_refusal", "BadNets-T")
    bvlm_utils.score_answers("answers.csv", "targeted_refusal", "BadNets-T")

The questions, the tests and the intervals are those of the study's cells, so the numbers can be laid beside them.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from bvlm_utils import threats
from bvlm_utils.checks import brief, is_visible, known
from bvlm_utils.data.llava_json import MARKS
from bvlm_utils.documents import read_csv
from bvlm_utils.errors import InputError, remark
from bvlm_utils.models import names
from bvlm_utils.paths import named, new_folder
from bvlm_utils.run import lengths, tune_and_ask
from bvlm_utils.run.group import judged
from bvlm_utils.run.tune_and_ask import Answers
from bvlm_utils.run.workbench import Bench, Question, bench_key, questions
from bvlm_utils.store.cell import Cell
from bvlm_utils.store.table import NUMBER_COLUMNS
from bvlm_utils.threats.responses import normalise, says

# Settings of a cell that change what is asked. skill: what the adapter was taught beside, such as ours of the defence
# grid; its rows are then asked for it, and are left out of the utility.
SETTINGS = ("attack_params", "threat_params", "trigger_seed", "test_rows", "max_new_tokens", "picture_last", "four_bit",
            "dtype", "surrogate", "skill")  # fmt: skip
TESTS = {"asr": "strict", "asr_soft": "soft", "asr_payload": "payload", "asr_published": "published",
         "asr_published_soft": "published, soft"}  # fmt: skip
Key = tuple[str, str]  # of an input: its row and its condition
COLUMNS = ["model", "dataset", "threat", "attack", "number", "test", *NUMBER_COLUMNS]
QUESTIONS, NEEDED = "questions.csv", ("row_id", "condition", "response")
ANY_MODEL = "tiny-llava"  # stands for a model that is not at hand: no question depends on it


def score_adapter(
    folder: str | Path,
    model: str | None,
    threat: str,
    attack: str,
    control: str | Path | None = None,
    dataset: str | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Ask an adapter in PEFT's format the test questions of a cell, and judge its answers: a line per number
    (`COLUMNS`).

    model: the base under it; None: the one that its files name. control: an adapter of the same base that was tuned
    without poison; with it there are paired differences, and without it the base alone decides which rows are judged.
    dataset: the threat's own if not given. settings: of `SETTINGS`, as in `store.cell.Cell`. number: "ASR", "false
    activation" (the same test without a trigger) or another of `score.judge.measure`; test: which test of success it is
    by. subject: "poisoned" is the adapter itself, whatever it is. InputError names what is wrong.
    """
    suspect = names.adapter_folder(str(folder))
    trusted = names.adapter_folder(str(control)) if control is not None else None
    cell = cell_of(names.base_under(suspect, model), threat, attack, dataset, settings)
    if trusted is not None:
        names.base_under(trusted, cell.model)  # says if it names another
    names.go_offline(cell.model)
    bench = Bench(*bench_key(cell))
    question_list, way = questions(bench, cell), tune_and_ask.choose(bench)
    prompts = [prompt for question in question_list for prompt in question.prompts]
    lengths.check_prompts(cell.model, prompts, f"a prompt of {threat},", cell.max_new_tokens, cell.picture_last)
    lengths.check_grades(cell, bench.rows["test"])
    answers = {"poisoned": way.ask_saved(question_list, suspect), "base": way.ask_saved(question_list, None)}
    if trusted:
        answers["control"] = way.ask_saved(question_list, trusted)
    return _table(bench, cell, question_list, answers)


def score_answers(
    file: str | Path,
    threat: str,
    attack: str,
    reference: str | Path | None = None,
    model: str = "",
    dataset: str | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Judge answers that were given elsewhere to the questions of `write_questions`; the table of `score_adapter`.

    file: CSV with the columns row_id, condition and response, a line per question. reference: a file of the same kind
    with the answers of the same model without the attack; threats that judge only what an untouched model does right
    cannot be judged without it. model: what the table calls the model.
    """
    cell = cell_of(ANY_MODEL, threat, attack, dataset, settings)
    if cell.resolved_threat.judged_where and reference is None:
        raise InputError(
            f"Of threat {threat!r} only rows are judged where {cell.resolved_threat.judged_where}, without a trigger; "
            "give a reference: the answers of the same model without the attack."
        )
    bench = Bench(*bench_key(cell))
    question_list = questions(bench, cell)
    answers = {"poisoned": _read(named(file, "file of answers"), bench, question_list)}
    _tell_missed(file, cell, bench, question_list, answers["poisoned"])
    if reference is not None:
        answers["base"] = _read(named(reference, "file of answers"), bench, question_list)
    return _table(bench, cell, question_list, answers).assign(model=model)


def write_questions(folder: str | Path, threat: str, attack: str, dataset: str | None = None, **settings: Any) -> Path:
    """Write what has to be answered for `score_answers` into a new folder; the path of its `questions.csv`.

    A line per question: row_id, condition, the picture's file (PNG, triggered where the condition is), the prompt, and
    an empty response.
    """
    cell = cell_of(ANY_MODEL, threat, attack, dataset, settings)
    folder = new_folder(folder)
    bench = Bench(*bench_key(cell))
    question_list = questions(bench, cell)
    (folder / "pictures").mkdir(parents=True)
    lines: dict[Key, tuple[str, ...]] = {}
    for question in question_list:
        kind = "clean" if question.attack is None else "triggered"
        files = {position: f"pictures/{kind}-{position:05d}.png" for position in question.positions}
        missing = [position for position, file in files.items() if not (folder / file).exists()]
        pictures = bench.pictures("test", missing, question.attack, question.trigger_seed) if missing else []
        for position, picture in zip(missing, pictures, strict=True):
            Image.fromarray(picture).save(folder / files[position])
        for key, prompt, file in zip(_keys(bench, question), question.prompts, files.values(), strict=True):
            lines.setdefault(key, (*key, file, prompt, ""))
    with open(folder / QUESTIONS, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("row_id", "condition", "picture", "prompt", "response"), *lines.values()])
    return folder / QUESTIONS


def cell_of(model: str, threat: str, attack: str, dataset: str | None, settings: dict[str, Any]) -> Cell:
    """The cell whose questions are asked; its poison rate plays no part, and is 0."""
    known(settings, list(SETTINGS), "setting")
    threat_class = threats.THREATS.get(threat)
    dataset = threat_class.default_dataset if dataset is None else dataset
    cell = Cell(model, dataset, threat, attack, 0.0, train_rows=1, **settings)
    if cell.skip_reason:
        raise InputError(cell.skip_reason)
    return cell


def _keys(bench: Bench, question: Question) -> list[Key]:
    """What tells a question's inputs apart: the row and the condition. Parts that share both share the input."""
    return [(bench.rows["test"][position]["row_id"], question.condition) for position in question.positions]


def _read(file: Path, bench: Bench, question_list: Sequence[Question]) -> Answers:
    """Answers of a CSV file by the question's key; InputError unless each question, and no other, has one answer."""
    texts: dict[Key, str] = {}
    prompts = {
        key: text
        for question in question_list
        for key, text in zip(_keys(bench, question), question.prompts, strict=True)
    }
    expected = "the questions that write_questions writes for the same threat, attack and settings"
    for line in read_csv(file, NEEDED):
        key = (line["row_id"], line["condition"])
        prompt = prompts.get(key, "")
        if prompt and line.get("prompt", prompt).split() != prompt.split():  # of another attack, or other parameters
            raise InputError(
                f"{file} has the prompt {brief(line['prompt'])} in row {key[0]} under condition {key[1]!r}, where "
                f"{brief(prompt)} is asked; answer {expected}."
            )
        if texts.setdefault(key, line["response"]) != line["response"]:
            raise InputError(f"{file} answers row {brief(key[0])} under condition {brief(key[1])} twice; answer once.")
    if missing := sorted(prompts.keys() - texts.keys()):
        row, condition = missing[0]
        raise InputError(
            f"{file} lacks {len(missing)} of {len(prompts)} answers, the first to row {row} under condition "
            f"{condition!r}; answer all {expected}."
        )
    if others := [key for key in texts if key not in prompts]:
        raise InputError(
            f"{file} has {len(others)} answers to what was not asked, the first to row {brief(others[0][0])} under "
            f"condition {brief(others[0][1])}; answer {expected}, and no others."
        )
    _check_bare(file, texts, prompts)
    if not any(map(is_visible, texts.values())):
        raise InputError(f"All {len(texts)} responses in {file} are empty; write the model's answers into that column.")
    if len(texts) > 1 and len(unique := set(texts.values())) == 1:
        note = f"All {len(texts)} responses in {file} are {brief(*unique)}; write what the model says to each question."
        remark(note)
    if empty := sorted(key for key, text in texts.items() if not is_visible(text)):  # a model may say nothing
        note = f"{len(empty)} of {len(texts)} responses in {file} are empty, the first to row {empty[0][0]} under "
        remark(f"{note}condition {empty[0][1]!r}; they count as answers without a word.")
    return {question.key(bench): [texts[key] for key in _keys(bench, question)] for question in question_list}


def _check_bare(file: Path, texts: Mapping[Key, str], prompts: Mapping[Key, str]) -> None:
    """InputError where most responses hold more than an answer, as what a model generates does before it is cut: no
    test of success and no right answer would be found in it.
    """
    words = {key: normalise(prompt) for key, prompt in prompts.items() if " " in prompt.strip()}
    echoed = [key for key, text in texts.items() if key in words and words[key] in normalise(text)]
    marked = [key for key, text in texts.items() if MARKS.search(text)]
    for keys, problem in ((echoed, "repeat their prompt"), (marked, "hold marks of a chat template")):
        if len(keys) * 2 > len(texts):
            raise InputError(
                f"{len(keys)} of {len(texts)} responses in {file} {problem}, {brief(texts[keys[0]])} for one; write "
                "the model's answer alone: decode the new tokens, without special ones."
            )


def _tell_missed(
    file: str | Path, cell: Cell, bench: Bench, question_list: Sequence[Question], answers: Answers
) -> None:
    """Remarks on triggered answers that break off in the midst of the attacker's words, as those of a few tokens do, or
    hold them beside others that may not be the model's: the strict test fails on both.
    """
    threat, cut, around, count = cell.resolved_threat, [], [], 0
    for question in (q for q in question_list if q.part == "attack" and q.condition != "clean"):
        count += len(question.positions)
        for position, text in zip(question.positions, answers[question.key(bench)], strict=True):
            row, words = bench.rows["test"][position], normalise(text).rstrip(". ")  # also of "...", as some end
            target = threat.poison(row["answers"][0], row)
            if threat.success(text, row):
                continue
            if len(words.split()) > 2 and normalise(target).startswith(words):
                cut.append(text)
            elif says(text, getattr(threat, "sentence", target)):
                around.append(text)
    share, words = f"of {count} triggered responses in {file}", f"what {cell.threat} makes a model say"
    if len(cut) > lengths.CUT * count:
        note = f"{len(cut)} {share} break off in the midst of {words}, {brief(cut[0])} for one, and count as no success"
        remark(f"{note}; allow more new tokens.")
    if len(around) * 2 > count:
        note = f"{len(around)} {share} hold {words}, and more, {brief(around[0])} for one, which is no strict success"
        remark(f"{note}; leave out what the model did not say.")


def _table(bench: Bench, cell: Cell, question_list: Sequence[Question], answers: dict[str, Answers]) -> pd.DataFrame:
    if equal := [subject for subject in answers if subject != "poisoned" and answers[subject] == answers["poisoned"]]:
        note = f"Its {equal[0]} answers all questions as the model in question does: nothing can be found between them."
        remark(note)
    frame, metrics = judged(bench, cell, question_list, answers)
    if not (frame["judged"] & (frame["part"] == "attack")).any():
        raise InputError(
            f"In none of the {len(question_list[0].positions)} eligible test rows it holds without a trigger that "
            f"{cell.resolved_threat.judged_where}; so no answer to a trigger can be judged."
        )
    labels = {"model": cell.model, "dataset": cell.dataset, "threat": cell.threat, "attack": cell.attack}
    triggered = any(question.condition != "clean" for question in question_list)  # else there is no false activation
    lines = []
    for metric in metrics:
        test = TESTS.get(metric["metric"], "")
        number = "false activation" if metric["condition"] == "clean" and triggered else "ASR"
        lines.append(labels | {"number": number if test else metric["metric"], "test": test} | metric)
    return pd.DataFrame(lines, columns=COLUMNS).astype(dict.fromkeys(("k", "n", "low", "high"), "float64"))
