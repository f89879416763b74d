"""A linear probe: is an input's state like those of inputs that set backdoors off in other adapters of the same base?

The probe is fitted to states of adapters whose triggers are known, so it says how much of a backdoor's trace is common
to attacks. Each adapter's states are less the mean of its clean rows', which takes out what differs without a trigger.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bvlm_utils.defences import answering
from bvlm_utils.defences.hidden_distance import states
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.paths import named
from bvlm_utils.store.cell import MAX_NEW_TOKENS

KEYS = ("states", "triggered", "depth")  # of the file: (n, d) float32, (n,) 0 or 1, one number


def probe(
    victim: Victim, adapter: Any, inputs: Rows, clean: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> Answered:
    """The model's own answers, and the log-odds that each input has a trigger; `population` is a file of `write`."""
    answers = answering.answers(victim, adapter, inputs, MAX_NEW_TOKENS)
    odds = _log_odds(victim, adapter, inputs, clean, *_read(settings["population"]))
    return Answered(answers, odds, np.zeros(len(inputs)))


def shuffled(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """The same with the truth of the population dealt out at random."""
    train_states, truth, depth = _read(settings["population"])
    odds = _log_odds(victim, adapter, inputs, clean, train_states, draws.permutation(truth), depth)
    return Answered(like.answers, odds, like.changed)


def examples(victim: Victim, adapter: Any, triggered: Rows, clean: Rows, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """What one adapter adds to a population: centred states (n, d) of triggered and clean rows, and which are which."""
    with_trigger, without = (states(victim, adapter, rows, depth) for rows in (triggered, clean))
    centred = np.concatenate([with_trigger, without]) - without.mean(0)
    return centred, np.repeat([1, 0], [len(with_trigger), len(without)])


def write(file: Path | str, parts: Sequence[tuple[np.ndarray, np.ndarray]], depth: float) -> None:
    """Keep the `examples` of several adapters, all at one depth, in a safetensors file."""
    from safetensors.numpy import save_file

    all_states, truth = (np.concatenate(column) for column in zip(*parts, strict=True))
    save_file(
        {"states": all_states.astype(np.float32), "triggered": truth.astype(np.uint8), "depth": np.array([depth])},
        str(file),
    )


def _read(file: str) -> tuple[np.ndarray, np.ndarray, float]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file or not named(file, "population").is_file():
        raise InputError(f"The population {file!r} is no file; give a safetensors file that probe.write made.")
    try:
        tensors = load_file(named(file, "population"))
        train_states, truth, depth = (tensors[key] for key in KEYS)
    except (SafetensorError, KeyError) as error:
        raise InputError(f"The population {file} cannot be read ({error}); probe.write makes such files.") from error
    return train_states.astype(np.float64), truth, float(depth[0])


def _log_odds(
    victim: Victim, adapter: Any, inputs: Rows, clean: Rows, train_states: np.ndarray, truth: np.ndarray, depth: float
) -> np.ndarray:
    input_states = states(victim, adapter, inputs, depth) - states(victim, adapter, clean, depth).mean(0)
    if input_states.shape[1] != train_states.shape[1]:
        raise InputError(
            f"The population has states of {train_states.shape[1]} numbers and {victim.name} of "
            f"{input_states.shape[1]}; give one made with this base."
        )
    return fitted(train_states, truth).decision_function(input_states)


def fitted(train_states: np.ndarray, truth: np.ndarray) -> Any:
    """A logistic regression on standardised states (n, d); truth: (n,), 1 where there was a trigger."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_states, truth)
