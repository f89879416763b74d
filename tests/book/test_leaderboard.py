"""The leaderboard: a line per cell, n/a where nothing was measured, and files that say the same."""

import json
import re

import pandas as pd
import pytest

from bvlm_book.chapters import leaderboard
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
    assert "3 cells, 2 measured and 1 skipped: 1 model, 1 threat, 2 attacks." in leaderboard.overview(board)
    assert "Settings measured with more than one seed: 1 of 1." in leaderboard.overview(board)


def test_an_empty_store_is_said_to_be_empty():
    board = leaderboard.lines(tidy.table([]))
    assert "Nothing has been measured yet" in leaderboard.overview(board)
    leaderboard.show(board)
    leaderboard.offer(board, tidy.table([]))


def shown(monkeypatch, work):
    pages = []
    monkeypatch.setattr(leaderboard, "display", lambda page: pages.append(page.data))
    work()
    return "".join(pages)


def test_the_page_escapes_what_it_shows_and_marks_the_missing(table, monkeypatch):
    page = shown(monkeypatch, lambda: leaderboard.show(leaderboard.lines(table)))
    assert "It gives &lt;nothing&gt; to aim at." in page and "<nothing>" not in page
    rows = json.loads(re.search(r'"data_json": "(.*?[^\\])"', page).group(1).encode().decode("unicode_escape"))
    at = list(leaderboard.SHOWN).index
    success = {row[at("attack")]: row[at("success")] for row in rows}
    assert success["BadNets-T"] == 0.9 and success["Dual-Key"] == "___NaN___", "n/a is no number"


def test_files_hold_what_the_page_shows(table, tmp_path, monkeypatch):
    board = leaderboard.lines(table)
    monkeypatch.setenv(leaderboard.VARIABLE, str(tmp_path / "results"))
    page = shown(monkeypatch, lambda: leaderboard.offer(board, table))
    links = re.findall(r'href="\.\./_static/results/([\w.]+)"', page)
    assert links == ["leaderboard.csv", "leaderboard.parquet", "numbers.csv", "numbers.parquet"]
    for kind, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        for name, frame in (("leaderboard", board), ("numbers", table)):
            found = read(tmp_path / "results" / f"{name}.{kind}")
            assert list(found["run_id"]) == list(frame["run_id"]) and list(found) == list(frame)
    assert (tmp_path / "results" / "leaderboard.csv").read_text().count(",,") > 5


def test_nothing_is_written_outside_a_build_unless_a_folder_is_given(table, tmp_path, monkeypatch):
    board = leaderboard.lines(table)
    monkeypatch.delenv(leaderboard.VARIABLE, raising=False)
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


def test_a_threat_and_an_attack_that_nobody_declared_here_have_a_line(table):
    entry = contributed("shouting", attack="Postcard")
    (line,) = leaderboard.contributed_lines([entry], leaderboard.lines(table)).to_dict("records")
    assert (line["attack"], line["success"]) == ("Postcard", "0.50 [0.10, 0.20]")


def test_no_entries_make_no_lines(table):
    assert leaderboard.contributed_lines([], leaderboard.lines(table)).empty
