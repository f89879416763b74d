"""Cost: seconds and memory as the records have them, comparisons as the benchmarks kept them."""

import argparse
import json
import sys

import pytest

from bvlm_book import page
from bvlm_book.chapters import cost
from bvlm_utils import paths


def record(name, total, together=1, status="done", attack="BadNets-T", **more):
    return {
        "run_id": name, "status": status, "device": "cpu", "threads": 1, "tuned_together": together,
        "config": {"model": "tiny-llava", "dataset": "scenes-vqa", "train_rows": 6000, "attack": attack},
        "seconds": {"tune": total - 10, "ask": 7.0, "base and control": 3.0, "total": total},
        "training": {"seconds": total - 20, "tokens": 1000}, "peak_memory_of_process": {"host_mib": 2048},
    } | more  # fmt: skip


RECORDS = [
    record("a", 100.0),
    record("b", 60.0, together=4),
    record("control", 50.0, attack="none"),
    {"run_id": "c", "status": "skipped", "config": {"attack": "Shadowcast"}},
]


def test_lines_are_the_measured_cells():
    table = cost.lines(RECORDS)
    assert list(table["run_id"]) == ["a", "b"] and list(table["total"]) == [100, 60]
    assert table["gpu_mib"].isna().all()
    said = cost.numbers(table)
    assert (said["experiments"], said["hours"], said["seconds"]) == ("2", "0.0", "80")
    assert (said["alone"], said["grouped"]) == ("100", "60")


def test_a_kind_is_shown_with_median_and_range():
    [line] = cost.by_kind(cost.lines(RECORDS)).to_dict("records")
    assert (line["experiments"], line["seconds each"], line["at once"]) == (2, "80 (60 to 100)", "2 (1 to 4)")
    assert line["memory"] == "2.0 GiB" and line["model and machine"].endswith(", cpu, 1 thread")


def test_an_older_record_without_timings_is_na_and_no_zero():
    [line] = cost.by_kind(cost.lines([record("old", 9.0, seconds={}, training={})])).to_dict("records")
    assert line["seconds each"] == "n/a"


def test_an_empty_store_has_no_timings():
    table = cost.lines([])
    assert cost.numbers(table)["seconds"] == "n/a" and cost.by_kind(table).empty


def test_the_figure_says_its_range():
    table = cost.lines(RECORDS)
    assert cost.numbers(table)["range"] == "60 to 100"
    assert len(cost.figure(table).axes) == 1


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """What `benchmarks/grid.py --out` would write."""
    monkeypatch.syspath_prepend(str(paths.ROOT / "benchmarks"))
    import keep

    both = [{"way": "plain", "cells": 4, "train_s_per_cell": 6.0, "decode_s_per_cell": 1.0, "gemm_share": 0.2}]
    both += [both[0] | {"way": "grouped", "train_s_per_cell": 2.123456789, "times_plain": 2.5, "same_answers": 1.0}]
    given = argparse.Namespace(
        model="tiny-llava", dataset="scenes-vqa", shape=None, rows=64, tests=16, batch=32, rank=8, repeat=4,
        out=tmp_path / "grid.json", dtype=object(),
    )  # fmt: skip
    keep.Kept("grid", "cpu", 1).write(given.out, given, [line | {"peak_gib": 1.0} for line in both])
    sys.modules.pop("keep")
    return tmp_path


def test_a_kept_benchmark_is_read_with_its_machine_and_load(kept):
    [found] = cost.benchmarks("grid", kept)
    table = cost.grid_table(found).set_index("way")
    assert list(table["times plain"]) == ["1.0", "2.5"] and list(table["same answers"]) == ["", "1.00"]
    assert found["lines"][1]["train_s_per_cell"] == 2.1235
    assert "1 thread, torch" in cost.conditions(found) and "processes that wanted a core: " in cost.conditions(found)
    assert "dtype" not in found["arguments"] and str(kept) not in json.dumps(found), "no path of the machine"
    assert cost.benchmarks("poisoning", kept) == []


def test_what_was_never_measured_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(page, "say", said.append)
    cost.show_grid(tmp_path / "none")
    assert "**Not measured yet**" in said[0]
    assert cost.numbers(cost.lines([]), tmp_path / "none")["gain"] == "n/a"
    assert set(cost.on_gpu([]).values()) == {"n/a"} and cost.groups_on_gpu([]).empty


def test_the_ratios_are_of_the_kept_rates(kept):
    lines = [
        {"attack": "SIG", "side": 336, "batched": 100.0, "loop": 50.0, "files": 10.0},
        {"attack": "Shadowcast", "side": 96, "batched": 8.0, "loop": 2.0},
    ]
    found = {"benchmark": "poisoning", "written": "2026", "lines": lines}
    (kept / "poisoning.json").write_text(json.dumps(found))
    said = cost.numbers(cost.lines([]), kept)
    assert (said["gain"], said["loop"], said["files"]) == ("2.5", "2.0 to 4.0", "10")


@pytest.mark.parametrize("text", [
    "{", "[1]", '{"benchmark": ["grid"]}', '{"benchmark": "grid", "lines": []}',
    '{"benchmark": "grid", "written": "2026", "lines": [{"cells": 1}]}',
    '{"benchmark": "poisoning", "written": "2026", "lines": [{"batched": 1, "loop": 0}]}',
    '{"benchmark": "grid", "written": "2026", "machine": {}, "load_before": 1.0, "lines": []}',
])  # fmt: skip
def test_a_damaged_benchmark_stops_no_other(kept, text, monkeypatch):
    (kept / "damaged.json").write_text(text)
    shown = []
    monkeypatch.setattr(page, "show_table", lambda frame, caption: shown.append(frame))
    assert cost.numbers(cost.lines([]), kept)["gain"] == "2.5"
    cost.show_grid(kept)
    assert len(shown[0]) == 2


def test_a_step_that_was_left_out_on_a_gpu_has_no_numbers():
    kept = cost.benchmarks("gpu")[-1]
    steps = [kept | {"lines": [line for line in kept["lines"] if line["step"] == "check"]}]
    whole, said = cost.on_gpu([kept], 56), cost.on_gpu(steps, 56)
    assert said["checks"] == whole["checks"] and "n/a" not in whole.values()
    known = ("card", "date", "checks", "within")
    assert {value for name, value in said.items() if name not in known} == {"n/a"}


def test_a_comparison_beyond_its_bound_is_counted_and_a_rate_gives_minutes():
    lines = [{"step": "check", "part": f"{number}", "distance": 0.01 * number, "bound": 0.02} for number in range(4)]
    lines += [{"step": "check", "part": "failed", "bound": 0.02}]  # without a distance
    lines += [{"step": "passes", "part": "a", "done": 80, "cells_per_minute": 20.0},
              {"step": "cells", "part": "b", "done": 4, "cells_per_minute": 5.0}]  # fmt: skip
    said = cost.on_gpu([{"written": "2026-11-26T01:00:00Z", "lines": lines}], experiments=100)
    assert (said["within"], said["checks"], said["date"]) == ("3", "5", "2026-11-26")
    assert (said["rate"], said["minutes"]) == ("20", "5")


def test_a_gpu_is_shown_beside_the_plain_way():
    found = cost.benchmarks("gpu")
    table, said = cost.groups_on_gpu(found), cost.on_gpu(found)
    plain = table.loc[table["way"] == "plain", "a minute"].iloc[0]
    for line in table[table["way"] != "plain"].to_dict("records"):  # the ratio is that of the two rates
        assert float(line["times plain"]) == pytest.approx(line["a minute"] / plain, rel=0.05)
    large = {line["part"]: line for line in found[-1]["lines"] if line["step"] == "large"}
    rates = [large[f"LLaVA-1.5: {name}"]["tokens_per_s"] for name in ("4 adapters, 16 rows each", "plain, 16 rows")]
    assert said["large"] == f"{rates[0] / rates[1]:.1f}"
