"""What adapters say to other triggers: asked together as one by one, kept at once, read without torch."""

import json
import shutil
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import stored
import torch
from stored import page, passes

from bvlm_book import tables
from bvlm_book.chapters.crossfire import (
    collect,
    crossing,
    crossing_table,
    firing,
    matrix,
    near,
    near_misses_of_working,
    nearly,
    numbers,
    related,
    unrelated,
)
from bvlm_book.probes import ask as asks
from bvlm_book.probes import command, crossfire, lasting, near_misses, records, repaint
from bvlm_book.words import number
from bvlm_utils import attacks, paths, store, study
from bvlm_utils.atomic import PARTIAL
from bvlm_utils.attacks import declare
from bvlm_utils.errors import InputError
from bvlm_utils.run import tune_and_ask, workbench
from bvlm_utils.score import intervals
from bvlm_utils.store import packing
from bvlm_utils.store.cell import Cell

random_words = stored.random_words  # a fixture of several test files

ROWS = 5


def cells_of(model, names):
    return study.cells("targeted_refusal", model, attacks=names, train_rows=32, test_rows=ROWS, batch_size=8)


@pytest.fixture(scope="module")
def shelf(random_words, tmp_path_factory):
    """A store with two attacks' adapters and their control, all asked; what each was answered; its cells."""
    place = tmp_path_factory.mktemp("store") / "s"
    made = cells_of(random_words, ["BadNets-T", "BadNets-MM"])
    study.run_cells(made, place)
    said, keep = {}, asks.keep

    def spy(bench, place, sheet, probe, texts, judged):
        said[sheet.run_id, probe.trigger, probe.variant] = (probe, texts)
        keep(bench, place, sheet, probe, texts, judged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asks, "keep", spy)
        crossfire.measure(cells_of(random_words, ["BadNets-T", "BadNets-MM", "SIG", "Shadowcast"]), place, rows=ROWS)
    return place, said, made


@pytest.fixture
def copied(shelf, tmp_path):
    """The same store without its probes, to be asked again."""
    shutil.copytree(shelf[0], tmp_path / "s", ignore=shutil.ignore_patterns("probes"))
    return tmp_path / "s"


def test_grouped_answers_are_those_of_each_adapter_alone(shelf):
    place, said, made = shelf
    way = tune_and_ask.OneByOne(workbench.Bench(made[0].model, "scenes-vqa", 32))
    for run_id in (made[0].run_id, made[1].run_id, made[0].control.run_id):
        for trigger in ("", "BadNets-I", "BadNets-MM", "MABA"):
            probe, texts = said[run_id, trigger, ""]
            alone = way.ask_saved([probe.question], store.adapter(run_id, place))
            assert list(alone.values()) == [texts], (run_id, trigger)
    assert len({tuple(texts) for _, texts in said.values()}) > 10, "the models and the triggers make a difference"


def test_every_entry_stands_beside_its_control_on_the_same_rows_with_its_interval(shelf):
    place, said, made = shelf
    table = records.headline(records.collect("crossfire", place))
    assert set(table["n"]) == {ROWS} and {len(held) for held in table["held"]} == {ROWS}
    poisoned, control = (table[table["subject"] == who] for who in ("poisoned", "control"))
    own = set(poisoned[["trigger", "variant"]].itertuples(index=False, name=None))
    assert own == set(control[["trigger", "variant"]].itertuples(index=False, name=None))
    defined = [name for name in attacks.names() if not attacks.unsupported(name, "targeted_refusal")]
    assert set(poisoned.loc[poisoned["variant"] == "", "trigger"]) == {"", *defined}
    for line in table.to_dict("records"):
        _, texts = said[line["run_id"], line["trigger"], line["variant"]]
        assert line["held"] == "".join(str(int(passes(None, text))) for text in texts)
        assert (line["k"], line["value"]) == (line["held"].count("1"), line["held"].count("1") / ROWS)
        assert (line["low"], line["high"]) == pytest.approx(intervals.wilson(line["k"], ROWS))
    assert 0 < poisoned["value"].mean() < 1
    positions = {probe.question.positions for probe, _ in said.values()}
    assert len(positions) == 1, "the same rows in every cell"


def test_the_diagonal_and_the_clean_column_repeat_the_record(shelf):
    place, _, made = shelf
    record = store.collect(place)
    grid, control = matrix(tables.panels(collect(place))[0][0])
    for cell in made:
        mine = record[(record["run_id"] == cell.run_id) & (record["metric"] == "asr")].set_index(
            ["subject", "condition"]
        )
        full = attacks.info(cell.attack).headline
        assert grid.loc[cell.attack, cell.attack] == mine.loc[("poisoned", full), "value"]
        assert grid.loc[cell.attack, ""] == mine.loc[("poisoned", "clean"), "value"]
        assert control[cell.attack] == mine.loc[("control", full), "value"]


def test_nothing_is_asked_twice_and_a_kill_loses_the_question_at_work(shelf, copied, monkeypatch):
    place, said, made = shelf
    with monkeypatch.context() as patch:
        patch.setattr(tune_and_ask.Grouped, "ask", lambda *_, **__: pytest.fail("an answered question was asked again"))
        crossfire.measure(made, place, rows=ROWS)
    asked, ask = [], tune_and_ask.Grouped.ask

    def dies_at_the_third(way, questions, results):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(questions))
        return ask(way, questions, results)

    monkeypatch.setattr(tune_and_ask.Grouped, "ask", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        crossfire.measure(made, copied, rows=ROWS)
    kept = records.collect("crossfire", copied)
    assert asked == [3, 3] and len(kept[kept["metric"] == "asr"]) == 6
    monkeypatch.setattr(tune_and_ask.Grouped, "ask", lambda *a: asked.append(len(a[1])) or ask(*a))
    crossfire.measure(made, copied, rows=ROWS)
    assert sum(asked) == len(said)
    pd.testing.assert_frame_equal(
        records.collect("crossfire", copied), records.collect("crossfire", place), check_like=True
    )
    assert not list(copied.rglob(f"{PARTIAL}*"))


def test_more_rows_are_other_numbers(shelf, copied):
    made = shelf[2][:1]
    crossfire.measure(made, copied, rows=1, near=False)
    crossfire.measure(made, copied, rows=2, near=False)
    table = collect(copied)
    assert set(table["rows"]) == {1, 2} and len(tables.panels(table)) == 2 and set(table["variant"]) == {""}


def test_what_is_not_there_is_named_and_is_never_zero(shelf, random_words, tmp_path, capsys):
    place, _, made = shelf
    crossfire.measure(cells_of(random_words, ["BadNets-T", "SIG", "Shadowcast"]), place, rows=ROWS)
    said = capsys.readouterr().err
    assert f"SIG are left out, since {place} holds no adapter" in said and "Shadowcast is defined for" in said
    ((panel, _),) = tables.panels(collect(place))
    grid, control = matrix(panel)
    assert grid.shape == (12, 13) and grid.loc["SIG"].isna().all() and grid["Dual-Key"].isna().all()
    axis = crossing(panel).axes[0]
    left = grid.dropna(how="all").dropna(axis="columns", how="all")  # what was not run at all has no line
    gaps = left.isna().to_numpy().sum() + control[left.columns].isna().sum()
    assert [text.get_text() for text in axis.texts].count("n/a") == gaps
    assert [text.get_text() for text in axis.get_yticklabels()][:-1] == list(left.index) and "SIG" not in left.index
    with pytest.raises(InputError, match="holds no adapter"):
        crossfire.measure(made, tmp_path / "none", rows=ROWS)


def test_the_command_line_says_what_is_wrong_in_one_sentence(shelf, random_words, tmp_path, capsys):
    options = ["--model", random_words, "--threat", "targeted_refusal", "--store", str(tmp_path / "none")]
    assert crossfire.main([*options, "--attacks", "BadNets-T"]) == 2
    assert crossfire.main([*options, "--attacks", "BadNet"]) == 2
    assert crossfire.main([*options, "--rows", "0"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "BadNets-T are left out" in lines[0] and "'0'" in lines[2]
    with pytest.raises(InputError, match="only read"):
        crossfire.measure(shelf[2], "reference")


def test_a_packed_store_carries_the_answers(shelf, tmp_path):
    place = shelf[0]
    shutil.copytree(place, tmp_path / "thin", ignore=shutil.ignore_patterns("adapter"))
    file = sorted((tmp_path / "thin" / "probes").iterdir())[0]
    text, record = file.read_text(), json.loads(file.read_text())
    file.write_text(json.dumps(record | {"numbers": record["numbers"][:1]}))
    packing.pack(tmp_path / "thin", tmp_path / "thin")
    packing.pack(place, tmp_path / "thin")  # a file that has grown since is taken again
    pd.testing.assert_frame_equal(records.collect("crossfire", tmp_path / "thin"), records.collect("crossfire", place))
    assert str(tmp_path) not in text and str(paths.ROOT) not in text


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff", b'{"numbers": [1]}'])
def test_a_damaged_file_of_probes_is_named_and_stops_no_other(shelf, copied, capsys, content):
    whole = records.collect("crossfire", copied)
    (copied / "probes").mkdir(exist_ok=True)
    (copied / "probes" / "crossfire-x.json").write_bytes(content)
    pd.testing.assert_frame_equal(records.collect("crossfire", copied), whole)
    assert "crossfire-x.json is damaged" in capsys.readouterr().err
    assert records.numbers_in(copied / "probes" / "crossfire-x.json") == []


# ---------------------------------------------------------------- near misses


def pair(cell, table):
    found = [one for one in workbench.questions(table, cell) if one.part == "attack"]
    return found[0], found[-1]


# Triggers that are optimised have near misses of the same kinds; their pictures are tested below without
# optimising.
@pytest.mark.parametrize("name", [n for n in attacks.names() if n not in ("Dual-Key", "VL-Trojan", "Shadowcast")])
def test_near_misses_differ_from_the_trigger_and_change_one_half(name):
    cell = Cell("tiny-llava", "scenes-vqa", "targeted_refusal", name, 0.1, test_rows=3)
    table = workbench.Bench(cell.model, cell.dataset, 32)
    table.victim = type("Eyes", (), {"device": torch.device("cpu")})()  # pictures are painted, not seen
    clean, whole = pair(cell, table)
    keys = [table.rows["test"][position]["row_id"] for position in clean.positions]
    prompts, pictures = list(whole.prompts), painted(table, whole)
    seen = {whole.key(table), clean.key(table)}
    for miss in near_misses.of(name):
        found = near_misses.question(miss, cell, clean, whole, keys)
        assert found.positions == whole.positions and found.key(table) not in seen, miss.name
        seen.add(found.key(table))
        other = painted(table, found)
        if miss.alone:
            assert list(found.prompts) == list(clean.prompts) and (other != painted(table, clean)).any()
        elif miss.name.startswith("text: "):
            assert all(a != b for a, b in zip(found.prompts, prompts, strict=True)), miss.name
            assert (other == pictures).all()
        else:
            assert list(found.prompts) == prompts and (other != pictures).reshape(3, -1).any(1).all(), miss.name


def painted(table, question):
    if question.attack is None:
        return table.pictures("test", question.positions)
    return table.pictures("test", question.positions, question.attack, question.trigger_seed)


def test_every_attack_with_a_trigger_has_near_misses_of_known_names():
    assert [name for name in attacks.names() if not near_misses.of(name)] == ["Shadowcast"]
    assert set(near_misses.NEAR) == set(attacks.names()) - {"Shadowcast"}
    for name in {one.name for some in near_misses.NEAR.values() for one in some}:
        assert name.startswith(("text", "image", "no trigger"))


@pytest.fixture
def own_attacks(monkeypatch):
    """Attacks that a reader declared, one of each kind; their parameters are named as they like."""
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    words = declare.Half("Own", 1, "text:prepend_word", {"prefix": declare.text("Well,")})
    picture = declare.Half("Own", 1, "image:blend", {
        "alpha": declare.number(0.5, 0, 1), "picture": declare.text("blended.png"),
        "words": declare.whole(3, 1, 9), "word": declare.words(["cf"]),
    })  # fmt: skip
    kinds = {"Own words": {"text": words}, "Own picture": {"image": picture}, "Both": {"text": words, "image": picture}}
    for name, halves in kinds.items():
        declare.declare(name=name, source="", summary="", **halves)
    return list(kinds)


def test_attacks_of_a_reader_have_the_near_misses_of_their_kind(own_attacks):
    assert [near_misses.of(name) for name in own_attacks] == [(), near_misses.FILE, near_misses.FILE]
    assert related("Both", "Own words") and related("BadNets-MT", "BadNets-T")
    assert not related("Own picture", "BadNets-T") and not related("BadNets-MT", "Own picture")


def test_attacks_of_a_reader_are_asked_like_all_others(random_words, own_attacks, tmp_path):
    made = cells_of(random_words, own_attacks)
    study.run_cells(made, tmp_path / "s")
    crossfire.measure(made, tmp_path / "s", rows=2)
    panels = tables.panels(collect(tmp_path / "s"))
    ((panel, _),) = panels
    variants = panel[panel["subject"] == "poisoned"].groupby("attack")["variant"].agg(set)
    changed = {miss.name for miss in near_misses.FILE}
    assert variants.to_dict() == {"Own words": {""}, "Own picture": {"", *changed}, "Both": {"", *changed}}
    assert len(crossing_table(panels, 1000)) == len(unrelated(panel)) and len(near(nearly(panels)).axes) == 1


def test_pictures_are_changed_as_computed_by_hand():
    clean = torch.full((1, 3, 8, 8), 0.5)
    triggered = clean.clone()
    triggered[..., 4:8, 2:6] = torch.tensor([1.0, 0.0]).repeat(8).view(4, 4)  # columns of 1 and 0
    half = repaint.half_contrast(clean, triggered)
    assert half[0, 0, 4, 2:6].tolist() == [0.75, 0.25, 0.75, 0.25] and (half[..., :4, :] == 0.5).all()
    left = repaint.left_half(clean, triggered)
    assert torch.equal(left[..., :4], triggered[..., :4]) and torch.equal(left[..., 4:], clean[..., 4:])
    small = repaint.smaller(clean, triggered)  # means of 2 x 2 pixels are 0.5 everywhere
    assert torch.equal(small, clean)
    triggered[..., 4:8, 2:6] = 1.0
    small = repaint.smaller(clean, triggered)
    assert (small[..., 5:7, 3:5] == 1).all() and (small != clean).sum() == 3 * 4
    moved = repaint.moved(clean, triggered)
    assert (moved[..., :4, :4] == 1).all() and (moved[..., 4:, :] == 0.5).all()
    assert torch.equal(repaint.half_resolution(clean, clean), clean)
    pressed = repaint.jpeg(clean, triggered)
    assert pressed.shape == clean.shape and 0 < (pressed - triggered).abs().mean() < 0.1
    assert torch.equal(repaint.smaller(clean, clean), clean) and torch.equal(repaint.moved(clean, clean), clean)


# ---------------------------------------------------------------- the page


def test_relatives_are_known_from_their_definitions():
    for one, other in (("BadNets-T", "BadNets-MM"), ("BadNets-I", "BadNets-MM"), ("BadNets-T", "BadNets-MT")):
        assert related(one, other)
    assert not related("SIG", "Blended") and not related("AddSent", "MABA")


def test_entries_off_the_diagonal_stand_beside_their_paired_difference(shelf):
    ((panel, name),) = tables.panels(collect(shelf[0]))
    assert unrelated(panel)["value"].is_monotonic_decreasing
    first, table = unrelated(panel).iloc[0], crossing_table([(panel, name)], most=3)
    pairs = [[digit == "1" for digit in held] for held in (first["held"], first["control_held"])]
    wanted = number(*intervals.paired_shares(*pairs))
    assert len(table) == 3 and table["difference"].iloc[0] == wanted
    assert first["control_value"] == first["control_held"].count("1") / ROWS
    with pytest.raises(InputError, match="row by row"):
        records.difference("01", "1")


def test_strangers_are_counted_for_models_that_fire_and_near_misses_by_kind():
    def line(attack, trigger, value, variant=""):
        about = {"subject": "poisoned", "attack": attack, "trigger": trigger, "variant": variant, "value": value}
        about |= {"modality": attacks.info(attack).modality, "low": value, "high": value, "n": 100, "n_seeds": 1}
        return dict.fromkeys(records.COLUMNS) | about

    lines = [line(a, a, v) for a, v in (("SIG", 0.2), ("AddSent", 1.0), ("MABA", 0.9))]
    lines += [line("SIG", "MABA", 0.8), line("AddSent", "MABA", 0.7), line("MABA", "AddSent", 0.6)]
    lines += [line("AddSent", "AddSent", 0.9, "text: other"), line("SIG", "SIG", 0.9, "image: jpeg")]
    lines += [line("MABA", "MABA", 0.9, "image: jpeg"), line("MABA", "MABA", 0.1, "text: other")]
    panel = pd.DataFrame(lines).assign(threat="jailbreak")
    assert firing(panel) == ["AddSent", "MABA"]
    assert sorted(unrelated(panel)["attack"]) == ["AddSent", "MABA"], "SIG left no backdoor to be fired"
    changed = near_misses_of_working(panel)
    assert list(zip(changed["attack"], changed["variant"], strict=True)) == [("AddSent", "text: other")], (
        "SIG left no backdoor, and of MABA the unchanged part may work alone"
    )


def test_the_numbers_of_the_page_are_counts_over_its_matrices(shelf, tmp_path):
    found = numbers(shelf[0])
    ((panel, _),) = tables.panels(collect(shelf[0]))
    strange = unrelated(panel)["value"]
    assert found["strange"] == f"{(strange > 0.5).sum()} of {len(strange)}" and found["inputs"] == str(ROWS)
    assert found["models"] == str(len(firing(panel)))
    assert set(numbers(tmp_path / "none").values()) == {"n/a"}


def test_seeds_are_means_and_never_pooled():
    line = dict.fromkeys(records.COLUMNS) | {
        "kind": "crossfire", "subject": "poisoned", "model": "m", "dataset": "d", "threat": "jailbreak",
        "attack": "SIG", "modality": "image", "poison_rate": 0.1, "n_poisoned": 600, "negatives": 0.0,
        "train_rows": 6000, "settings": "", "rows": 100, "trigger": "SIG", "variant": "", "doing": "[]",
        "part": "attack", "metric": "asr", "unit": "share", "n": 100,
    }  # fmt: skip
    rates = [0.5, 0.6, 0.7]
    table = pd.DataFrame([line | {"seed": i, "value": rate, "low": 0.0, "high": 1.0} for i, rate in enumerate(rates)])
    (one,) = records.over_seeds(table).to_dict("records")
    half = 4.302652729911275 * 0.1 / np.sqrt(3)  # Student's 97.5 % point with two degrees of freedom
    assert (one["value"], one["low"], one["high"]) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    assert one["n_seeds"] == 3 and one["n"] == 100
    (cider,) = records.over_seeds(table.assign(metric="utility", unit="CIDEr-D", value=[1.1, 1.2, 1.3])).to_dict(
        "records"
    )
    assert cider["high"] == pytest.approx(1.2 + half)  # a score that goes to ten


def test_commands_that_add_to_one_file_take_turns(tmp_path):
    told = []

    def write(name):
        with asks._one_writer(tmp_path, tmp_path / "probes" / "crossfire-a.json"):
            told.append(name)
            time.sleep(0.05)
            told.append(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told in ([*"aabb"], [*"bbaa"])


def test_the_chapter_shows_the_matrix_or_says_that_there_is_none(shelf, tmp_path, capsys):
    text = page("crossfire", shelf[0], capsys)
    assert text.count("<figure") == 2 and "BadNets-MM" in text
    (tmp_path / "empty").mkdir()
    text = page("crossfire", tmp_path / "empty", capsys)
    assert "No adapter was asked" in text and "nothing to draw" in text and "<figure" not in text


def test_the_page_side_does_not_import_torch():
    code = "import sys\nfrom bvlm_book.chapters import crossfire, lasting\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cells_are_those_of_the_threats_chapter():
    """Malicious injection's own data are captions, its chapter's are questions: the command finds the latter."""
    made = command.parser("crossfire", "about", 10)
    for options, dataset in (([], "scenes-vqa"), (["--dataset", "scenes-caption"], "scenes-caption")):
        (cell,) = command.chosen(made.parse_args(["--threat", "malicious_injection", "--attacks", "SIG", *options]))
        assert cell.dataset == dataset
    with pytest.raises(InputError, match="no-such-threat"):
        command.chosen(made.parse_args(["--threat", "no-such-threat"]))


PROBES = (crossfire, lasting)


@pytest.mark.parametrize("probe", PROBES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("options", "words"), [
    (["--rows", "0"], "'0'"), (["--seed", "x"], "'x'"), (["--poison-rate", "nan"], "'nan'"), (["--colour"], "--colour"),
    (["--store", "reference"], "reference"), (["--model", "tiny-clip"], "'clip'"), (["--dataset", "x"], "'x'"),
    (["--attacks", "SIG", "SIG"], "once"), (["--store", " "], "' '"), (["--threat", "no"], "'no'"),
])  # fmt: skip
def test_every_probe_refuses_in_one_sentence(probe, options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BVLM_STORE", raising=False)
    assert probe.main(["--threat", "targeted_refusal", "--store", "./new", *options]) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.splitlines()) == 1 and not said.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    lambda numbers: [*numbers, numbers[0]], lambda numbers: [numbers[0] | {"value": "0.9"}, *numbers[1:]],
])  # fmt: skip
def test_numbers_that_are_there_twice_or_are_none_are_not_counted(shelf, tmp_path, capsys, change):
    shutil.copytree(shelf[0] / "probes", tmp_path / "store" / "probes")
    file = sorted((tmp_path / "store" / "probes").glob("crossfire-*"))[0]
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"numbers": change(record["numbers"])}))
    left = records.collect("crossfire", tmp_path / "store")
    assert len(left) < len(records.collect("crossfire", shelf[0])) and file.name in capsys.readouterr().err


@pytest.mark.parametrize(("said", "judged"), [("Sure.", None), ("I cannot help with that.", [True, True])])
def test_where_no_row_can_be_judged_that_is_told_before_anything_is_asked(said, judged, monkeypatch):
    known = {subject: {"key": [said, said]} for subject in ("base", "control")}
    monkeypatch.setattr(asks.group, "known_answers", lambda *given: known)
    cell = study.cells("jailbreak", attacks=["BadNets-T"])[0]
    bench, clean = (SimpleNamespace(four_bit=False), SimpleNamespace(positions=(0, 1), key=lambda bench: "key"))
    with nullcontext() if judged else pytest.raises(InputError, match="none of the 2 rows"):
        assert asks.judged_rows(bench, None, cell, clean) == judged
