"""Backdoors in vision-language models: poison, train, score, store, run a grid."""

from bvlm_utils.doors import door

__getattr__ = door(
    __name__,
    {
        "run.study": ("cells", "run_cells"),
        "run.foreign": ("score_adapter", "score_answers", "write_questions"),
        "store.records": ("collect",),
    },
)
__version__ = "0.1.0"
