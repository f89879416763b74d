"""Does a GPU give what the CPU gives? The checks of `benchmarks/gpu_steps/check.py`, each with its stated bound.

Skipped where there is no card. `benchmarks/gpu.sh` runs the same checks on a bare machine.
"""

import pytest
import torch
from gpu_steps import check, sync

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("name", check.CHECKS)
def test_device_agrees_with_cpu(name):
    found = check.CHECKS[name]("cuda:0", check.ROWS)
    assert found["distance"] <= found["bound"], found


def test_no_training_step_waits_for_the_card_and_decoding_looks_every_eighth_token():
    found = sync.count("cuda:0", check.ROWS)
    assert found["per_step"] < 0.5, found["lines_of_steps"]
    assert found["per_token"] < 0.5
