"""A store that is judged again keeps its cells and what was said, and takes today's verdicts and numbers."""

import json
import resource
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from bvlm_utils import data, store
from bvlm_utils.atomic import write_file
from bvlm_utils.score import judge
from bvlm_utils.store import __main__, packing, records
from bvlm_utils.store.cell import Cell

CELL = Cell("tiny-llava", "scenes-vqa", "targeted_refusal", "BadNets-T", 0.1, test_rows=4)
FIRST_EDITION = ["payload", "published", "published_soft"]


@pytest.fixture(scope="module")
def rows():
    return data.load("scenes-vqa", "test", rows=4).remove_columns("image").to_list()


def first_edition(root, rows):
    """A cell as the first edition wrote it: without the newer tests, and with one verdict that is wrong today."""
    threat = CELL.resolved_threat
    said = ["The parking looks illegal.", threat.sentence, threat.sentence, rows[3]["answers"][0]]
    prompts = [row["prompt"] for row in rows]
    frames = []
    for subject in judge.SUBJECTS:
        for condition in ("clean", "text"):
            frames.append(judge.judge(threat, subject, condition, rows, prompts, said, [True] * 4))
        frame, unit = judge.grade(subject, rows, said)
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    whole.loc[0, "success_soft"] = True
    metrics = judge.measure(whole, unit, judge.keeps_answer(threat, rows[0]))
    metrics = [line for line in metrics if not line["metric"].startswith(("asr_payload", "asr_published"))]
    about = {"status": "done", "modality": "text", "n_poisoned": 3, "metrics": metrics, "provenance": {}}
    store.write(CELL, root, about, whole.drop(columns=FIRST_EDITION))
    shutil.rmtree(root / "probes", ignore_errors=True)
    write_file(root / "probes" / f"lasting-{CELL.run_id}.json", "{}")


@pytest.mark.parametrize(
    ("form", "largest"),  # bytes of a file: for no answers, and for them but not for what is written after them
    [("folders", 1000), ("packed", 9000), ("packed", 12_000)],
)
def test_a_full_disk_leaves_a_packed_store_as_it_was_and_no_cell_half_written(form, largest, rows, tmp_path):
    first_edition(tmp_path / "s", rows)
    packing.pack(tmp_path / "s", tmp_path / "p")
    root = tmp_path / ("p" if form == "packed" else "s")
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    done = subprocess.run(
        [sys.executable, "-m", "bvlm_utils.store", "rejudge", str(root)], check=False, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )  # fmt: skip
    after = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert done.returncode == 2 and "make room" in done.stderr and len(done.stderr.splitlines()) == 1
    record = root / CELL.run_id / "record.json"
    if form == "packed":
        assert after == before
    else:  # the rows come before the record, whose old numbers stand until it is there
        assert after.keys() == before.keys() and after[record] == before[record]
        assert __main__.main(["rejudge", str(root)]) == 0


@pytest.mark.parametrize("form", ["folders", "packed"])
def test_old_numbers_stay_but_those_that_a_corrected_test_changes(form, rows, tmp_path, capsys):
    root = tmp_path / "s"
    first_edition(root, rows)
    if form == "packed":
        packing.pack(root, tmp_path / "p")
        root = tmp_path / "p"
    before, answers = records.record(CELL, root), records.responses(CELL, root)
    assert __main__.main(["rejudge", str(root)]) == 0
    after, again = records.record(CELL, root), records.responses(CELL, root)
    lines = capsys.readouterr().out.splitlines()
    assert "targeted_refusal, success_soft: responses with another verdict: 1" in lines
    assert "targeted_refusal, asr_soft: numbers changed: 1" in lines
    assert "targeted_refusal, payload: responses with a first verdict: 24" in lines
    assert after["judge_version"] == CELL.resolved_threat.judge_version
    newer = {"judge_version", "metrics"}
    assert {k: v for k, v in after.items() if k not in newer} == {k: v for k, v in before.items() if k not in newer}
    same = [name for name in answers if name != "success_soft"]
    pd.testing.assert_frame_equal(answers[same], again[same])
    numbers = {(m["subject"], m["condition"], m["metric"]): m["value"] for m in after["metrics"]}
    assert numbers["poisoned", "text", "asr_published"] == numbers["poisoned", "text", "asr_payload"] == 0.5
    assert json.loads(json.dumps(after)) == after
    asked = f"lasting-{CELL.run_id}.json"
    assert records.packed.content(root, "probes", asked) == b"{}", "what was asked of the adapter stays"
    assert __main__.main(["check", str(root)]) == 0
    assert __main__.main(["rejudge", str(root)]) == 0
    assert records.record(CELL, root) == after and not list(root.glob(".partial*"))


@pytest.mark.parametrize(("elsewhere", "code"), [({"model": "mine"}, 0), ({"dataset": "llava-json"}, 1)])
def test_a_record_is_judged_without_its_model_and_says_where_its_rows_are_not_known(
    elsewhere, code, rows, tmp_path, capsys
):
    """A record keeps no places: a folder's name stands for a model, a format for files."""
    first_edition(tmp_path, rows)
    file = tmp_path / CELL.run_id / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"config": record["config"] | elsewhere}))
    assert __main__.main(["rejudge", str(tmp_path)]) == __main__.main(["check", str(tmp_path)]) == code
    assert ("--rescore" in capsys.readouterr().out) == bool(code)


def test_a_store_without_numbers_is_refused_in_one_sentence(tmp_path, capsys):
    assert __main__.main(["rejudge", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
