"""Cost: seconds and memory as the records have them, comparisons as the benchmarks kept them."""

import argparse
import json
import sys

import pandas as pd
import pytest

from bvlm_book import page
from bvlm_book.chapters import cost, cost_on_gpu
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
    assert list(table["tune"]) == [90, 50] and table["gpu_mib"].isna().all()
    assert "The 2 measured cells took 0.0 hours of one process, 80 seconds in the median (60 to 100)." in (
        cost.overview(table)
    )


def test_a_kind_is_shown_with_median_and_range():
    [line] = cost.by_kind(cost.lines(RECORDS)).to_dict("records")
    assert (line["cells"], line["seconds per cell"], line["at once"]) == (2, "80 (60 to 100)", "2 (1 to 4)")
    assert (line["to train"], line["memory"], line["machine"]) == ("70", "2.0 GiB", "cpu, 1 thread")


def test_what_all_kinds_share_is_said_once():
    kinds = cost.by_kind(cost.lines(RECORDS))
    alone, nothing = cost.common(kinds)
    assert alone.equals(kinds) and nothing == ""
    other = pd.concat([kinds, kinds.assign(model="tiny-qwen2.5-vl", **{"training rows": 60})])
    shorter, said = cost.common(other)
    assert said == "The same for all: machine: cpu, 1 thread." and [*kinds.columns.drop("machine")] == [*shorter]


def test_an_older_record_without_timings_is_na_and_no_zero():
    [line] = cost.by_kind(cost.lines([record("old", 9.0, seconds={}, training={})])).to_dict("records")
    assert line["seconds per cell"] == "n/a" and line["to train"] == "n/a"


def test_an_empty_store_has_no_timings():
    table = cost.lines([])
    assert "No timings yet" in cost.overview(table) and cost.by_kind(table).empty
    assert "No timings" in cost.words(table)["alt"] and cost.figure(table) is not None


def test_the_figure_says_its_range():
    table = cost.lines(RECORDS)
    assert "from 60 to 100" in cost.words(table)["alt"] and "1 to 4 at once" in cost.words(table)["caption"]
    assert "Alone a cell took 100 seconds in the median, in groups 60." in cost.words(table)["caption"]
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


def test_what_a_benchmark_varied_has_a_column(kept):
    [found] = cost.benchmarks("grid", kept)
    assert "rank" not in cost.grid_table(found)
    lines = [line | {"rank": rank, "text": 16} for rank in (4, 64) for line in found["lines"]]
    table = cost.grid_table(found | {"lines": lines})
    assert list(table["rank"]) == [4, 4, 64, 64] and not any("prompt" in name for name in table)


def test_what_was_never_measured_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(page, "say", said.append)
    cost.show_benchmarks("grid", tmp_path / "none")
    assert "**Not measured yet**" in said[0] and "--out benchmarks/results/grid.json" in said[0]


def test_the_poisoning_ratios_are_of_the_kept_rates():
    lines = [
        {"attack": "SIG", "side": 336, "batched": 100.0, "loop": 50.0, "files": 10.0},
        {"attack": "Shadowcast", "side": 96, "batched": 8.0, "loop": 2.0, "equal": 1.0},
    ]
    table = cost.poisoning_table({"lines": lines}).set_index("attack")
    assert list(table["times a loop"]) == ["2.0", "4.0"]
    assert list(table["times the way through files"]) == ["10.0", "n/a"]


def test_a_gpu_is_shown_beside_the_plain_way(capsys):
    (kept, *_) = cost.benchmarks("gpu")
    table = cost_on_gpu.groups(kept["lines"])
    plain = table[table["way"].str.startswith("plain")].set_index("precision")["cells a minute"]
    for line in table[table["times plain"] != "1.0"].to_dict("records"):  # the ratio is that of the two rates
        assert float(line["times plain"]) == pytest.approx(line["cells a minute"] / plain[line["precision"]], rel=0.05)
    large = cost_on_gpu.large(kept["lines"]).set_index("what")["tokens a second"]
    ratio = large["4 adapters, 16 rows each"] / large["plain, 16 rows"]
    assert f"{ratio:.1f} times" in cost_on_gpu.large_caption(kept["lines"])
    assert (cost_on_gpu.rates(kept["lines"])["what"].str.len() > 0).all()
    cost_on_gpu.show([])
