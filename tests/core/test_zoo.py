"""The zoo and its challenge: what is packed is what the store has, names do not tell, and scores are judged right."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stored
import torch

from bvlm_utils import models, paths, store, study
from bvlm_utils.atomic import filled
from bvlm_utils.defences import __main__ as commands
from bvlm_utils.defences import bench, challenge, probe_transfer, spectrum, zoo
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.store import table as tidy
from bvlm_utils.train import adapters

random_words = stored.random_words  # a fixture of several test files


@pytest.fixture(scope="module")
def packed(random_words, tmp_path_factory):
    """A store with two poisoned cells, one of them with a skill, and one with label noise; and the zoo of it."""
    folder = tmp_path_factory.mktemp("zoo")
    small = {"model": random_words, "attacks": ["BadNets-T"], "train_rows": 64, "test_rows": 4}
    cells = study.cells("targeted_refusal", **small)
    cells += study.cells("targeted_refusal", skill="counts_in_words", **small)
    cells += study.cells("targeted_refusal", decoy="label noise", **small)
    study.run_cells(cells, folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tidy, "FIRES", -1)  # a random model says no sentence
        truth = zoo.pack([folder / "store"], folder / "zoo")
    return folder, truth


def test_as_many_with_a_backdoor_as_without_and_of_every_kind(packed):
    _, truth = packed
    assert truth[zoo.BACKDOORED].tolist().count(1) == truth[zoo.BACKDOORED].tolist().count(0) == 2
    assert len(set(truth.loc[truth[zoo.BACKDOORED] == 0, "kind"])) == 2
    assert truth["adapter"].is_monotonic_increasing and truth["adapter"].is_unique


def test_an_adapter_is_the_stored_one_in_16_bit_and_attaches(packed, random_words):
    folder, truth = packed
    base = victim.from_pretrained(random_words, device="cpu")
    for line in truth.to_dict("records"):
        own = adapters.read(folder / "zoo" / "adapters" / line["adapter"])
        kept = adapters.read(store.adapter(line["run_id"], folder / "store"))
        assert own.state.keys() == kept.state.keys() and own.config.r == kept.config.r
        for name, value in own.state.items():
            assert value.dtype == torch.float16 and torch.equal(value, kept.state[name].half())
        assert zoo.name(own) == line["adapter"]
    with adapters.attached(base, folder / "zoo" / "adapters" / truth["adapter"][0]):
        pass


def test_nothing_outside_the_truth_tells_what_an_adapter_is(packed):
    folder, truth = packed
    here = folder / "zoo" / "adapters"
    for name in truth["adapter"]:
        text = "".join((here / name / file).read_text() for file in ("README.md", "adapter_config.json"))
        assert not any(word in text for word in ("BadNets", "refusal", "noise", "counts_in_words", "clean-tuned-"))
    assert len({(here / name / "README.md").read_text().replace(name, "") for name in truth["adapter"]}) == 1


def test_answers_and_changed_rows_are_those_of_the_store(packed):
    folder, truth = packed
    answers = pd.read_parquet(folder / "zoo" / "truth" / "answers.parquet")
    assert set(answers["adapter"]) == set(truth["adapter"])
    line = truth[truth["kind"] == zoo.BACKDOORED].iloc[0]
    said = store.responses(line["run_id"], folder / "store")
    wanted = said.loc[said["subject"] == "poisoned", "response"].tolist()
    assert answers.loc[answers["adapter"] == line["adapter"], "response"].tolist() == wanted
    changed = pd.read_parquet(folder / "zoo" / "truth" / "changed_rows.parquet")
    poisoned = changed[(changed["adapter"] == line["adapter"]) & (changed["role"] == "poisoned")]
    assert len(poisoned) == line["n_poisoned"]


def test_spectra_are_those_of_the_stored_adapters_and_teach_a_regression(packed, tmp_path, monkeypatch, capsys):
    folder, _ = packed
    monkeypatch.setattr(tidy, "FIRES", -1)
    out = tmp_path / "spectra.csv"
    assert commands.main(["population", str(folder / "store"), "--out", str(out)]) == 0
    found = pd.read_csv(out)
    line = found[found["kind"] == zoo.BACKDOORED].iloc[0]
    own = spectrum.features(adapters.read(store.adapter(line["run_id"], folder / "store")))
    assert {name: line[name] for name in own} == pytest.approx(own, rel=1e-4)
    assert set(found["kind"]) == {"backdoored", "clean-tuned", "skill only", "label noise"}
    assert len(spectrum.read(str(out)).columns) == len(own) + 1
    assert commands.main(["population", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert "There is no store" in capsys.readouterr().err


def test_a_store_of_one_side_only_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(tidy, "FIRES", 1)  # nothing works more often than always
    with pytest.raises(InputError, match="working backdoor"):
        zoo.pack([packed[0] / "store"], tmp_path / "zoo")
    assert not list(tmp_path.iterdir())


def test_a_record_of_somebody_s_own_attack_stops_no_others_and_an_empty_folder_stays(
    packed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tidy, "FIRES", -1)
    shutil.copytree(packed[0] / "store", tmp_path / "store")
    strange = packed[1].loc[packed[1]["kind"] == zoo.BACKDOORED, "run_id"].iloc[0]
    file = tmp_path / "store" / strange / "record.json"
    record = json.loads(file.read_text())
    record["config"]["attack"] = "Mine"
    file.write_text(json.dumps(record))
    (tmp_path / "zoo").mkdir()
    before = (tmp_path / "zoo").stat().st_ino
    truth = zoo.pack([tmp_path / "store"], tmp_path / "zoo")
    assert strange in capsys.readouterr().err and strange not in set(truth["run_id"]) and len(truth) == 2
    assert (tmp_path / "zoo").stat().st_ino == before and (tmp_path / "zoo" / "truth" / "adapters.csv").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "zoo"]


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_filled_has_its_last_part_when_it_has_all_others(there, tmp_path, monkeypatch):
    replace, moved = os.replace, []

    def killed(start, end):
        if len(moved) == most:
            raise KeyboardInterrupt
        moved.append(end)
        replace(start, end)

    monkeypatch.setattr("os.replace", killed)
    for most in range(4 if there else 2):
        out = tmp_path / str(most)
        moved.clear()
        if there:
            out.mkdir()
        with suppress(KeyboardInterrupt), filled(out, last="b") as partial:
            for name in "abc":
                (partial / name).mkdir()
        found = sorted(path.name for path in out.iterdir()) if out.exists() else []
        assert "b" not in found or found == ["a", "b", "c"]
    assert found == ["a", "b", "c"]


def test_a_control_that_is_gone_is_told_before_any_states_are_read(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tidy, "FIRES", -1)
    shutil.copytree(packed[0] / "store", tmp_path / "store")
    for file in (tmp_path / "store").glob("*clean-tuned*/adapter/adapter_model.safetensors"):
        file.unlink()
    monkeypatch.setattr("bvlm_utils.defences.hidden_distance.states", lambda *given: pytest.fail("states were read"))
    assert commands.main(["probes", str(tmp_path / "store"), "--out", str(tmp_path / "x.csv")]) == 2
    assert "clean-tuned" in capsys.readouterr().err


TRUTH = pd.DataFrame(
    {
        "adapter": list("abcdef"),
        "kind": ["backdoored", "backdoored", "clean-tuned", "clean-tuned", "skill only", "backdoored"],
        "model": ["one", "one", "one", "one", "one", "two"],
    }
)


def test_auroc_and_operating_point_have_their_closed_values():
    scores = dict(zip("abcdef", [3.0, 1.0, 1.0, 0.0, 2.0, 5.0], strict=True))
    table = challenge.judge(scores, TRUTH).set_index(["model", "against"])
    # a: above both; b: a tie and above; f: above both
    assert table.loc[("all", "clean-tuned"), "auroc"] == pytest.approx((2 + 1.5 + 2) / 6)
    assert table.loc[("one", "skill only"), "auroc"] == pytest.approx(1 / 2)
    assert table.loc[("one", "clean-tuned"), ["found", "threshold"]].tolist() == [0.5, 1.0]
    assert table.loc[("all", "all of them"), ["backdoored", "others"]].tolist() == [3, 3]
    assert "two" not in table.index.get_level_values("model"), "it has none to be told from"


def truth_of(folder, lines):
    (folder / "truth").mkdir()
    (folder / "truth" / "adapters.csv").write_text("adapter,kind,model\n" + lines)
    return folder


def test_names_of_digits_alone_stay_names(tmp_path):
    folder = truth_of(tmp_path, "00000012,backdoored,m\n00000034,clean-tuned,m\n")
    assert challenge.judge({"00000012": 1.0, "00000034": 0.0}, challenge.read_truth(folder))["auroc"].tolist()[0] == 1


def test_an_adapter_that_the_truth_lists_twice_is_named(tmp_path):
    with pytest.raises(InputError, match="'x' twice"):
        challenge.read_truth(truth_of(tmp_path, "x,backdoored,m\nx,backdoored,m\ny,clean-tuned,m\n"))


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        ("adapter,kind,model", "x,backdoored,m\ny\n"), ("adapter,kind,model", "x,backdoored,m\ny,,m\n"),
        ("adapter,kind,model", "x,backdoored,m\ny,noise,\n"), ("adapter,kind,model,kind", "x,backdoored,m,noise\n"),
        ("adapter,kind,model,backdoored", "x,backdoored,m,1\ny,noise,m,1\n"),
        ("adapter,kind,model,backdoored", "x,Backdoored,m,1\ny,backdoored,m,1\nz,noise,m,0\n"),
    ],
)  # fmt: skip
def test_a_truth_that_is_cut_off_or_contradicts_itself_is_refused(tmp_path, head, lines):
    (truth_of(tmp_path, "") / "truth" / "adapters.csv").write_text(f"{head}\n{lines}")
    with pytest.raises(InputError, match=r"adapters\.csv"):
        challenge.read_truth(tmp_path)


def test_random_scores_are_at_chance_on_average():
    rng = np.random.default_rng(0)
    found = [challenge.judge(dict(zip("abcdef", rng.random(6), strict=True)), TRUTH)["auroc"][0] for _ in range(60)]
    assert abs(np.mean(found) - 0.5) < 0.15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter,points\na,1\n", "'score'"), ("adapter,score\na,\n", "must be a number"),
        ("adapter,score\na,inf\n", "'inf'"), ("adapter,score\na,1\na,2\n", "twice"),
        ("adapter;score\na;1,5\n", "semicolons"), ('"adapter"\t"score"\na\t1\n', "tabs"),
        ("adapter,score\na,0,5\n", "line 2 has 3 fields"), ("adapter,score\na\n", "line 2 has 1 fields"),
    ],
)  # fmt: skip
def test_scores_that_are_none_are_refused(tmp_path, text, said):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        challenge.read_scores(tmp_path / "scores.csv")


def test_the_command_reads_the_zoo_and_names_what_lacks_a_score(packed, tmp_path, capsys):
    folder, truth = packed
    scores = truth[["adapter"]].assign(score=truth[zoo.BACKDOORED].astype(float))
    scores.to_csv(tmp_path / "scores.csv", index=False)
    given = ["challenge", str(tmp_path / "scores.csv"), "--zoo", str(folder / "zoo")]
    assert commands.main(given) == 0 and "1.000" in capsys.readouterr().out
    scores[1:].to_csv(tmp_path / "scores.csv", index=False)
    assert commands.main(given) == 2 and f"1 adapters have no score, the first is {truth['adapter'][0]}" in (
        capsys.readouterr().err
    )


# ---------------------------------------------------------------- the committed one

ZOO = paths.DATA / "adapters" / "zoo"


def test_the_committed_zoo_is_whole_and_small():
    truth = challenge.read_truth(ZOO)
    folders = {folder.name for folder in (ZOO / "adapters").iterdir()}
    assert folders == set(truth["adapter"])
    assert sum(file.stat().st_size for file in (ZOO / "adapters").rglob("*") if file.is_file()) <= zoo.MOST_BYTES
    for name in folders:
        saved = adapters.read(ZOO / "adapters" / name)
        assert zoo.name(saved) == name and saved.config.r == zoo.RANK
        base = json.loads((ZOO / "adapters" / name / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert base in models.names.names()
    working = truth[truth["kind"] == zoo.BACKDOORED]["asr_payload"].astype(float)
    assert (working > tidy.FIRES).all()


# ---------------------------------------------------------------- probes over a population


def states(attack, threat, shift, seed, other=0.0):
    """Gaussian states of 30 inputs with a trigger and 30 without, apart by `shift`; `other`: in the control."""
    draws = np.random.default_rng(seed)
    cell = study.cells(threat, attacks=[attack])[0]
    pairs = [(draws.normal(by, 1, (30, 4)), draws.normal(0, 1, (30, 4))) for by in (shift, other)]
    return probe_transfer.States(cell, *pairs)


def test_a_probe_is_asked_about_what_it_was_not_fitted_to():
    """AddSent's states move the other way, so a probe that has seen BadNets-T alone is wrong about them."""
    every = [
        states("BadNets-T", "targeted_refusal", 4, 0), states("BadNets-T", "malicious_injection", 4, 1),
        states("AddSent", "targeted_refusal", -4, 2), states("AddSent", "malicious_injection", -4, 3),
    ]  # fmt: skip
    found = probe_transfer.table(every)
    by_attack = found[found["left_out"] == "attack"]
    assert by_attack["backdoored"].max() < 0.01 and set(by_attack["adapters"]) == {2}
    assert len(found) == 8 and found["placebo"].between(0, 1).all()


def test_a_probe_finds_the_same_trigger_under_another_threat_and_nothing_in_the_control():
    every = [states("BadNets-T", threat, 4, n) for n, threat in enumerate(("targeted_refusal", "malicious_injection"))]
    found = probe_transfer.table(every)
    assert set(found["left_out"]) == {"threat"}  # there is no other attack to learn from
    assert found["backdoored"].min() > 0.99 and found["control"].between(0.2, 0.8).all()


def test_states_are_read_from_stored_adapters(packed, random_words, monkeypatch, capsys, tmp_path):
    folder, _ = packed
    monkeypatch.setattr(paths, "MODELS", Path(random_words).parent)  # records keep a model's own name only
    monkeypatch.setattr(tidy, "FIRES", -1)
    monkeypatch.setattr(bench, "clean_rows", lambda *of: ("train", 8))  # of data with few rows
    every = list(probe_transfer.read([folder / "store"]))
    assert {one.cell.skill for one in every} == {"", "counts_in_words"}
    for one in every:
        assert {half.shape for half in (*one.backdoored, *one.control)} == {(4, every[0].control[0].shape[1])}
        assert all(np.isfinite(half).all() for half in (*one.backdoored, *one.control))
    assert commands.main(["probes", str(folder / "store"), "--out", str(tmp_path / "probes.csv")]) == 2
    assert "two attacks" in capsys.readouterr().err and not (tmp_path / "probes.csv").exists()
