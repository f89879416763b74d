"""The leaderboard: means by dose and test, a line per experiment, and files that say the same."""

import json
import re

import pandas as pd
import pytest

from bvlm_book import page as book_page
from bvlm_book.chapters import leaderboard
from bvlm_utils.errors import InputError
from bvlm_utils.store import table as tidy


def record(attack, threat="targeted_refusal", rate=0.1, seed=0, metrics=(), status="done", reason="", **config):
    config = {
        "model": "tiny-llava", "dataset": "scenes-vqa", "threat": threat, "attack": attack,
        "poison_rate": rate, "seed": seed, "negatives": 0.0, "train_rows": 6000, "test_rows": 200,
        "attack_params": {}, "threat_params": {},
    } | config  # fmt: skip
    return {
        "run_id": f"{threat}-{attack}-{rate:g}-s{seed}", "config": config, "status": status, "reason": reason,
        "modality": "text", "n_poisoned": None if status == "skipped" else int(6000 * rate),
        "metrics": list(metrics), "identity": config, "provenance": {"written": "2026-01-01T00:00:00Z"},
    }  # fmt: skip


def number(metric, condition, value, subject="poisoned", low=0.1, high=0.2, n=50, unit="share"):
    return {
        "subject": subject, "condition": condition, "metric": metric, "value": value, "k": None, "n": n,
        "low": low, "high": high, "unit": unit,
    }  # fmt: skip


REFUSED = record(
    "BadNets-T",
    metrics=[
        number("asr", "text", 0.9, low=0.8, high=0.95),
        number("asr", "text", 0.0, subject="control"),
        number("asr", "clean", 0.02),
        number("asr_difference", "text", 0.88),
        number("utility", "clean", 0.75, unit="VQA accuracy"),
        number("utility_difference", "clean", -0.01),
    ],
)
INJECTED = record(
    "BadNets-I", "malicious_injection", attack_params={"patch_size": 80},
    metrics=[
        number("asr", "image", 1.0), number("asr_right", "image", 0.6), number("asr_payload", "image", 0.7),
        number("asr_difference", "image", 1.0),
    ],
)  # fmt: skip
POISONED = record("Shadowcast", "concept_substitution", metrics=[number("asr", "clean", 0.3)])
SKIPPED = record("Dual-Key", status="skipped", reason="It gives <nothing> to aim at.")


@pytest.fixture
def table():
    return tidy.table([REFUSED, INJECTED, POISONED, SKIPPED])


@pytest.fixture
def board(table):
    return leaderboard.lines(table).set_index("attack")


def test_a_line_holds_the_numbers_of_the_poisoned_model_under_the_attacks_own_condition(board):
    line = board.loc["BadNets-T"]
    assert (line["success"], line["success_low"], line["success_high"], line["success_n"]) == (
        0.9,
        0.8,
        0.95,
        50,
    )
    assert (line["false_activation"], line["success_difference"]) == (0.02, 0.88)
    assert (line["utility"], line["utility_unit"], line["utility_difference"]) == (
        0.75,
        "VQA accuracy",
        -0.01,
    )
    assert (line["condition"], line["measure"], line["n_poisoned"]) == ("text", "asr", 600)


def test_injection_is_read_from_the_payload_and_its_difference_from_the_strict_test(board):
    line = board.loc["BadNets-I"]
    assert (line["success"], line["measure"], line["settings"]) == (0.7, "asr_payload", "patch_size=80")
    assert line["success_difference"] == 1.0


def test_what_was_not_measured_is_missing_and_skipped_cells_say_why(board):
    assert board.loc["Shadowcast", "success"] == 0.3 and pd.isna(board.loc["Shadowcast", "false_activation"])
    line = board.loc["Dual-Key"]
    assert line["status"] == "skipped" and line["reason"] == "It gives <nothing> to aim at."
    assert line[["success", "false_activation", "utility", "n_poisoned"]].isna().all()


def test_seeds_stay_apart_and_are_counted():
    board = leaderboard.lines(tidy.table([REFUSED, record("BadNets-T", seed=1), SKIPPED]))
    assert list(board["seed"]) == [0, 1, 0]
    assert "3 experiments of 1 model, 1 threat, 2 attacks: 2 measured and 1 skipped." in leaderboard.overview(board)


# ---------------------------------------------------------------- ranked


def run(value, seed=0, passes=1, **config):
    """A run whose payload, published and strict success differ; the clean-tuned model's is 0.02."""
    metrics = [
        number(metric, "text", value - less)
        for metric, less in {"asr_payload": 0.0, "asr_published": 0.1, "asr": 0.2}.items()
    ]
    metrics += [number("asr_payload", "text", 0.02, subject="control"), number("asr_payload", "clean", 0.01)]
    return record("BadNets-T", seed=seed, metrics=metrics, train={"epochs": passes}, **config)


def test_ranks_are_means_over_seeds_by_dose_passes_and_test():
    cells = [run(0.8), run(1.0, seed=1), run(0.6, passes=3), run(0.3, rate=0.01)]
    found = leaderboard.ranked(tidy.table(cells)).set_index(["poison_rate", "passes", "test"])
    line = found.loc[(0.1, 1, "payload")]
    assert (line["value"], line["n_seeds"], line["control"], line["false_activation"]) == (0.9, 2, 0.02, 0.01)
    assert line["low"] < 0.9 < line["high"]
    assert found.loc[(0.1, 1, "published"), "value"] == pytest.approx(0.8)
    assert found.loc[(0.1, 1, "strict"), "value"] == pytest.approx(0.7)
    assert found.loc[(0.1, 3, "payload"), ["value", "low", "high", "n_seeds"]].tolist() == [0.6, 0.1, 0.2, 1]
    assert found.loc[(0.01, 1, "payload"), "value"] == 0.3 and pd.isna(found.loc[(0.01, 1, "strict"), "control"])


def test_unusual_settings_are_not_ranked():
    cells = [run(0.8), run(0.1, attack_params={"words": ["cf"]}), run(0.1, picture_last=True)]
    found = leaderboard.ranked(tidy.table(cells))
    assert list(found.loc[found["test"] == "payload", "value"]) == [0.8]


def test_a_defence_stands_beside_its_placebo_and_its_price():
    key = {"model": "tiny-llava", "named": "shrink", "moment": "repair"}
    after = pd.DataFrame([
        key | {"run_id": run_id, "attack": attack, "placebo": placebo, "value": value}
        for run_id, attack, placebo, value in [("a", "SIG", 0, 0.0), ("b", "MABA", 0, 0.5), ("a", "SIG", 1, 1.0)]
    ])  # fmt: skip
    (line,) = leaderboard.defended(after, after[after["attack"] == "SIG"]).to_dict("records")
    assert (line["after"], line["after_placebo"], line["experiments"]) == (0.25, 1.0, 2)
    assert (line["skill"], line["skill_placebo"], line["SIG"], line["MABA"]) == (0.0, 1.0, 0.0, 0.5)


def test_no_defences_make_no_lines():
    nothing = pd.DataFrame(columns=["model", "named", "moment", "run_id", "attack", "placebo", "value"])
    assert leaderboard.defended(nothing, nothing).empty


# ---------------------------------------------------------------- the page and the files


def shown(monkeypatch, work):
    pages = []
    monkeypatch.setattr(leaderboard, "display", lambda page: pages.append(page.data))
    work()
    return "".join(pages)


def test_an_empty_store_is_said_to_be_empty(monkeypatch):
    nothing = tidy.table([])
    board = leaderboard.lines(nothing)
    assert "Nothing has been measured yet" in leaderboard.overview(board)
    empty = pd.DataFrame()
    assert not shown(monkeypatch, lambda: leaderboard.show(board, leaderboard.ranked(nothing), empty, empty))
    assert not shown(monkeypatch, lambda: leaderboard.offer(board, nothing))


def test_the_page_escapes_what_it_shows_and_marks_the_missing(table, monkeypatch):
    board, empty = leaderboard.lines(table), pd.DataFrame()
    page = shown(monkeypatch, lambda: leaderboard.show(board, leaderboard.ranked(table), empty, empty))
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert "<" not in text
    raw = json.loads(text)["raw"]
    rows = {row["attack"]: row for row in (dict(zip(raw["columns"], line, strict=True)) for line in raw["data"])}
    assert rows["Dual-Key"]["reason"] == "It gives <nothing> to aim at." and rows["Dual-Key"]["success"] is None
    assert rows["BadNets-T"]["success"] == 0.9 and rows["BadNets-I"]["settings"] == "patch_size=80"


def test_files_hold_what_the_page_shows(table, tmp_path, monkeypatch):
    board, store = leaderboard.lines(table), tmp_path / "packed"
    store.mkdir()
    for name in ("responses", "records"):
        (store / f"{name}.parquet").write_bytes(name.encode())
    monkeypatch.setenv(book_page.DOWNLOADS, str(tmp_path / "results"))
    page = shown(monkeypatch, lambda: leaderboard.offer(board, table, place=store))
    links = re.findall(r'href="\.\./_static/results/([\w.]+)"', page)
    of_tables = ["leaderboard.csv", "leaderboard.parquet", "numbers.csv.gz", "numbers.parquet"]
    assert links == [*of_tables, "responses.parquet", "records.parquet"]
    assert (tmp_path / "results" / "responses.parquet").read_bytes() == b"responses"
    for kind, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        for name, frame in (("leaderboard", board), ("numbers", table)):
            (file,) = (tmp_path / "results").glob(f"{name}.{kind}*")
            found = read(file)
            assert list(found["run_id"]) == list(frame["run_id"]) and list(found) == list(frame)
    assert (tmp_path / "results" / "leaderboard.csv").read_text().count(",,") > 5


def test_nothing_is_written_outside_a_build_unless_a_folder_is_given(table, tmp_path, monkeypatch):
    board = leaderboard.lines(table)
    monkeypatch.delenv(book_page.DOWNLOADS, raising=False)
    monkeypatch.chdir(tmp_path)
    leaderboard.offer(board, table)
    assert not list(tmp_path.iterdir())
    assert "mine/leaderboard.csv" in shown(monkeypatch, lambda: leaderboard.offer(board, table, "mine"))
    assert (tmp_path / "mine" / "numbers.parquet").is_file()


def contributed(threat="targeted_refusal", n_poisoned=600, **about):
    given = {"name": "<Mine>", "by": "me", "source": "", "note": "", "kind": "attack", "model": "tiny-llava",
             "dataset": "scenes-vqa", "threat": threat, "attack": "BadNets-T", "n_poisoned": n_poisoned, "seed": 0,
             "settings": {}}  # fmt: skip
    numbers = [number("asr_payload", "text", 0.75, low=0.7, high=0.8), number("asr_payload", "clean", 0.05),
               number("asr", "text", 0.5), number("asr_payload", "text", 0.0, subject="base")]  # fmt: skip
    return {"about": given | about, "numbers": numbers}


def test_a_contributed_line_stands_beside_ours_of_the_same_dose(table):
    board = leaderboard.lines(table)
    first, second = leaderboard.contributed_lines([contributed(), contributed(n_poisoned=60)], board).to_dict("records")
    assert (first["success"], first["false activation"]) == ("0.75 [0.70, 0.80]", "0.05 [0.10, 0.20]")
    assert (first["strict"], first["published"], first["ours, success"]) == ("0.50 [0.10, 0.20]", "n/a", "0.90")
    assert second["ours, success"] == "n/a"
    given = [{"attack_params": {"word": "other"}}, {"test_rows": 50}]
    lines = leaderboard.contributed_lines([contributed(settings=one) for one in given], board)
    assert list(lines["ours, success"]) == ["n/a", "0.90"], "another trigger is another experiment"


def test_a_threat_and_an_attack_that_nobody_declared_here_have_a_line(table):
    entry = contributed("shouting", attack="Postcard")
    (line,) = leaderboard.contributed_lines([entry], leaderboard.lines(table)).to_dict("records")
    assert (line["attack"], line["success"]) == ("Postcard", "0.50 [0.10, 0.20]")


def test_a_line_whose_dose_nobody_knows_may_be_the_only_one(table):
    (line,) = leaderboard.contributed_lines([contributed(n_poisoned=None)], leaderboard.lines(table)).to_dict("records")
    assert (line["poisoned rows"], line["ours, success"]) == ("n/a", "n/a")


def test_a_place_for_files_that_is_none_is_one_sentence(table, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(InputError, match="is a file"):
            leaderboard.offer(leaderboard.lines(table), table, str(place))


def test_no_entries_make_no_lines(table):
    assert leaderboard.contributed_lines([], leaderboard.lines(table)).empty
