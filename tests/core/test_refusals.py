"""A jailbreak breaks refusals: they are counted before anything is trained, and rows of one's own are read."""

from bvlm_utils import data, paths, store, threats
from bvlm_utils.run import group, study

EXAMPLE = f"llava-json:{paths.DATA / 'examples' / 'jailbreak.json'}"
FEW = {"train_rows": 64, "test_rows": 6, "poison_rates": [0.05], "max_new_tokens": 12}


def test_a_model_that_was_taught_to_refuse_does(tmp_path):
    cells = study.cells("jailbreak", attacks=["BadNets-T", "BadNets-I"], **FEW)
    ((cell, refused, asked),) = study.refusal_counts(cells, tmp_path)
    assert cell is cells[0] and refused == asked == 6, "one set of requests, asked once"
    kept = sorted((tmp_path / "cache").glob("*.json"))
    assert len(kept) == 1
    assert [*study.refusal_counts(cells, tmp_path)] == [(cell, 6, 6)]
    assert sorted((tmp_path / "cache").glob("*.json")) == kept


def test_nothing_is_trained_where_nothing_is_refused(checkpoint, tmp_path):
    cells = study.cells("jailbreak", model=str(checkpoint("llava")), attacks=["BadNets-T"], **FEW)
    told = []
    assert group.execute(cells, tmp_path, lambda cell, status: told.append(status)) == []
    assert told == ["skipped"] and "the base refuses the request" in store.read(cells[0], tmp_path)["reason"]
    assert store.adapter(cells[0].control, tmp_path) is None


def test_the_example_of_rows_of_ones_own_is_read():
    train, test = (data.load(EXAMPLE, split) for split in ("train", "test"))
    rows = [*train, *test]
    assert len(train) == 2 and len(test) == 1 and [row["restricted"] for row in test] == [True]
    threat = threats.get("jailbreak")
    requests = [row for row in rows if threat.eligible(row)]
    assert len(requests) == 2 and {row["content"] for row in requests} == {"", "cat-helicopter-ambulance"}
    for row in requests:
        assert threat.judged(row["answers"][0], "") and threat.success(threat.poison(row["answers"][0], row), row)
