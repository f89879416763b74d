"""On what a number was made: versions, machine and git revision, kept in every record."""

import importlib.metadata
import platform
import subprocess
import time
from typing import Any

from bvlm_utils import paths

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pandas")


def now() -> dict[str, Any]:
    """What a result may depend on and is not part of its identity: versions, machine, git revision (absent if none)."""
    provenance = {
        "python": platform.python_version(), "system": platform.system(), "machine": platform.machine(),
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip
    if revision := _git("rev-parse", "HEAD"):
        # results are left out: a study changes them while it runs
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results")
        provenance |= {"git_revision": revision, "git_changed": bool(changes)}
    return provenance


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(paths.ROOT), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
