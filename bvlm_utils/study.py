"""The door of notebooks to the study: `cells` and `run_cells`, looked up in `run.study`."""

from bvlm_utils.doors import door

__getattr__ = door(__name__, {"run.study": ("cells", "run_cells")})
