"""Contributed lines: what is scored becomes an entry, and an entry that was tampered with is refused."""

import errno
import json
import shutil

import pytest
import stored

from bvlm_utils import leaderboard, store, study
from bvlm_utils.command import WRONG
from bvlm_utils.errors import InputError
from bvlm_utils.store import contributed

random_words = stored.random_words  # a fixture of several test files
ABOUT = {
    "name": "My word", "by": "Somebody", "source": "", "note": "", "kind": "attack", "model": "tiny-llava",
    "dataset": "scenes-vqa", "threat": "targeted_refusal", "attack": "BadNets-T", "n_poisoned": 3, "seed": 0,
    "settings": {"test_rows": 4},
}  # fmt: skip
MINE = ABOUT | {"model": "random-words"}


@pytest.fixture(scope="module")
def mine(random_words, tmp_path_factory):
    """A filled-in folder: the adapter of a tiny cell, its control, and entry.json; and the base under them."""
    folder = tmp_path_factory.mktemp("mine")
    settings = {"dataset": "scenes-vqa", "attacks": ["BadNets-T"], "train_rows": 32, "test_rows": 4}
    (cell,) = study.cells("targeted_refusal", random_words, **settings)
    study.run_cells([cell], store=folder / "store")
    shutil.copytree(store.adapter(cell, folder / "store"), folder / "adapter")
    shutil.copytree(store.adapter(cell.control, folder / "store"), folder / "control")
    (folder / "entry.json").write_text(json.dumps(MINE))
    return folder, random_words


@pytest.fixture(scope="module")
def entry(mine, tmp_path_factory):
    folder, model = mine
    into = tmp_path_factory.mktemp("contributed")
    assert leaderboard.main(["add", str(folder), "--model", model, "--into", str(into)]) == 0
    (file,) = into.iterdir()
    return file


def test_the_entry_has_the_numbers_of_the_cell(entry, mine):
    found = contributed.read(entry)
    record = store.collect(mine[0] / "store")
    wanted = {(r["subject"], r["condition"], r["metric"]): r["value"] for r in record.to_dict("records")}
    got = {(r["subject"], r["condition"], r["metric"]): r["value"] for r in found["numbers"]}
    assert got == {key: value for key, value in wanted.items() if isinstance(key[0], str)}
    assert found["made"]["compared_with"] == "control" and found["about"] == MINE
    assert str(mine[0]) not in entry.read_text()


def test_check_counts_the_entries(entry, capsys):
    assert leaderboard.main(["check", "--into", str(entry.parent)]) == 0
    assert ": 1, all" in capsys.readouterr().out


def test_a_copy_of_an_entry_is_refused(entry, tmp_path, capsys):
    for name in (entry.name, "copy.json"):
        shutil.copy(entry, tmp_path / name)
    assert leaderboard.main(["check", "--into", str(tmp_path)]) == WRONG
    error = capsys.readouterr().err
    assert "copy.json" in error and entry.name in error and len(error.splitlines()) == 1


def test_the_committed_entries_are_as_they_should_be():
    assert leaderboard.main(["check"]) == 0


def tampered(entry, change):
    found = json.loads(entry.read_text())
    change(found)
    return found


def a_share(found):
    return next(number for number in found["numbers"] if number["k"] is not None)


def of_metric(found, name):
    return next(number for number in found["numbers"] if number["metric"] == name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e["about"].update(kind="joke"), "kind"),
        (lambda e: e["about"].update(name=""), "name is empty"),
        (lambda e: e["about"].update(by="a" * 1000), "by"),
        (lambda e: e["about"].pop("threat"), "'threat'"),
        (lambda e: e.update(more=1), "more"),
        (lambda e: e["about"]["settings"].update(attack_params={"picture": "../../x.png"}), "path"),
        (lambda e: e.update(numbers=[]), "numbers"),
        (lambda e: a_share(e).update(value=2.0), "k / n"),
        (lambda e: a_share(e).update(low=0.0, high=1e-9), "Wilson"),
        (lambda e: e["numbers"][-1].update(value="0.5"), "number"),
        (lambda e: a_share(e).update(k=None, value=0.99, low=None, high=None), "k / n"),
        (lambda e: a_share(e).update(k=None, value=37.0, low=None, high=None), "k / n"),
        (lambda e: a_share(e).update(k=2.5, n=4.9, value=2.5 / 4.9), "whole number"),
        (lambda e: a_share(e).update(k=2.5, value=2.5 / a_share(e)["n"]), "whole number"),
        (lambda e: a_share(e).update(unit="CIDEr-D"), "unit"),
        (lambda e: e["numbers"][-1].update(value=37.0, low=None, high=None), "must be from"),
        (lambda e: of_metric(e, "utility").update(low=None, high=None), "Wilson"),
        (lambda e: of_metric(e, "utility").update(low=0.0, high=1.0), "Wilson"),
        (lambda e: of_metric(e, "asr_difference").update(low=None, high=None), "no interval"),
        (lambda e: of_metric(e, "utility_difference").update(low=None), "no interval"),
        (lambda e: e["numbers"].append(a_share(e)), "the same metric"),
        (lambda e: a_share(e).update(condition="TEXT"), "both, text, image, clean"),
        (lambda e: a_share(e).update(subject="mine"), "subject"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(entry, change, said):
    with pytest.raises(InputError, match=said):
        contributed.check(tampered(entry, change), "it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset": "vqav2:/data"}, "dataset"), ({"model": "./mine"}, "'./mine'"), ({"attack": "BadNet"}, "BadNet"),
        ({"settings": {"surrogate": "clip"}}, "surrogate"), ({"settings": {"epochs": 3}}, "epochs"),
        ({"settings": {"skill": ["a"]}}, "skill is ['a']"), ({"settings": {"model": "x"}}, "no setting 'model'"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_sentence(tmp_path, capsys, change, said):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-llava"}')
    (tmp_path / "entry.json").write_text(json.dumps(ABOUT | change))
    assert leaderboard.main(["add", str(tmp_path), "--into", str(tmp_path / "new")]) == WRONG
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not (tmp_path / "new").exists()


def test_numbers_of_another_model_are_not_kept_under_a_name_that_we_know(mine, tmp_path, capsys):
    folder, model = mine
    shutil.copytree(folder / "adapter", tmp_path / "adapter")
    (tmp_path / "entry.json").write_text(json.dumps(ABOUT))
    assert leaderboard.main(["add", str(tmp_path), "--model", model, "--into", str(tmp_path / "new")]) == WRONG
    assert "has other weights" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_template_is_an_entry_to_be_filled_in(tmp_path, capsys):
    words = ["--threat", "jailbreak", "--attack", "BadNets-I"]
    assert leaderboard.main(["template", str(tmp_path / "mine"), *words]) == 0
    about = json.loads((tmp_path / "mine" / "entry.json").read_text())
    with pytest.raises(InputError, match="name is empty"):
        contributed.check_about(about, "it")
    contributed.check_about(about | {"name": "a", "by": "b"}, "it")
    assert leaderboard.main(["template", str(tmp_path / "mine"), *words]) == WRONG
    assert "exists already" in capsys.readouterr().err


def test_the_cost_is_that_of_the_reference(capsys):
    hours = leaderboard.hours_of_full_entries()
    assert 0 < hours["defence"] < hours["attack"]
    assert leaderboard.main(["cost"]) == 0 and "60 cells" in capsys.readouterr().out


def test_a_template_that_a_full_disk_stops_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leaderboard, "write_file", full)
    words = ["--threat", "targeted_refusal", "--attack", "BadNets-T"]
    assert leaderboard.main(["template", str(tmp_path / "mine"), *words]) == WRONG
    assert "No space left" in capsys.readouterr().err and not list(tmp_path.iterdir())
