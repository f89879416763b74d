"""Do features come back as they were put in, from memory and from the file that takes over beyond the budget?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bvlm_utils import paths
from bvlm_utils.run import workbench
from bvlm_utils.run.feature_cache import FeatureCache


def cache(budget: int, device: str = "cpu", device_budget: int = 0) -> FeatureCache:
    made = FeatureCache(device)
    made.budgets = {torch.device(device): device_budget} | {torch.device("cpu"): budget}
    return made


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    budget=st.sampled_from([0, 3 * 2 * 4 * 4, 10**9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_come_back_as_they_were_added(tmp_path_factory, parts, budget, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CACHE", tmp_path_factory.mktemp("cache"))
        kept, rows = cache(budget), torch.randn(sum(parts), 2, 4).to(dtype)
        start = 0
        for count in parts:
            kept.add(range(start, start + count), rows[start : start + count])
            start += count
        wanted = list(reversed(range(start)))
        assert torch.equal(kept.table[kept.rows(wanted)], rows[wanted])
        assert kept.table.dtype == dtype and len(kept.table) == start
        if budget == 0:
            assert kept.on_disk
        if budget == 10**9:
            assert not kept.on_disk


def test_nothing_is_left_on_disk_and_an_old_view_stays_valid(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    kept, rows = cache(0), torch.arange(40.0).view(10, 2, 2)
    kept.add("ab", rows[:2])
    old = kept.table
    kept.add(range(8), rows[2:])  # more than there was room for
    assert torch.equal(old, rows[:2]) and torch.equal(kept.table, rows)
    assert kept.on_disk and not list(tmp_path.iterdir())


def test_what_was_not_added_is_an_error(tmp_path):
    kept = FeatureCache()
    with pytest.raises(LookupError, match="no features"):
        kept.table  # noqa: B018
    kept.add(["a"], torch.zeros(1, 2, 2))
    with pytest.raises(KeyError):
        kept.rows(["b"])


def test_every_picture_is_encoded_once(monkeypatch):
    shared, encoded = workbench.Bench("tiny-llava", "scenes-vqa", 16), []
    real = shared.victim.encode
    monkeypatch.setattr(shared.victim, "encode", lambda pictures: encoded.append(len(pictures)) or real(pictures))
    rows = shared.feature_rows("train", [3, 1, 3]), shared.feature_rows("train", [1, 2])
    first, again = (shared.feature_cache.table[one] for one in rows)
    assert encoded == [2, 1] and torch.equal(first[1], again[0]) and torch.equal(first[0], first[2])


def test_features_stay_on_the_device_until_its_share_is_full():
    each = 2 * 4 * 4  # bytes of a row
    kept = cache(10**9, "meta", 4 * each)  # "meta" stands for a GPU: another device than the host
    kept.add(range(3), torch.zeros(3, 2, 4, device="meta"))
    assert kept.table.device.type == "meta"
    assert kept._home(5 * each).type == "cpu"
    kept = cache(10**9, "meta", 0)
    kept.add(range(2), torch.ones(2, 2, 4))
    assert kept.table.device.type == "cpu" and torch.equal(kept.table, torch.ones(2, 2, 4))
