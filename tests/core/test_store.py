"""A store holds complete records or none, whatever happens, and tells what does not belong."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bvlm_book import tables
from bvlm_utils import paths, store
from bvlm_utils.atomic import PARTIAL
from bvlm_utils.attacks import declare
from bvlm_utils.errors import InputError
from bvlm_utils.models import names
from bvlm_utils.store import packing, provenance, records
from bvlm_utils.store import table as tidy
from bvlm_utils.store.cell import Cell
from bvlm_utils.train import poison
from bvlm_utils.train.settings import TrainSettings


def cell(rate=0.1, **values):
    return Cell("tiny-llava", "scenes-vqa", "targeted_refusal", "BadNets-T", rate, **values)


def record(value=0.5, **others):
    number = {
        "subject": "poisoned",
        "condition": "clean",
        "metric": "asr",
        "value": value,
        "k": 1,
        "n": 2,
        "low": 0.1,
        "high": 0.9,
        "unit": "share",
    }
    return {
        "status": "done",
        "modality": "text",
        "n_poisoned": 3,
        "metrics": [number],
        "provenance": {},
        **others,
    }


def test_what_is_written_is_read(tmp_path):
    manifest = poison.Manifest((poison.PoisonedRow(0, "a", "poisoned", "text", "p", "q"),), 10, 5, 0)
    store.write(cell(), tmp_path, record(), manifest=manifest)
    assert store.has(cell(), tmp_path) and not store.has(cell(0.2), tmp_path)
    assert store.manifest(cell(), tmp_path) == manifest
    (line,) = store.collect(tmp_path).to_dict("records")
    assert (line["run_id"], line["value"], line["n_poisoned"], line["poison_rate"]) == (
        cell().run_id,
        0.5,
        3,
        0.1,
    )
    assert list(store.collect(tmp_path)) == tidy.COLUMNS


def test_an_empty_store_gives_an_empty_table(tmp_path):
    assert store.collect(tmp_path).empty and list(store.collect(tmp_path)) == tidy.COLUMNS


def test_a_record_that_is_there_stays_unless_replaced(tmp_path):
    store.write(cell(), tmp_path, record(0.1))
    store.write(cell(), tmp_path, record(0.2))
    assert store.collect(tmp_path)["value"].tolist() == [0.1]
    store.write(cell(), tmp_path, record(0.2), replace=True)
    assert store.collect(tmp_path)["value"].tolist() == [0.2]


def test_records_that_no_column_tells_apart_are_told_by_their_run(tmp_path, monkeypatch):
    """A checkpoint, a data file or an attack's version changed between two runs, or the number of test rows did."""
    for hour, name in enumerate(("first", "second", "third")):
        monkeypatch.setattr(provenance, "now", lambda hour=hour: {"written": f"2026-01-01T0{hour}:00:00Z"})
        monkeypatch.setattr(names, "digest", lambda _, name=name: name)
        one = cell(test_rows=100 if name == "third" else 200)
        store.write(one, tmp_path, record(hour / 10) | {"provenance": provenance.now()})
    other = cell(0.2, test_rows=100)
    store.write(other, tmp_path, record(0.9) | {"provenance": provenance.now()})
    table = store.collect(tmp_path)
    found = dict(zip(table["value"], table["settings"], strict=True))
    assert found[0.2] == "" and found[0.9] == "" and len(set(found.values())) == 3
    assert all(text == "" or text.startswith("run=") for text in found.values())
    assert all(text == (f"run={run}" if run else "") for text, run in zip(table["settings"], table["run"], strict=True))
    newest = table[table["settings"] == ""]
    assert len(tables.success_rates(newest, "poisoned")) == 2


def test_seeds_of_another_checkpoint_are_no_further_seeds(tmp_path, monkeypatch):
    for hour, (name, seeds) in enumerate((("first", (0, 1)), ("second", (2, 3)))):
        monkeypatch.setattr(names, "digest", lambda _, name=name: name)
        for seed in seeds:
            about = {"provenance": {"written": f"2026-01-01T0{hour}:00:00Z"}}
            store.write(cell(seed=seed), tmp_path, record(hour / 10) | about)
    table = store.collect(tmp_path)
    assert table.groupby("settings")["seed"].apply(set).tolist() == [{2, 3}, {0, 1}]
    assert tables.success_rates(table[table["settings"] == ""], "poisoned")["n_seeds"].tolist() == [2]


def test_equal_numbers_written_otherwise_are_one_experiment(tmp_path):
    store.write(cell(), tmp_path, record(0.1))
    found = store.records.record(cell().run_id, tmp_path)
    other = found | {"identity": found["identity"] | {"train": found["identity"]["train"] | {"lora_alpha": 16}}}
    assert len({tidy.rows(one)[0]["experiment"] for one in (found, other)}) == 1


def test_what_an_adapter_was_asked_goes_with_it(tmp_path):
    kept = []
    for name, one in (("probes", cell()), ("attribution", cell()), ("probes", cell(0.2))):
        kept.append(tmp_path / name / f"some-{one.run_id}-key.json")
        kept[-1].parent.mkdir(exist_ok=True)
        kept[-1].write_text("{}")

    def tuned(weights, value):
        def save(folder):
            folder.mkdir()
            (folder / "adapter_model.safetensors").write_bytes(weights)

        store.write(cell(), tmp_path, record(value), save_adapter=save, replace=True)

    store.write(cell(), tmp_path, record())
    assert all(file.exists() for file in kept)
    tuned(b"one", 0.1)
    assert [file.exists() for file in kept] == [False, False, True]
    kept[0].write_text("{}")
    tuned(b"one", 0.2)  # judged again, with the same adapter
    assert kept[0].exists() and 0.2 in store.collect(tmp_path)["value"].tolist()
    tuned(b"two", 0.2)
    assert not kept[0].exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("replace", [False, True])
def test_dying_at_any_step_of_writing_leaves_the_old_state(tmp_path, monkeypatch, replace):
    if replace:
        store.write(cell(), tmp_path, record(0.1))
    before = store.collect(tmp_path)

    def die(folder):
        folder.mkdir()
        (folder / "half").write_text("half")
        raise Killed

    with pytest.raises(Killed):
        store.write(cell(), tmp_path, record(0.2), save_adapter=die, replace=replace)
    assert store.collect(tmp_path).equals(before)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(records.json, "dumps", lambda *a, **k: (_ for _ in ()).throw(Killed()))
        store.write(cell(), tmp_path, record(0.2), replace=replace)
    assert store.collect(tmp_path).equals(before)


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    host = socket.gethostname()
    dead, living = f"{PARTIAL}{host}+999999999+x", f"{PARTIAL}{host}+{os.getppid()}+x"
    other, old = f"{PARTIAL}elsewhere+1+x", f"{PARTIAL}elsewhere+1+y"
    for name in (dead, living, other, old):
        (tmp_path / "examples" / name).mkdir(parents=True)
    os.utime(tmp_path / "examples" / old, (0, 0))
    store.clean(tmp_path)
    assert {p.name for p in (tmp_path / "examples").iterdir()} == {living, other}


def test_a_cell_that_a_killed_process_was_replacing_is_put_back(tmp_path):
    place = store.write(cell(), tmp_path, {"status": "done", "metrics": [], "provenance": {}})
    aside = tmp_path / f"{PARTIAL}{socket.gethostname()}+999999999+{place.name}-old"
    place.rename(aside)
    store.clean(tmp_path)
    assert store.has(cell(), tmp_path) and not aside.exists()
    aside.mkdir()
    store.clean(tmp_path)
    assert store.has(cell(), tmp_path) and not aside.exists()


@pytest.mark.parametrize("name", [f"{PARTIAL}download", f"{PARTIAL}a+b", f"{PARTIAL}a+b+c", f"{PARTIAL}+"])
def test_what_no_run_makes_is_never_removed(name, tmp_path):
    (tmp_path / "project" / name).mkdir(parents=True)
    os.utime(tmp_path / "project" / name, (0, 0))
    store.clean(tmp_path)
    assert (tmp_path / "project" / name).is_dir()


def test_a_clock_that_is_days_ahead_removes_no_work_of_another_machine(tmp_path, monkeypatch):
    at_work = tmp_path / f"{PARTIAL}elsewhere+1+x"
    at_work.mkdir()
    monkeypatch.setattr(records.time, "time", lambda: at_work.stat().st_mtime + 9 * records.STALE)
    store.clean(tmp_path)
    assert at_work.is_dir() and [*tmp_path.iterdir()] == [at_work]


@pytest.mark.parametrize("where", ["failures", "cache", "damaged", "failures/RUN.json", "cache/asked-RUN.json"])
def test_a_record_is_written_whatever_lies_where_leftovers_are_kept(where, tmp_path):
    path = tmp_path / where.replace("RUN", cell().run_id)
    if path.suffix:
        path.mkdir(parents=True)
    else:
        path.write_text("x")
    for text in ("{", None):
        if text:
            (tmp_path / cell().run_id).mkdir()
            (tmp_path / cell().run_id / "record.json").write_text(text)
        store.write(cell(), tmp_path, {"status": "done", "metrics": [], "provenance": {}}, replace=True)
        assert store.has(cell(), tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"status": "done"', '"status": "skipped", "status": "done"'), ('"n_poisoned": 3', '"n_poisoned": NaN')],
)
def test_a_record_that_says_a_thing_twice_or_no_number_is_named_and_passed_over(old, new, tmp_path, capsys):
    about = {"status": "done", "metrics": [], "provenance": {}, "n_poisoned": 3}
    file = store.write(cell(), tmp_path, about) / "record.json"
    file.write_text(file.read_text().replace(old, new))
    assert store.read(cell(), tmp_path) is None and store.collect(tmp_path).empty
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("pid", ["9" * 20, "\u00b2", "-5", "", "\u0663"])
def test_left_overs_with_odd_names_stop_no_run(pid, tmp_path):
    (tmp_path / f"{PARTIAL}{socket.gethostname()}+{pid}+x").mkdir()
    store.clean(tmp_path)


def test_a_folder_with_another_cell_is_named_and_kept_when_its_cell_is_run(tmp_path, capsys):
    place = store.write(cell(), tmp_path, record())
    other = tmp_path / cell(0.2).run_id
    os.rename(place, other)
    assert store.collect(tmp_path).empty and not store.has(cell(0.2), tmp_path)
    assert str(other) in capsys.readouterr().err
    text = (other / "record.json").read_text()
    (other / "record.json").write_text(text.replace(cell().run_id, cell(0.2).run_id))
    assert not store.has(cell(0.2), tmp_path) and "differs in poison_rate" in capsys.readouterr().err
    store.write(cell(0.2), tmp_path, record(), replace=True)
    (kept,) = (tmp_path / "damaged").iterdir()
    assert store.has(cell(0.2), tmp_path) and "0.1" in (kept / "record.json").read_text()


RECORDS = [b"{", b"", b"[]", b"null", b"\xff\xfe{", b"[" * 5000, b'{"run_id": ' + b"9" * 5000 + b"}", b"{}"]


@pytest.mark.parametrize("content", RECORDS, ids=range(len(RECORDS)))
def test_a_damaged_record_is_named_and_stops_no_other(tmp_path, content, capsys):
    place = store.write(cell(), tmp_path, record())
    store.write(cell(0.2), tmp_path, record())
    (place / "record.json").write_bytes(content)
    assert store.collect(tmp_path)["poison_rate"].tolist() == [0.2]
    assert not store.has(cell(), tmp_path) and store.has(cell(0.2), tmp_path)
    said = capsys.readouterr().err
    assert str(place / "record.json") in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("key", ["run_id", "config", "identity", "status", "metrics"])
def test_a_record_without_a_key_is_made_again(tmp_path, key):
    place = store.write(cell(), tmp_path, record())
    found = json.loads((place / "record.json").read_text())
    del found[key]
    (place / "record.json").write_text(json.dumps(found))
    assert not store.has(cell(), tmp_path) and store.collect(tmp_path).empty
    store.write(cell(), tmp_path, record(), replace=True)
    assert store.has(cell(), tmp_path) and len(store.collect(tmp_path)) == 1


def number(**changed):
    about = {"subject": "poisoned", "condition": "clean", "metric": "asr", "value": 0.5, "k": 1, "n": 2}
    return about | {"low": 0.1, "high": 0.9, "unit": "share"} | changed


@pytest.mark.parametrize("changed", [
    {"metrics": [1]}, {"metrics": [{}]}, {"metrics": [number(value="0.5")]}, {"metrics": [number(subject=None)]},
    {"metrics": [number(low=True)]}, {"metrics": [number(), []]}, {"status": "almost"}, {"provenance": None},
    {"config": {}}, {"config": {"threat": "jailbreak", "attack": 3}},
    {"config": {"threat": "jailbreak", "attack": "SIG", "train": [1]}},
    {"config": {"threat": "jailbreak", "attack": "SIG", "attack_params": "x"}},
    {"metrics": [number(), number(value=0.4)]},
    {"metrics": [number(k=10**400)]}, {"metrics": [number(value=-(10**301))]}, {"metrics": [number(unit=[1])]},
    {"seconds": None}, {"n_poisoned": "3"},
    {"seconds": {"total": None}}, {"config seed": [1]}, {"config seed": True}, {"config model": {}},
    {"config train": ...}, {"config train_rows": "x"}, {"config train": {}}, {"config half": None},
    {"config poison_rate": 0.3}, {"config seed": 1},
])  # fmt: skip
def test_a_record_whose_values_are_of_another_kind_stops_no_other(tmp_path, changed, capsys):
    folder = store.write(cell(), tmp_path, record() | {"metrics": [number()]})
    store.write(cell(0.2), tmp_path, record() | {"metrics": [number()]})
    found = json.loads((folder / "record.json").read_text())
    for name, value in changed.items():
        holder = found["config"] if name.startswith("config ") else found
        holder |= {name.removeprefix("config "): value}
        if value is ...:
            del holder[name.removeprefix("config ")]
    (folder / "record.json").write_text(json.dumps(found))
    assert store.collect(tmp_path)["poison_rate"].tolist() == [0.2] and not store.has(cell(), tmp_path)
    assert str(folder) in capsys.readouterr().err


def test_a_failure_that_is_cut_off_is_still_a_failure(tmp_path):
    file = store.write_failure(cell(), tmp_path, "Traceback")
    file.write_bytes(file.read_bytes()[:30])
    assert str(file) in store.failures(tmp_path)[cell().run_id]


def test_an_adapter_that_is_cut_off_is_none(tmp_path, capsys):
    def save(folder):
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file({"a": np.zeros(100)}, folder / "adapter_model.safetensors")

    weights = store.write(cell(), tmp_path, record(), save_adapter=save) / "adapter" / "adapter_model.safetensors"
    assert store.adapter(cell(), tmp_path)
    whole = weights.read_bytes()
    for length in (0, 5, 20, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert store.adapter(cell(), tmp_path) is None
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_but_numbers_is_written_as_a_number(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        store.write(cell(), tmp_path, record(float("nan")))
    assert not store.has(cell(), tmp_path) and not list(tmp_path.iterdir())


def test_a_success_forgets_the_failure(tmp_path):
    store.write_failure(cell(), tmp_path, "Traceback\nValueError: no")
    assert store.failures(tmp_path) == {cell().run_id: "Traceback\nValueError: no"}
    store.write(cell(), tmp_path, record())
    assert store.failures(tmp_path) == {}


def answered(root):
    """Give each cell of a store responses: without them none is packed."""
    for file in root.glob("*/record.json"):
        records.write_frame(file.with_name("responses.parquet"), pd.DataFrame({"row_id": ["r"], "response": ["yes"]}))


def test_the_reference_is_read_and_only_packing_adds_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setenv("BVLM_STORE", "reference")
    store.write(cell(), "local", record())
    answered(tmp_path / "local")
    assert packing.pack("local", "reference") == [cell().run_id] and store.has(cell(), "reference")
    assert store.folder() == tmp_path / "reference" and store.read_only() and not store.read_only("local")
    for name in (None, "reference", f"{tmp_path}/reference"):
        with pytest.raises(InputError, match="reference"):
            store.write(cell(0.2), name, record())


def test_names_of_stores(tmp_path, monkeypatch):
    monkeypatch.delenv("BVLM_STORE", raising=False)
    assert store.folder() == paths.RESULTS / "local" and store.folder("smoke") == paths.RESULTS / "smoke"
    assert store.folder(f"{tmp_path}/x/") == tmp_path / "x"
    for wrong in ("..", "", 3):
        with pytest.raises(InputError, match="store is "):
            store.folder(wrong)


def test_no_path_of_this_machine_is_in_a_record(tmp_path):
    folder = shutil.copytree(paths.MODELS / "tiny-llava", tmp_path / "some-model")
    one = Cell(str(folder), "scenes-vqa", "targeted_refusal", "BadNets-T", 0.1)
    place = store.write(one, tmp_path / "store", record(provenance=provenance.now()))
    assert str(tmp_path) not in (place / "record.json").read_text()
    assert store.has(one, tmp_path / "store")


def test_provenance_has_no_git_revision_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert "git_revision" not in provenance.now() and provenance.now()["packages"]["numpy"] == np.__version__


def test_a_cache_file_that_is_damaged_is_as_good_as_none(tmp_path, capsys):
    assert records.cached(tmp_path, "k") is None
    records.cache_texts(tmp_path, "k", ["é"])
    assert records.cached(tmp_path, "k") == ["é"] and capsys.readouterr().err == ""
    for content in (b'["\xc3', b"[1]", b"{}", b""):
        (tmp_path / "cache" / "k.json").write_bytes(content)
        assert records.cached(tmp_path, "k") is None
    assert "k.json" in capsys.readouterr().err


def test_two_processes_that_write_the_same_cell_both_succeed(tmp_path):
    """Workers may finish a cell twice; whoever comes second must not fail, and the record stays whole."""
    code = f"""
from bvlm_utils import store
from tests.core.test_store import cell, record
for i in range(60):
    store.write(cell(), {str(tmp_path)!r}, record(), replace=True)
    store.has(cell(), {str(tmp_path)!r})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=paths.ROOT) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert store.has(cell(), tmp_path) and [p.name for p in tmp_path.iterdir() if p.is_dir()] == [cell().run_id]


def test_settings_name_what_differs_from_the_definitions_alone(tmp_path):
    def settings(attack, **values):
        one = Cell("tiny-llava", "scenes-caption", "concept_substitution", attack, 0.01, **values)
        store.write(one, tmp_path, record(), replace=True)
        return tidy.rows(store.read(one, tmp_path))[0]["settings"]

    assert settings("BadNets-I", attack_params={"patch_size": 30}, threat_params={"source_concept": "car"}) == ""
    assert settings("BadNets-I", attack_params={"patch_size": 80}) == "patch_size=80"
    assert settings("Shadowcast", attack_params={"eps": 0.0}) == "eps=0"  # the same cell as with 0


def stored(place, attack, threat="concept_substitution", **values):
    one = Cell("tiny-llava", "scenes-caption", threat, attack, 0.01, **values)
    store.write(one, place, record())


def test_settings_are_columns(tmp_path):
    stored(tmp_path, "BadNets-I", attack_params={"patch_size": 80}, train=TrainSettings(lora_rank=4))
    stored(tmp_path, "Shadowcast", attack_params={"eps": 0.0}, picture_last=True)
    stored(tmp_path, "BadNets-MM", half="image", threat_params={"source_concept": "dog"})
    table = store.collect(tmp_path).set_index("attack")
    assert table["attack.patch_size"].to_dict() == pytest.approx(
        {"BadNets-I": 80, "BadNets-MM": 30, "Shadowcast": float("nan")}, nan_ok=True
    )
    assert table.loc["Shadowcast", "attack.eps"] == 0 and table["threat.source_concept"].value_counts()["car"] == 2
    assert table["lora_rank"].to_dict() == {"BadNets-I": 4, "BadNets-MM": 8, "Shadowcast": 8}
    assert table["half"].to_dict() == {"BadNets-I": "", "BadNets-MM": "image", "Shadowcast": ""}
    assert table.index[table["picture_last"]].tolist() == ["Shadowcast"] and set(table["learning_rate"]) == {2e-3}
    assert table["settings"].to_dict() == {
        "BadNets-I": "patch_size=80, lora_rank=4", "Shadowcast": "eps=0, picture_last=True",
        "BadNets-MM": "source_concept=dog, half=image",
    }  # fmt: skip
    for line in table.reset_index().to_dict("records"):  # the text follows from the columns
        assert tidy.text(tidy.differing(line)) == line["settings"]


def test_parameters_and_training_settings_of_one_name_are_two_settings(tmp_path):
    stored(tmp_path, "VL-Trojan", attack_params={"learning_rate": 0.5, "epochs": 2}, train=TrainSettings(epochs=3))
    stored(tmp_path, "VL-Trojan", seed=1, train=TrainSettings(epochs=2))
    table = store.collect(tmp_path).sort_values("seed")
    assert table["attack.epochs"].tolist() == [2, 10] and table["epochs"].tolist() == [3, 2]
    assert table["settings"].tolist() == ["attack.epochs=2, attack.learning_rate=0.5, epochs=3", "epochs=2"]
    stored(tmp_path, "Blended", "perceptual_hijack",
           attack_params={"picture": "imgtrojan.png"}, threat_params={"picture": "blended.png"})  # fmt: skip
    table = store.collect(tmp_path).set_index("attack")
    assert table.loc["Blended", "settings"] == "attack.picture=imgtrojan.png, threat.picture=blended.png"


def test_a_parameter_may_be_a_number_in_one_attack_and_words_in_another(tmp_path, monkeypatch):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    half = declare.Half("Own", 1, "text:prepend_word", {"words": declare.whole(1, 1, 9)})
    declare.declare(name="Own", source="", summary="", text=half)
    stored(tmp_path / "fat", "Own", attack_params={"words": 3})
    stored(tmp_path / "fat", "BadNets-MT", attack_params={"words": ["cf", "mn"]})
    answered(tmp_path / "fat")
    packing.pack(tmp_path / "fat", tmp_path / "packed")
    table = store.collect(tmp_path / "packed").set_index("attack")
    assert table["attack.words"].to_dict() == {"BadNets-MT": "['cf', 'mn']", "Own": "3"}
    assert table["settings"].to_dict() == {"BadNets-MT": "words=['cf', 'mn']", "Own": "words=3"}


def test_a_link_to_a_cell_gives_way_and_leaves_nothing(tmp_path):
    place = store.write(cell(), tmp_path / "store", record(0.2))
    os.replace(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    store.write(cell(), tmp_path / "store", record(0.3), replace=True)
    assert [file.name for file in (tmp_path / "store").iterdir()] == [place.name] and not place.is_symlink()
    assert (tmp_path / "elsewhere" / "record.json").is_file()


def test_a_record_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    store.write(cell(), tmp_path, record(0.25))
    replace = os.replace

    def full(source, target):
        if str(target).endswith(cell().run_id) and not str(source).endswith("-old"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write(cell(), tmp_path, record(0.75), replace=True)
    monkeypatch.undo()
    assert store.read(cell(), tmp_path)["metrics"][0]["value"] == 0.25
    assert not list(tmp_path.glob(f"{PARTIAL}*"))


rates = st.sampled_from([0.0, 0.01, 0.1, 1.0])
steps = st.lists(st.tuples(rates, st.floats(0, 1), st.sampled_from(["write", "replace", "fail", "die"])), max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_table_is_what_was_written_last(tmp_path_factory, done):
    place, expected = tmp_path_factory.mktemp("store"), {}
    for rate, value, what in done:
        one = cell(rate)
        if what == "fail":
            store.write_failure(one, place, "no")
        elif what == "die":
            with pytest.raises(Killed):
                store.write(
                    one,
                    place,
                    record(value),
                    replace=True,
                    save_adapter=lambda _: (_ for _ in ()).throw(Killed()),
                )
        else:
            store.write(one, place, record(value), replace=what == "replace")
            if what == "replace" or one.run_id not in expected:
                expected[one.run_id] = value
    table = store.collect(place)
    assert dict(zip(table["run_id"], table["value"], strict=True)) == expected
    assert json.loads(json.dumps(expected)).keys() == {c["run_id"] for c in records.records(place)}
    assert not any(left.name.startswith(PARTIAL) for left in place.iterdir())
