"""The settings of one training run."""

from dataclasses import dataclass

from bvlm_utils.checks import check_number
from bvlm_utils.errors import InputError

SCHEDULES = ("cosine", "constant")
LIMITS = {  # from, to, a whole number?
    "epochs": (1, 10**4, True), "batch_size": (1, 10**5, True), "lora_rank": (1, 10**4, True),
    "learning_rate": (0, 1, False), "lora_alpha": (0, 1e6, False), "warmup_ratio": (0, 1, False),
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
        if self.learning_rate == 0:
            raise InputError("learning_rate is 0; it must be above 0.")
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is {self.schedule!r}; it must be one of: {', '.join(SCHEDULES)}.")
