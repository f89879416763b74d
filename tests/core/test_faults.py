"""The short form of benchmarks/faults.py: records that are written, killed, cut off and starved."""

import importlib.util

from bvlm_utils import paths


def test_kills_full_disks_and_cut_files_lose_nothing(tmp_path, capfd):
    spec = importlib.util.spec_from_file_location("faults", paths.ROOT / "benchmarks" / "faults.py")
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    code = faults.main(["--stand-in", "--cells", "24", "--kills", "4", "--folder", str(tmp_path)])
    assert code == 0, capfd.readouterr()
