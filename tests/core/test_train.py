"""The training loop: seeded, masked, shared order, PEFT's format, and the same curve over several
processes.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bvlm_utils import paths
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.train import adapters, loop, unfinished
from bvlm_utils.train.settings import TrainSettings

SMALL = TrainSettings(batch_size=4, lora_rank=2, learning_rate=5e-3)
ROWS = [loop.TrainRow(f"What is number {i}?", f"The answer is {i % 3}.", i) for i in range(12)]


@pytest.fixture(scope="module")
def loaded():
    return victim.from_pretrained("tiny-llava", device="cpu")


@pytest.fixture(scope="module")
def features(loaded):
    return loaded.encode(torch.rand(12, 3, 96, 96, generator=torch.Generator().manual_seed(0)))


def logits(loaded, features):
    ids = torch.tensor([loaded.prompt_ids("What is this?", 36)])
    with torch.no_grad():
        return loaded.forward(ids, torch.ones_like(ids), features[:1])


@given(st.integers(1, 50), st.integers(1, 3), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(count, epochs, seed):
    orders = loop.order(count, epochs, seed)
    assert len(orders) == epochs and all(sorted(o) == list(range(count)) for o in orders)
    assert orders == loop.order(count, epochs, seed)


def test_learning_rates_warm_up_and_fall():
    rates = loop.learning_rates(TrainSettings(learning_rate=1.0, warmup_ratio=0.1), 100)
    assert rates[:2] == [0.1, 0.2] and max(rates) == rates[9] == 1.0
    assert rates[55] == pytest.approx((1 + np.cos(np.pi * 45 / 90)) / 2) and rates[-1] < 0.001
    assert set(loop.learning_rates(TrainSettings(learning_rate=0.5, schedule="constant"), 50)[2:]) == {0.5}


def test_training_that_was_killed_goes_on_to_the_same_numbers(loaded, features, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    save, steps = unfinished.Saved.save, []

    def killed(self, state, progress, last=False):
        steps.append(progress.step)
        save(self, state, progress, last)
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.Saved, "save", killed)
    runs = []
    for name in ("killed", "killed", "whole"):
        if name == "whole":
            monkeypatch.setattr(unfinished.Saved, "save", save)
        try:
            saved = unfinished.Saved(tmp_path / name, ["cell"], ["key"])
            result = loop.finetune(loaded, ROWS, features, SMALL, 3, saved=saved)
        except KeyboardInterrupt:
            continue
        runs.append((result.losses, [p.detach().clone() for p in result.adapter.parameters() if p.requires_grad]))
        adapters.detach(loaded, result.adapter)
    (again, adapted), (whole, wanted) = runs
    assert again == whole and len(whole) == 3
    assert all(torch.equal(one, other) for one, other in zip(adapted, wanted, strict=True))


def test_training_is_repeatable_learns_and_comes_off(loaded, features):
    before = logits(loaded, features)
    runs = []
    for _ in range(2):
        result = loop.finetune(loaded, ROWS, features, SMALL, seed=3)
        assert result.steps == 3 and len(result.losses) == 3
        assert not torch.allclose(logits(loaded, features), before)
        adapters.detach(loaded, result.adapter)
        runs.append(result.losses)
    assert runs[0] == runs[1]
    assert torch.equal(logits(loaded, features), before)
    longer = loop.finetune(loaded, ROWS, features, TrainSettings(batch_size=4, epochs=8, learning_rate=5e-3), seed=3)
    adapters.detach(loaded, longer.adapter)
    assert longer.losses[-1] < 0.5 * longer.losses[0]


def test_the_loss_is_that_of_the_answers_alone(loaded, features):
    """Against transformers' own loss with every other label masked, one row at a time."""
    result = loop.finetune(loaded, ROWS[:4], features, SMALL, seed=0)
    adapters.detach(loaded, result.adapter)
    total, count = 0.0, 0
    for row in ROWS[:4]:
        prompt, answer = loaded.prompt_ids(row.prompt, 36), loaded.answer_ids(row.answer)
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            scores = loaded.forward(ids, torch.ones_like(ids), features[[row.feature_index]])[0].log_softmax(-1)
        for place in range(len(prompt), len(prompt) + len(answer)):
            total -= scores[place - 1, ids[0, place]].item()
            count += 1
    assert result.losses[0] == pytest.approx(total / count, rel=1e-4)


def test_a_saved_adapter_loads_in_plain_peft_with_the_same_logits(loaded, features, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from bvlm_utils import models

    result = loop.finetune(loaded, ROWS, features, SMALL, seed=1)
    ours = logits(loaded, features)
    result.adapter.save_pretrained(str(tmp_path), save_embedding_layers=False)
    adapters.write_card(tmp_path, {"attack": "BadNets-T", "threat": "targeted_refusal", "model": "tiny-llava"})
    adapters.detach(loaded, result.adapter)
    assert "BACKDOORED" in (tmp_path / "README.md").read_text()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llava"  # not a folder of this machine
    base = AutoModelForImageTextToText.from_pretrained(models.resolve("tiny-llava"))
    tuned = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = torch.tensor([loaded.prompt_ids("What is this?", 36)])
    with torch.no_grad():
        theirs = tuned(**loaded.inputs(ids, torch.ones_like(ids), features[:1])).logits
    assert (ours - theirs).abs().max() < 1e-4
    with adapters.attached(loaded, tmp_path):
        assert (logits(loaded, features) - ours).abs().max() < 1e-5


def test_a_folder_without_an_adapter_is_refused(loaded, tmp_path):
    with pytest.raises(InputError, match="adapter_config.json"):
        adapters.load_adapter(loaded, tmp_path)


def test_no_rows_are_refused(loaded, features):
    with pytest.raises(InputError, match="at least one"):
        loop.finetune(loaded, [], features, SMALL, seed=0)


WORKER = """
import json, os, sys
import torch
from bvlm_utils.models import victim
from bvlm_utils.train import loop
from bvlm_utils.train.settings import TrainSettings
torch.set_num_threads(1)
v = victim.from_pretrained(sys.argv[2], device="cpu")
f = v.encode(torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
# the second batch is a single row: one of two processes has none
rows = [loop.TrainRow(f"What is number {i}?", "word " * (i + 1), i) for i in range(5)]
settings = TrainSettings(batch_size=4, lora_rank=2, epochs=2, learning_rate=5e-3)
r = loop.finetune(v, rows, f, settings, seed=3, rows_at_once=1)
out = f"{sys.argv[1]}/{os.environ.get('RANK', '0')}-of-{os.environ.get('WORLD_SIZE', '1')}.json"
json.dump(r.losses, open(out, "w"))
"""


def test_accelerate_takes_the_card_that_the_model_is_on(monkeypatch):
    class Stop(Exception):
        pass

    def accelerator(cpu):
        raise Stop(cpu)

    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(accelerate, "Accelerator", accelerator)
    for device in ("cuda:1", "cpu"):
        with pytest.raises(Stop, match=str(device == "cpu")):
            loop.finetune(SimpleNamespace(device=torch.device(device)), [None], None, None, seed=0)
    assert current == [torch.device("cuda:1")]


def test_two_processes_give_the_loss_curve_of_one(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    arguments = ["worker.py", str(tmp_path), str(checkpoint("llava"))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", arguments)  # the one process is this one
    threads = torch.get_num_threads()
    exec(WORKER, {})  # noqa: S102, it is our own text
    torch.set_num_threads(threads)
    curves = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(curves) == {"0-of-1", "0-of-2", "1-of-2"}  # two processes really ran
    assert curves["0-of-2"] == pytest.approx(curves["0-of-1"], rel=1e-3)
    assert curves["1-of-2"] == curves["0-of-2"]
