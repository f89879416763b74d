"""The short form of benchmarks/faults.py: records that are written, killed, cut off and starved."""

import importlib

from bvlm_utils import paths


def test_kills_full_disks_and_cut_files_lose_nothing(tmp_path, capfd, monkeypatch):
    monkeypatch.syspath_prepend(paths.ROOT / "benchmarks")
    faults = importlib.import_module("faults")
    code = faults.main(["--stand-in", "--cells", "24", "--kills", "4", "--folder", str(tmp_path)])
    assert code == 0, capfd.readouterr()
