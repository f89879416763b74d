"""Backdoors in vision-language models: poison, train, score, store, run a grid."""

from bvlm_utils.doors import door

SCORES = ("score_adapter", "score_answers", "write_questions")
NAMES = {"run.study": ("cells", "run_cells"), "run.foreign": SCORES, "store.records": ("collect",)}
__getattr__ = door(__name__, NAMES)
__version__ = "0.1.0"
