"""The committed results are packed, small, and say in one table what the records say."""

import os
import subprocess

import pandas as pd
import pytest

from bvlm_utils import paths
from bvlm_utils.store import packed, records, table

FILES = [packed.INDEX, packed.RECORDS, packed.TABLE, *packed.FRAMES.values(), *dict.fromkeys(packed.FILES.values())]


def test_the_committed_table_is_what_the_records_give():
    kept = pd.read_parquet(paths.RESULTS / "reference" / packed.TABLE)
    found = table.table(one for one in records.records("reference") if one["config"]["attack"] != "none")
    assert len(kept) > 10_000
    pd.testing.assert_frame_equal(kept, found, check_exact=True)


def test_the_committed_reference_is_small_and_has_no_adapters():
    root = paths.RESULTS / "reference"
    files = [file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".")]
    assert sorted(file.name for file in files) == sorted(FILES)
    # 8 MiB were allowed for the first edition's 893 cells; later cells may take as much each, defended ones included.
    cells = len(packed.run_ids(root))
    assert 1e6 < sum(file.stat().st_size for file in files) < 8 * 2**20 * max(cells / 893, 1)


def test_what_git_holds_is_below_80_mib():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of the repository")
    files = [paths.ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    assert sum(file.lstat().st_size for file in files if file.is_symlink() or file.exists()) < 80 * 2**20
