"""The making of the tiny models: a training that was killed goes on to the same numbers."""

from dataclasses import replace

import pytest
import torch

from bvlm_utils.pretraining import recipe
from bvlm_utils.train import unfinished

RECIPE = recipe.Recipe(seed=3)


def trained(folder, steps=7, dies_at=None, made=RECIPE):
    """A little regression whose rows are drawn; the weights at its end, and the steps that were made."""
    torch.manual_seed(0)
    model, data = torch.nn.Linear(4, 2), torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    generator, begun = torch.Generator().manual_seed(made.seed), []
    training = recipe.Training([model], 0.1, steps, generator, folder, made)
    for step in training.rest("test"):
        if step == dies_at:
            raise KeyboardInterrupt
        begun.append(step)
        rows = data[torch.randint(50, (8,), generator=generator)]
        training.learn((model(rows) - rows[:, :2] ** 2).square().mean(), step)
    return [p.detach().clone() for p in model.parameters()], begun


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(at, tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    whole, _ = trained(tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        trained(folder, dies_at=at)
    (state,) = unfinished.states_in(folder).values()
    assert state.progress.step == at and state.progress.seconds > 0
    again, begun = trained(folder)
    assert begun == list(range(at, 7)) and list(folder.iterdir()) == []
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_a_state_of_another_recipe_or_one_that_is_cut_off_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, dies_at=3)
    assert trained(tmp_path, made=replace(RECIPE, tower_lr=0.5))[1] == list(range(7))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert trained(tmp_path)[1] == list(range(7))


def test_the_learning_rate_warms_up_and_falls(tmp_path):
    training = recipe.Training([torch.nn.Linear(1, 1)], 1.0, 1000, torch.Generator(), tmp_path / "none", RECIPE)
    shares = [training.share(step) for step in range(1000)]
    assert shares[0] == 0.01 and shares[99] == 1.0 and max(shares) == 1.0 and shares[-1] < 0.02
