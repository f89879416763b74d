"""What is left of a backdoor: further tuning goes on from the stored adapter, merging changes nothing,
rounding is what its formula says.
"""

import json
import shutil

import pandas as pd
import pytest
import stored
import torch
from stored import page, passes

from bvlm_book import tables
from bvlm_book.chapters import lasting as lasting_page
from bvlm_book.probes import ask, lasting, records
from bvlm_book.words import span
from bvlm_utils import data, paths, store, study
from bvlm_utils.data import samples
from bvlm_utils.models import victim
from bvlm_utils.run import tune_and_ask, workbench
from bvlm_utils.train import adapters, grouped, loop
from bvlm_utils.train.settings import TrainSettings

random_words = stored.random_words  # a fixture of several test files

ROWS, STEPS = 5, (1, 3)


@pytest.fixture(scope="module")
def shelf(random_words, tmp_path_factory):  # noqa: F811
    """A store with two attacks' adapters and their control, all asked; what each was answered; its cells."""
    place = tmp_path_factory.mktemp("store") / "s"
    made = study.cells(
        "targeted_refusal",
        random_words,
        attacks=["BadNets-T", "SIG"],
        train_rows=32,
        test_rows=ROWS,
        batch_size=8,
    )
    study.run_cells(made, place)
    said, keep = {}, ask.keep

    def spy(bench, place, sheet, probe, texts, judged):
        said[sheet.run_id, probe.trigger, probe.variant, probe.question.part] = texts
        keep(bench, place, sheet, probe, texts, judged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "keep", spy)
        lasting.measure(made, place, rows=ROWS, steps=STEPS)
    return place, said, made


def panel_of(place):
    ((panel, name),) = tables.panels(lasting_page.collect(place))
    return panel, name


def test_zero_further_steps_give_the_stored_success_rate(shelf):
    place, _, made = shelf
    panel, _ = panel_of(place)
    shown, record = lasting_page.success(panel), store.collect(place)
    for cell in made:
        for subject in ("poisoned", "control"):
            here = shown[(shown["steps"] == 0) & (shown["attack"] == cell.attack) & (shown["subject"] == subject)]
            there = record[(record["run_id"] == cell.run_id) & (record["subject"] == subject)]
            there = there[(there["metric"] == "asr") & there["condition"].isin(["text", "image"])]
            columns = ["value", "low", "high", "n"]
            assert here[columns].to_numpy() == pytest.approx(there[columns].to_numpy())
    utility = panel[(panel["metric"] == "utility") & (panel["variant"] == "") & (panel["subject"] == "poisoned")]
    stored = record[(record["metric"] == "utility") & (record["subject"] == "poisoned")]
    assert sorted(utility["value"]) == pytest.approx(sorted(stored["value"]))


def test_every_state_of_every_model_is_asked_beside_the_control(shelf):
    place, said, made = shelf
    table = records.headline(records.collect("lasting", place))
    states = {"", *map(str, STEPS), *lasting.MERGED}
    for cell in made:
        mine = table[(table["run_id"] == cell.run_id) & (table["trigger"] == cell.attack)]
        control = table[(table["run_id"] == cell.control.run_id) & (table["trigger"] == cell.attack)]
        assert set(mine["variant"]) == set(control["variant"]) == states and (mine["n"] == ROWS).all()
    assert set(table["trigger"]) == {"", "BadNets-T", "SIG"}


# ---------------------------------------------------------------- merging


def test_merging_gives_the_adapters_answers(shelf):
    _, said, made = shelf
    keys = {key[:2] + key[3:] for key in said}
    assert len(keys) == 3 + 3 + 4
    for run_id, trigger, part in keys:
        assert said[run_id, trigger, "merged", part] == said[run_id, trigger, "", part]


def test_rounding_is_what_the_formula_says():
    four = torch.tensor([[7.0, -3.5, 1.75, -0.4], [0.875, 0.1, -0.2, 0.0625]])  # s = 1 and 1 / 8
    wanted = torch.tensor([[7.0, -4.0, 2.0, 0.0], [0.875, 0.125, -0.25, 0.0]])
    assert torch.equal(lasting.rounded(four, "int4"), wanted)
    half = lasting.rounded(torch.tensor([[1.0, 1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9]]), "bfloat16")
    assert half.tolist() == [[1.0, 1 + 2**-7, 1.0, 1 + 2**-6, 1.0]]  # steps of 2^-7, ties to even
    assert lasting.rounded(four, "merged") is four


# ---------------------------------------------------------------- further tuning


def test_further_tuning_goes_on_from_the_adapter_as_a_plain_peft_run_does(shelf, random_words):  # noqa: F811
    place, _, made = shelf
    loaded = victim.from_pretrained(random_words, device="cpu")
    folder = store.adapter(made[0], place)
    start = tune_and_ask.saved(folder)
    rows = [loop.TrainRow(f"What is {i}?", "A red car.", i % 2) for i in range(12)]
    features = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    settings = TrainSettings(batch_size=4)
    jobs = [grouped.GroupJob(rows[:n], features, settings, 0, start.state) for n in (4, 12)]
    short, long = grouped.finetune_group(loaded, jobs)
    assert (short.steps, long.steps) == (1, 3)
    for one, count in ((short, 4), (long, 12)):
        state = _plainly(loaded, folder, rows[:count], features, settings)
        distance = max((one.state[name] - state[name]).abs().max().item() for name in state)
        moved = max((start.state[name] - state[name]).abs().max().item() for name in state)
        assert distance < 1e-4 < 1e-3 < moved


def _plainly(loaded, folder, rows, features, settings):
    """PEFT's own adapter, torch's own AdamW."""
    from peft import get_peft_model_state_dict

    with adapters.attached(loaded, folder) as adapter:
        for name, value in adapter.named_parameters():
            value.requires_grad_("lora_" in name)
        trained = [value for value in adapter.parameters() if value.requires_grad]
        optimiser = torch.optim.AdamW(trained, weight_decay=settings.weight_decay)
        steps = loop.batches(len(rows), settings, 0)
        tokens = loop.token_ids(loaded, rows, features.shape[1])
        for batch, rate in zip(steps, loop.learning_rates(settings, len(steps)), strict=True):
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            shown = features[[rows[i].feature_index for i in batch]]
            loss = loop._summed_loss(loaded, adapter, [tokens[i] for i in batch], shown)
            (loss / sum(len(tokens[i][1]) for i in batch)).backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimiser.step()
        return {name: value.detach().clone() for name, value in get_peft_model_state_dict(adapter).items()}


def test_further_rows_are_clean_ones_that_nobody_was_tuned_on():
    names = [row["row_id"] for row in data.load("scenes-vqa", "train").remove_columns("image").to_list()]
    fresh = data.further("scenes-vqa", 6000, 5)
    assert data.beyond("scenes-vqa", 6000) is None and len(fresh) == 5 and not set(fresh["row_id"]) & set(names)
    assert fresh.features == data.load("scenes-vqa", "train").features
    again = data.further("scenes-vqa", 32, 2)
    assert again["row_id"] == names[32:34] and again["prompt"] == data.load("scenes-vqa", "train")["prompt"][32:34]


def test_where_data_end_the_same_rows_are_used_and_it_is_said(shelf, tmp_path, monkeypatch, capsys):
    place, _, made = shelf
    shutil.copytree(place, tmp_path / "s", ignore=shutil.ignore_patterns("probes"))
    monkeypatch.setattr(samples, "beyond", lambda name, start: 3)
    lasting.measure(made[:1], tmp_path / "s", rows=2, steps=[1], merged=[])
    said = capsys.readouterr().err
    assert "only 3 training rows beyond the 32" in said and "8 are needed: the same rows are used again" in said
    doing = {place: {json.loads(text)[2] for text in panel_of(place)[0]["doing"] if "steps" in text}
             for place in (tmp_path / "s", place)}  # fmt: skip
    assert list(doing.values()) == [{records.SAME_ROWS}, {records.FRESH}]


def test_another_learning_rate_is_another_curve(shelf, tmp_path):
    place, _, made = shelf
    shutil.copytree(place, tmp_path / "s")
    lasting.measure(made[:1], tmp_path / "s", rows=ROWS, steps=[STEPS[-1]], merged=[], learning_rate=0.0005)
    panel, _ = panel_of(tmp_path / "s")
    assert lasting_page.rates(panel) == [0.002, 0.0005]
    (usual, _), (gentle, said) = lasting_page.tunings(panel)
    assert set(usual["steps"]) == {0, *STEPS} and set(gentle["steps"]) == {0, STEPS[-1]} and "0.0005" in said
    assert set(gentle.loc[gentle["steps"] == STEPS[-1], "attack"]) == {"BadNets-T"}
    before = lasting_page.tunings(panel_of(place)[0])[0][0]
    pd.testing.assert_frame_equal(usual.reset_index(drop=True), before.reset_index(drop=True), check_like=True)
    told, before = (lasting_page.numbers(folder) for folder in (tmp_path / "s", place))
    assert {name for name in told if told[name] != before[name]} <= {"slow", "slow_rate"}, "others: of the usual rate"


# ---------------------------------------------------------------- resuming


def test_what_is_there_is_neither_tuned_nor_asked_again(shelf, tmp_path, monkeypatch):
    place, said, made = shelf
    with monkeypatch.context() as patch:
        for name in ("ask", "ask_saved"):
            patch.setattr(
                tune_and_ask.Grouped, name, lambda *_, **__: pytest.fail("an answered question was asked again")
            )
        patch.setattr(grouped, "finetune_group", lambda *_, **__: pytest.fail("tuned again"))
        lasting.measure(made, place, rows=ROWS, steps=STEPS)
    shutil.copytree(place, tmp_path / "s")
    (lost,) = (tmp_path / "s" / "probes").glob(f"lasting-{made[0].run_id}-*")
    record = json.loads(lost.read_text())
    kept = [one for one in record["numbers"] if one["variant"] not in ("3", "int8")]
    lost.write_text(json.dumps(record | {"numbers": kept}))
    tuned, tune = [], grouped.finetune_group
    monkeypatch.setattr(grouped, "finetune_group", lambda *a, **k: tuned.append(len(a[1])) or tune(*a, **k))
    lasting.measure(made, tmp_path / "s", rows=ROWS, steps=STEPS)
    assert tuned == [1], "one model, one number of steps"
    pd.testing.assert_frame_equal(
        records.collect("lasting", tmp_path / "s").sort_values(
            ["run_id", "trigger", "variant", "part", "metric"], ignore_index=True
        ),
        records.collect("lasting", place).sort_values(
            ["run_id", "trigger", "variant", "part", "metric"], ignore_index=True
        ),
    )


@pytest.mark.parametrize("wrong, words", [
    (["--steps", "0"], "'0'"),
    (["--attacks", "BadNet"], "There is no attack 'BadNet'"),
    (["--poison-rate", "0.2"], "holds no adapter"),
])  # fmt: skip
def test_the_command_line_refuses_in_one_sentence(wrong, words, shelf, random_words, capsys):  # noqa: F811
    options = [
        "--model",
        random_words,
        "--threat",
        "targeted_refusal",
        "--store",
        str(shelf[0]),
        "--attacks",
        "SIG",
    ]
    assert lasting.main([*options, *wrong]) == 2
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- the page


def test_figures_and_tables_hold_what_was_measured(shelf):
    panel, _ = panel_of(shelf[0])
    shown, merged = lasting_page.after_steps(panel), lasting_page.after_merging(panel)
    assert sorted(set(shown["steps"])) == [0, *STEPS] and list(dict.fromkeys(merged["variant"])) == [
        "",
        *lasting.MERGED,
    ]
    assert set(panel["trained"]) == {4.0}, "32 rows in batches of 8"
    found = lasting_page.numbers(shelf[0])
    worked = lasting_page.survivors(panel)
    assert found["worked"] == (str(len(worked)) if len(worked) else "n/a")
    own = panel[(panel["metric"] == "utility") & (panel["subject"] == records.POISONED) & (panel["variant"] == "int4")]
    assert found["utility_int4"] == (span(own["value"], 2) if len(worked) else "n/a")
    assert lasting_page.steps(shown).axes[0].get_xlabel() == "further steps"
    assert "nothing" not in lasting_page.merging(merged).axes[0].texts[0].get_text()
    lines = [line for axis in lasting_page.steps(shown).axes for line in axis.lines]
    own = shown[(shown["subject"] == "poisoned") & (shown["attack"] == "SIG")]
    (drawn,) = (line for line in lines if line.get_label() == "SIG")
    assert drawn.get_ydata().tolist() == own["value"].tolist()


def test_the_chapter_shows_states_or_says_that_there_are_none(shelf, tmp_path, capsys):
    text = page("lasting", shelf[0], capsys)
    assert text.count("<figure") == 2
    (tmp_path / "empty").mkdir()
    text = page("lasting", tmp_path / "empty", capsys)
    assert "No adapter of this store" in text and "<figure" not in text


def test_no_cell_is_taken_for_a_magic_of_ipython():
    """A cell of one line that begins with `store` is `%store` to IPython, and fails in a kernel."""
    for file in paths.NOTEBOOKS.glob("*.ipynb"):
        for cell in json.loads(file.read_text())["cells"]:
            lines = "".join(cell["source"]).strip().splitlines()
            assert cell["cell_type"] != "code" or len(lines) > 1 or not lines[0].startswith("store"), file.name


def test_verdicts_of_random_words_do_vary():
    assert passes(None, "ab") and not passes(None, "a") and workbench.Bench("", "", 1).max_new_tokens == 6


def test_only_a_backdoor_that_worked_can_survive(shelf):
    panel, _ = panel_of(shelf[0])
    values = {("BadNets-T", "0"): 0.9, ("BadNets-T", "3"): 0.2, ("SIG", "0"): 0.1, ("SIG", "3"): 0.8}
    found = panel[(panel["subject"] == records.POISONED) & (panel["part"] == "attack")].copy()
    steps = found["variant"].where(found["variant"] != "", "0")
    found["value"] = [values.get((a, s), v) for a, s, v in zip(found["trigger"], steps, found["value"], strict=True)]
    worked = lasting_page.survivors(found)
    assert list(worked["attack"]) == ["BadNets-T"] and lasting_page.kept(found)["steps"] == "0 of 1"
    found.loc[(found["trigger"] == "BadNets-T") & (steps == "3"), "value"] = 0.7
    assert lasting_page.kept(found)["steps"] == "1 of 1"
    assert list(lasting_page.survivors(found, little=True)["steps"].unique()) == [3], "4 steps were its own training"
    assert lasting_page.survivors(found.assign(trained=1.0), little=True).empty


def ends(threat, *, own, slow=None, attack="SIG", steps=lasting_page.LONG):
    """Lines of a backdoor that always worked at first and does so in shares `own` and `slow` after `steps`."""
    told = {name: "" for name in tables.PANEL} | {"rows": 200, "negatives": 0.0, "train_rows": 6000}
    told |= {"threat": threat, "model": "m", "attack": attack, "trigger": attack, "poison_rate": 0.1, "part": "attack"}
    told |= {"subject": "poisoned", "metric": "asr", "own": 0.002, "trained": 188.0}
    lines = [(0, float("nan"), 1.0), (steps, 0.002, own), (steps, lasting_page.SLOW, slow)]
    return [told | {"steps": at, "rate": rate, "value": value} for at, rate, value in lines if value is not None]


@pytest.mark.parametrize(("lines", "told", "true"), [
    ([], "0 of 0", [None, None]),
    (ends("targeted_refusal", own=0.9, slow=1.0), "1 of 1", [None, None]),
    (ends("targeted_refusal", own=0.9) + ends("concept_substitution", own=0.9), "2 of 2", [True, None]),
    (ends("targeted_refusal", own=0.9, steps=100) + ends("concept_substitution", own=0.9), "1 of 1", [None, None]),
    (ends("targeted_refusal", own=0.9, slow=1) + ends("concept_substitution", own=0.4, slow=0.9), "1 of 2",
     [False, True]),
    (ends("targeted_refusal", own=0.9, slow=0.5) + ends("concept_substitution", own=0.8, slow=0.9), "2 of 2",
     [True, False]),
])  # fmt: skip
def test_what_was_expected_of_long_tuning_is_told(lines, told, true, monkeypatch):
    columns = list(ends("t", own=1)[0])
    monkeypatch.setattr(lasting_page, "collect", lambda place: pd.DataFrame(lines, columns=columns))
    found = lasting_page.expected()
    assert found[0][2] == told and [line[-1] for line in found] == true
