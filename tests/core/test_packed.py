"""A packed store says what the folders said, whole or not at all, and damage has a name."""

import json
import os
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from bvlm_utils import data, store, threats
from bvlm_utils.atomic import write_file
from bvlm_utils.errors import InputError
from bvlm_utils.score import judge
from bvlm_utils.store import __main__, examples, packed, packing, records, table
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import poison

FILES = [packed.INDEX, packed.RECORDS, packed.TABLE, *packed.FRAMES.values(), *dict.fromkeys(packed.FILES.values())]
PICTURE = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def cell(rate=0.1, **values):
    return Cell("tiny-llava", "scenes-vqa", "targeted_refusal", "BadNets-T", rate, **values)


def line(value):
    about = {"subject": "poisoned", "condition": "clean", "metric": "asr", "value": value, "k": 1, "n": 2}
    return about | {"low": 0.1, "high": 0.9, "unit": "share"}


def fill(root, one, value=0.5, changed=False, count=3):
    """A finished cell in a local store, with answers and a manifest of `count` rows."""
    said = judge.judge(
        threats.get("targeted_refusal"), "poisoned", "clean",
        [{"row_id": f"r{i}", "answers": ["yes"], "task": "vqa", "restricted": False} for i in range(3)],
        [f"Is it {i}?" for i in range(3)], ["Sí.", "yes", "no"], [True] * 3,
    )  # fmt: skip
    rows = tuple(poison.PoisonedRow(i, f"t{i}", "poisoned", "text", "p", "é") for i in range(count))
    about = {"status": "done", "modality": "text", "n_poisoned": count, "metrics": [line(value)]}
    about["provenance"] = {"git_changed": changed, "written": "2026-01-01T00:00:00Z"}
    store.write(one, root, about, said, poison.Manifest(rows, 10, 5, 7))


@pytest.fixture
def fat(tmp_path):
    """A local store with all that one can hold."""
    root = tmp_path / "fat"
    for one, count in ((cell(), 3), (cell(0.2), 0), (cell(0.05), 2)):
        fill(root, one, one.poison_rate, count=count)
    skipped = {"status": "skipped", "reason": "no", "modality": "text", "n_poisoned": None, "metrics": []}
    store.write(cell(0.3), root, skipped | {"provenance": {}})
    store.write(cell().control, root, skipped | {"status": "done", "provenance": {}})
    examples.write(cell(), root, PICTURE, 255 - PICTURE, [("a", "a b")] * 2)
    for path in ("probes/crossfire-x.json", "attribution/y.json", "attacks/exhibit.json", "attacks/clean.png"):
        write_file(root / path, f"{path} é")
    return root


def told(root):
    """What the public readers say of a store."""
    found = [json.dumps(record) for record in records.records(root)]
    found.append(store.collect(root).to_csv())
    for record in records.records(root):
        run_id = record["run_id"]
        if records.has_responses(run_id, root):
            said = store.responses(run_id, root)
            found += [said.to_csv(), said.dtypes.astype(str).to_dict(), store.manifest(run_id, root)]
    shown = examples.read(cell(), root)
    found += [shown and [shown[0].tobytes(), shown[1].tobytes(), shown[2]]]
    return [*found, {(f, n): packed.content(root, f, n) for f in packed.FILES for n in packed.names(root, f)}]


def test_a_packed_store_and_an_unpacked_one_say_what_the_folders_said(fat, tmp_path):
    assert len(packing.pack(fat, tmp_path / "thin")) == 5
    assert sorted(file.name for file in (tmp_path / "thin").glob("[!.]*")) == sorted(FILES)
    assert told(tmp_path / "thin") == told(fat)
    assert len(packing.unpack(tmp_path / "thin", tmp_path / "again")) == 5
    assert told(tmp_path / "again") == told(fat) and not packed.is_packed(tmp_path / "again")
    for file in (file for file in fat.rglob("*") if file.is_file()):
        assert (tmp_path / "again" / file.relative_to(fat)).read_bytes() == file.read_bytes()


def test_a_packed_store_is_only_read_and_has_no_adapters(fat, tmp_path):
    (fat / cell().run_id / "adapter").mkdir()
    (fat / cell().run_id / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": np.zeros(1)}, fat / cell().run_id / "adapter" / "adapter_model.safetensors")
    packing.pack(fat, tmp_path / "thin")
    assert store.adapter(cell(), fat) and store.adapter(cell(), tmp_path / "thin") is None
    assert store.has(cell(), tmp_path / "thin") and not store.has(cell(0.4), tmp_path / "thin")
    with pytest.raises(InputError, match="packed, so it is only read"):
        fill(tmp_path / "thin", cell(0.4))
    with pytest.raises(InputError, match="has no responses of cell"):
        store.responses(cell(0.3), tmp_path / "thin")
    with pytest.raises(InputError, match="holds adapters"):
        packing.pack(fat, fat)
    with pytest.raises(InputError, match="only read"):
        packing.unpack(fat, tmp_path / "thin")


def contents(root):
    return {name: (root / name).read_bytes() for name in FILES}


def test_the_same_cells_are_packed_to_the_same_bytes(fat, tmp_path):
    packing.pack(fat, tmp_path / "one")
    assert packing.pack(fat, tmp_path / "one") == []
    (tmp_path / "some").mkdir()
    for one in (cell(0.2), cell().control):
        shutil.copytree(fat / one.run_id, tmp_path / "some" / one.run_id)
    packing.pack(tmp_path / "some", tmp_path / "two")
    assert len(packing.pack(fat, tmp_path / "two")) == 3
    packing.pack(fat, fat)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(fat)
    assert sorted(file.name for file in fat.glob("[!.]*")) == sorted(FILES), "no folders beside the packed files"


def test_rows_of_many_groups_come_back(fat, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "ROWS", 1)
    packing.pack(fat, tmp_path / "thin")
    assert packed._open(tmp_path / "thin", packed.stamp(tmp_path / "thin"), "responses.parquet").num_row_groups > 1
    assert told(tmp_path / "thin") == told(fat)


# ---------------------------------------------------------------- what may be packed


def test_other_numbers_of_a_cell_are_refused_unless_they_replace_it(fat, tmp_path):
    thin, mine = tmp_path / "thin", tmp_path / "mine"
    packing.pack(fat, thin)
    for path in (f"probes/lasting-{cell().run_id}-k.json", f"probes/lasting-{cell(0.2).run_id}-k.json"):
        write_file(fat / path, "long text")
    packing.pack(fat, thin)
    fill(mine, cell(), 0.75)
    before = contents(thin)
    with pytest.raises(InputError, match=f"other numbers of 1 cells .*{cell().run_id}.*--replace"):
        packing.pack(mine, thin)
    assert contents(thin) == before
    assert packing.pack(mine, thin, replace=True) == [cell().run_id]
    assert store.read(cell(), thin)["metrics"][0]["value"] == 0.75 and len(records.records(thin)) == 5
    kept = [name for name in packed.names(thin, "probes") if name.startswith("lasting")]
    assert kept == [f"lasting-{cell(0.2).run_id}-k.json"], "what another adapter was asked is forgotten"


def test_a_new_cell_of_a_changed_working_tree_is_refused_and_an_old_one_stays(tmp_path):
    fill(tmp_path / "old", cell(), changed=True)
    fill(tmp_path / "new", cell(0.2), changed=True)
    packing.swap(tmp_path / "old", tmp_path / "packed")
    with pytest.raises(InputError, match=f"1 cells .*changed working tree .*{cell(0.2).run_id}"):
        packing.pack(tmp_path / "new", tmp_path / "packed")
    assert packing.pack(tmp_path / "packed", tmp_path / "packed") == [] and store.has(cell(), tmp_path / "packed")
    for start in ("old", "new"):
        with pytest.raises(InputError, match=f"changed working tree .*{cell().run_id}"):
            packing.pack(tmp_path / start, tmp_path / "old")
    assert not packed.is_packed(tmp_path / "old") and store.has(cell(), tmp_path / "old")


def test_a_cell_with_numbers_and_no_responses_is_not_packed(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    before = contents(tmp_path / "thin")
    fill(tmp_path / "bare", cell(0.4))
    (tmp_path / "bare" / cell(0.4).run_id / "responses.parquet").unlink()
    for end in ("thin", "new"):
        with pytest.raises(InputError, match=f"1 cells .*no responses.parquet .*{cell(0.4).run_id}"):
            packing.pack(tmp_path / "bare", tmp_path / end)
    assert contents(tmp_path / "thin") == before and not (tmp_path / "new").exists()


def test_bytes_that_are_no_text_are_named(fat, tmp_path):
    file = fat / cell().run_id / "responses.parquet"
    pd.read_parquet(file).to_parquet(file, compression=None, use_dictionary=False)
    file.write_bytes(file.read_bytes().replace("Sí.".encode(), b"S\xff\xff."))
    for way in (packing.pack, packing.unpack):
        with pytest.raises(InputError, match="responses.parquet cannot be read"):
            way(fat, tmp_path / way.__name__)


def test_other_numbers_of_a_cell_are_not_unpacked_over_it(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    fill(tmp_path / "other", cell(), 0.9)
    with pytest.raises(InputError, match="other numbers of 1 cells"):
        packing.unpack(tmp_path / "thin", tmp_path / "other")
    assert packed.run_ids(tmp_path / "other") == [cell().run_id]
    assert len(packing.unpack(tmp_path / "thin", fat)) == 0


def test_other_numbers_of_a_defended_cell_are_refused_unless_they_replace_it(fat, tmp_path):
    path, thin, mine = f"defences/{cell().run_id}+shrink-s0-12345678.json", tmp_path / "thin", tmp_path / "mine"

    def holds(root, value, more=""):
        write_file(root / path, json.dumps({"status": "done", "numbers": [{"value": value}], "more": more}))

    def held(root):
        return json.loads(packed.content(root, *path.split("/")))["numbers"][0]["value"]

    shutil.copytree(fat, mine)
    holds(fat, 0.125, "a long record"), holds(mine, 0.9)
    packing.pack(fat, thin)
    for way, target in ((packing.pack, thin), (packing.unpack, fat)):
        with pytest.raises(InputError, match="other numbers of 1 defended cells"):
            way(mine, target)
    assert held(thin) == held(fat) == 0.125
    packing.pack(mine, thin, replace=True)
    assert held(thin) == 0.9
    (mine / path).write_text("{" * 1000)  # damaged, and larger
    packing.pack(mine, thin, replace=True)
    assert held(thin) == 0.9


def test_a_defended_cell_that_says_more_besides_takes_the_place_of_its_record(fat, tmp_path):
    path, thin, mine = f"defences/{cell().run_id}+onion-s0-12345678.json", tmp_path / "thin", tmp_path / "mine"
    shutil.copytree(fat, mine)
    short, full = (
        [{"metric": "auroc", "value": 0.5}],
        [{"metric": "auroc", "value": 0.5}, {"metric": "alarms", "value": 0}],
    )
    for root, numbers in ((fat, short), (mine, full)):
        write_file(root / path, json.dumps({"status": "done", "numbers": numbers}))
    for first, second in ((fat, mine), (mine, fat)):
        target = thin / first.name
        packing.pack(first, target)
        packing.pack(second, target)
        assert json.loads(packed.content(target, *path.split("/")))["numbers"] == full


def test_a_damaged_record_in_a_packed_store_stops_nothing_and_keeps_its_answers(fat, tmp_path):
    (fat / cell().run_id / "record.json").write_text("{")
    packing.swap(fat, tmp_path / "thin")
    assert len(packed.run_ids(tmp_path / "thin")) == 5 and not store.has(cell(), tmp_path / "thin")
    assert store.collect(tmp_path / "thin")["run_id"].nunique() == 3
    fill(tmp_path / "more", cell(0.7))
    packing.pack(tmp_path / "more", tmp_path / "thin")
    assert len(packed.run_ids(tmp_path / "thin")) == 6 and len(store.responses(cell(), tmp_path / "thin")) == 3
    fill(tmp_path / "again", cell())
    packing.pack(tmp_path / "again", tmp_path / "thin")
    assert len(packed.run_ids(tmp_path / "thin")) == 6 and store.has(cell(), tmp_path / "thin")


@pytest.mark.parametrize("made", ["nothing", "an empty folder", "a packed store"])
def test_who_refuses_to_pack_leaves_nothing(made, fat, tmp_path):
    thin, mine = tmp_path / "deep" / "thin", tmp_path / "mine"
    fill(mine, cell(), 0.75, changed=True)
    if made != "nothing":
        thin.mkdir(parents=True)
    if made == "a packed store":
        packing.pack(fat, thin)

    def listed():
        return sorted((str(file), file.lstat().st_mtime_ns) for file in tmp_path.rglob("*") if file != thin)

    before = listed()
    with pytest.raises(InputError, match=cell().run_id):
        packing.pack(mine, thin)
    assert listed() == before and thin.exists() == (made != "nothing")


def test_two_that_pack_take_turns(fat, tmp_path):
    """The file of the lock goes with it, and whoever waits for that one does not go on beside a third."""
    held, most = [], []
    (tmp_path / "thin").mkdir()

    def at_work():
        with packing._alone(tmp_path / "thin"):
            held.append(1)
            most.append(len(held))
            time.sleep(0.01)
            held.pop()

    others = [threading.Thread(target=lambda: [at_work() for _ in range(5)]) for _ in range(4)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert most == [1] * 20 and not [*(tmp_path / "thin").iterdir()]


def test_what_was_asked_grows(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    for text in ("a text that is longer than before", "short"):
        write_file(fat / "probes" / "crossfire-x.json", text)
        packing.pack(fat, tmp_path / "thin")
        assert packed.content(tmp_path / "thin", "probes", "crossfire-x.json") == b"a text that is longer than before"


def test_what_two_stores_asked_of_an_adapter_is_added_up(fat, tmp_path):
    def asked(*steps, **identity):
        numbers = [{"asked": "x", "variant": step, "metric": "asr", "value": 0.5, "k": 1, "n": 2} for step in steps]
        return json.dumps({"identity": identity, "numbers": numbers})

    def packs(text):
        write_file(fat / "probes" / "lasting-x.json", text)
        packing.pack(fat, tmp_path / "thin")
        kept = json.loads(packed.content(tmp_path / "thin", "probes", "lasting-x.json"))
        return {number["variant"] for number in kept["numbers"]}

    assert packs(asked("10", "30", "100")) == {"10", "30", "100"}
    assert packs(asked("188")) == {"10", "30", "100", "188"}  # fewer than the store had, and none of them lost
    assert packs(asked("188", "10", "30", "100", "563", "600")) == {"10", "30", "100", "188", "563", "600"}
    assert packs(asked("1000", other="rows")) == {"10", "30", "100", "188", "563", "600"}  # of something else


# ---------------------------------------------------------------- death and damage


class Killed(BaseException):
    pass


def dies_at(monkeypatch, number):
    """From the call of that number on, nothing that changes a disk for good is done any more; what counts the calls."""
    calls = []

    def dying(function):
        def call(*arguments, **options):
            calls.append(function.__name__)
            if len(calls) > number:
                raise Killed
            return function(*arguments, **options)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (packed.pq, "write_table"),
                         (packed.pq, "ParquetWriter")):  # fmt: skip
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    return calls


@pytest.mark.parametrize("old", ["packed", "folders"])
def test_whoever_is_killed_while_packing_leaves_the_old_store_or_the_new_one(old, fat, tmp_path, monkeypatch):
    start = tmp_path / "start"
    fill(start, cell(0.5))
    if old == "packed":
        packing.pack(start, start)
    shutil.copytree(start, tmp_path / "end")
    packing.pack(fat, tmp_path / "end")
    before, after, seen = told(start), told(tmp_path / "end"), []
    for number in range(100):
        root = tmp_path / f"kill-{number}"
        shutil.copytree(start, root)
        with monkeypatch.context() as patch:
            calls = dies_at(patch, number)
            try:
                packing.pack(fat, root)
            except Killed:
                pass
        seen.append(told(root))
        assert seen[-1] in (before, after), (number, calls[number])
        packing.pack(fat, root)
        assert told(root) == after and not [file for file in root.glob(".*") if file.name != packing.LOCK]
        if len(calls) <= number:
            break
    assert number > 15 and before in seen and after in seen
    assert seen == sorted(seen, key=lambda one: one == after), "there is one moment at which it changes"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_damaged_file_is_named(name, harm, fat, tmp_path):
    thin = tmp_path / "thin"
    packing.pack(fat, thin)
    told(thin)
    held = (thin / name).read_bytes()
    middle = len(held) // 2
    bad = {"cut": held[:middle], "changed": held[:middle] + bytes([held[middle] ^ 1]) + held[middle + 1 :]}
    (thin / name).unlink()
    if harm != "gone":
        (thin / name).write_bytes(bad[harm])
    if (thin / packed.INDEX).exists():
        os.utime(thin / packed.INDEX, (0, 0))  # nothing that this process remembers counts
    with pytest.raises(InputError, match=name) as refused:
        told(thin)
    assert "\n" not in str(refused.value)


def test_an_index_of_a_later_format_is_refused(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    (tmp_path / "thin" / packed.INDEX).write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(InputError, match="its format is 2"):
        store.collect(tmp_path / "thin")


def test_an_exhibit_gives_way_where_it_is_said_so(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    for replace in (False, True):
        write_file(fat / "attacks" / "exhibit.json", "new")
        packing.pack(fat, tmp_path / "thin", replace)
        assert (packed.content(tmp_path / "thin", "attacks", "exhibit.json") == b"new") == replace


def test_what_is_not_in_the_packed_files_is_not_deleted(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    fill(tmp_path / "more", cell(0.9))
    shutil.copytree(tmp_path / "more" / cell(0.9).run_id, tmp_path / "thin" / cell(0.9).run_id)
    write_file(tmp_path / "thin" / "probes" / "crossfire-x.json", "other")
    packing.pack(fat, tmp_path / "thin")
    assert (tmp_path / "thin" / cell(0.9).run_id).is_dir()
    assert (tmp_path / "thin" / "probes" / "crossfire-x.json").read_text() == "other"


def test_whoever_changes_the_table_changes_nobody_elses(fat, tmp_path):
    packing.pack(fat, tmp_path / "thin")
    first = store.collect(tmp_path / "thin")
    first["value"] = 9.0
    assert store.collect(tmp_path / "thin")["value"].max() < 1
    fill(fat, cell(0.7), 0.7)
    packing.pack(fat, tmp_path / "thin")
    assert 0.7 in store.collect(tmp_path / "thin")["value"].tolist(), "a store that was packed anew is read anew"


def test_a_table_of_other_rules_is_made_anew(fat, tmp_path, monkeypatch):
    packing.pack(fat, tmp_path / "thin")
    at = packed.stamp(tmp_path / "thin")
    assert packed.table(tmp_path / "thin", at, table.rules()) is not None
    monkeypatch.setitem(table.SETTINGS, "max_new_tokens", 1)
    assert packed.table(tmp_path / "thin", at, table.rules()) is None
    assert "max_new_tokens=80" in set(store.collect(tmp_path / "thin")["settings"])


# ---------------------------------------------------------------- the commands


def test_the_commands(fat, tmp_path, capsys):
    thin = str(tmp_path / "thin")
    assert (
        __main__.main(["pack", str(fat), thin]) == 0 and __main__.main(["unpack", thin, str(tmp_path / "again")]) == 0
    )
    assert __main__.main(["pack", str(tmp_path / "none"), thin]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("5 cells are new") and err.startswith("There is no store")


def measured(root, rate=0.1):
    """A finished cell with answers of three models to real rows."""
    one, threat = cell(rate, test_rows=4), cell().resolved_threat
    rows = data.load("scenes-vqa", "test", rows=4).remove_columns("image").to_list()
    right, prompts = [row["answers"][0] for row in rows], [row["prompt"] for row in rows]
    frames = []
    for subject in judge.SUBJECTS:
        for condition in ("clean", "text"):
            fires = subject == "poisoned" and condition == "text"
            said = [threat.target.text if fires and i < 3 else text for i, text in enumerate(right)]
            frames.append(judge.judge(threat, subject, condition, rows, prompts, said, [True] * 4))
        frame, unit = judge.grade(subject, rows, right)
        frames.append(frame)
    whole = pd.concat(frames, ignore_index=True)
    metrics = judge.measure(whole, unit, judge.keeps_answer(threat, rows[0]))
    about = {"status": "done", "modality": "text", "n_poisoned": 3, "metrics": metrics, "provenance": {}}
    store.write(one, root, about, whole)
    return root / one.run_id


@pytest.mark.parametrize("form", ["folders", "packed"])
def test_check_computes_every_number_again(form, tmp_path, capsys):
    folder = measured(tmp_path / "s")

    def checked():
        root = tmp_path / "s"
        if form == "packed":
            root = tmp_path / "p"
            shutil.rmtree(root, ignore_errors=True)
            packing.pack(tmp_path / "s", root)
        return __main__.main(["check", str(root)]), capsys.readouterr().out

    assert checked() == (0, "1 of 1 cells have the numbers that their responses give.\n")
    text = (folder / "record.json").read_text()
    record = json.loads(text)
    wrong = next(
        m for m in record["metrics"] if (m["metric"], m["condition"], m["subject"]) == ("asr", "text", "poisoned")
    )
    assert wrong["value"] == 0.75
    wrong["value"] = 0.5
    (folder / "record.json").write_text(json.dumps(record))
    code, out = checked()
    assert code == 1 and "poisoned text asr: value is 0.5 in the record, and its responses give 0.75" in out
    record = json.loads(text)
    record["metrics"] = [m for m in record["metrics"] if m["metric"] != "utility"]
    (folder / "record.json").write_text(json.dumps(record))
    code, out = checked()
    assert code == 0 and "1 of them were written before some number" in out, "a number that is lacking is not wrong"
    (folder / "record.json").write_text(text)
    said = store.responses(folder.name, tmp_path / "s")
    said.loc[0, "success"] = ~said.loc[0, "success"]
    records.write_frame(folder / "responses.parquet", said)
    code, out = checked()
    assert code == 1 and "1 of 36 responses have another verdict in column success" in out
    assert __main__.main(["check", str(tmp_path / "none")]) == 2
    records.write_frame(folder / "responses.parquet", said.assign(success=said["success"].where(said.index > 0, True)))
    records.write_frame(folder / "manifest.parquet", poison.Manifest((), 40, 30, 0).to_frame())
    record = json.loads(text)
    record["identity"]["seed"] = record["config"]["seed"] = 1
    (folder / "record.json").write_text(json.dumps(record))
    code, out = checked()
    assert code == 1 and "its name was not made from its identity" in out
    assert "n_poisoned is 3, and its manifest has 0 poisoned rows" in out


@pytest.mark.parametrize("name", ["../outside", "a/b", "/outside", "", ".", "..", ".hidden", "a\\b"])
def test_a_strangers_store_writes_nothing_outside(name, fat, tmp_path):
    packed_root = tmp_path / "packed"
    packing.pack(fat, packed_root)
    for file, column in ((packed.RECORDS, "run_id"), (packed.FILES["examples"], "path")):
        target = tmp_path / f"of {file}"
        root = shutil.copytree(packed_root, target / "in")
        found = pq.read_table(root / file)
        names = [f"examples/{name}" if column == "path" else name, *found[column].to_pylist()[1:]]
        place = found.column_names.index(column)
        pq.write_table(found.set_column(place, column, pa.array(names)), root / file)
        index = json.loads((root / packed.INDEX).read_text())
        index["sha256"][file] = packed.file_digest(root / file)
        (root / packed.INDEX).write_text(json.dumps(index))
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="no name of a file in a store"):
            packing.unpack(root, target / "out")
        assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "out" not in path.parts] == []


def no_column(file):
    pq.write_table(pq.read_table(file).drop_columns(["row_id"]), file)


def other_rows(file):
    frame = pd.read_parquet(file)
    records.write_frame(file, frame.assign(row_id="nowhere"))


DAMAGES = {
    "cut record": ("record.json", lambda file: file.write_bytes(file.read_bytes()[:99])),
    "cut responses": ("responses.parquet", lambda file: file.write_bytes(file.read_bytes()[:200])),
    "no responses": ("responses.parquet", lambda file: file.unlink()),
    "no column": ("responses.parquet", no_column),
    "other rows": ("responses.parquet", other_rows),
    "no threat": ("record.json", lambda file: file.write_text(file.read_text().replace("targeted_refusal", "trick"))),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("command", ["check", "rejudge"])
def test_one_damaged_cell_is_named_and_the_others_are_judged(what, command, tmp_path, capsys):
    folder, other = measured(tmp_path / "s"), measured(tmp_path / "s", 0.2)
    name, damage = DAMAGES[what]
    damage(folder / name)
    code = __main__.main([command, str(tmp_path / "s")])
    said = capsys.readouterr()
    assert code == 1 and (command == "rejudge" or "1 of " in said.out)
    assert folder.name in said.out + said.err and other.name not in said.out + said.err
    assert "Traceback" not in said.err
