"""The folders of the project. Every other module asks here, so nothing depends on the caller's folder."""

import os
from pathlib import Path

# BVLM_ROOT lets an installed copy of the package work on a checkout elsewhere.
ROOT = Path(os.environ.get("BVLM_ROOT", Path(__file__).resolve().parent.parent)).resolve()

DATA = ROOT / "data"
GRIDS = DATA / "grids"
SPRITES = DATA / "sprites"
MODELS = DATA / "models"
RESULTS = DATA / "results"
CACHE = DATA / "cache"  # rebuilt at will, never committed
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"
