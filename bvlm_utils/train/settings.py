"""The settings of one training run."""

from dataclasses import dataclass

from bvlm_utils.checks import check_number, is_number
from bvlm_utils.errors import InputError
from bvlm_utils.models import names

SCHEDULES = ("cosine", "constant")
SHARERS = "BVLM_SHARERS"  # variable: how many processes share a machine's memory, as workers of a grid do; not set: 1
LIMITS = {  # from, to, a whole number?
    "epochs": (1, 10**4, True), "batch_size": (1, 10**5, True), "lora_rank": (1, 10**4, True),
    "learning_rate": (0, 1, False), "lora_alpha": (0, 1e4, False), "warmup_ratio": (0, 1, False),
    "weight_decay": (0, 1, False), "max_grad_norm": (0, 1e6, False),
}  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """How an adapter is trained; the defaults are those of the study."""

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 2e-3
    lora_rank: int = 8
    lora_alpha: float = 16
    warmup_ratio: float = 0.05  # share of the steps
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: str = "cosine"  # or "constant", both after a linear warm-up

    def __post_init__(self) -> None:
        for name, (low, high, whole) in LIMITS.items():
            check_number(getattr(self, name), name, low, high, whole)
        for name in ("learning_rate", "lora_alpha"):  # with 0, nothing would be learnt
            if getattr(self, name) == 0:
                raise InputError(f"{name} is 0; it must be above 0.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is {self.schedule!r}; it must be one of: {', '.join(SCHEDULES)}.")

    def check_rank(self, model: str) -> None:
        """InputError for a rank that no layer of the language model can have: each has its width on one side."""
        width = names.text_config(model).get("hidden_size")
        if is_number(width, 1, 10**6, whole=True) and self.lora_rank > width:
            raise InputError(f"lora_rank is {self.lora_rank}; it must be at most {width}, the width of {model!r}.")
