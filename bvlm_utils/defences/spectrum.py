"""The weight spectrum: is an adapter's update shaped like those of backdoored adapters, or like those of others?

Nothing is run: the file is enough (arXiv 2602.15195; PEFTGuard, S&P 2025, learns from the weights themselves). Five
numbers of every layer's update, from its r x r core; their means over layers of one kind (q_proj, ...); a logistic
regression over a population of adapters whose truth is known.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bvlm_utils.defences import weights
from bvlm_utils.defences.rows import Rows
from bvlm_utils.defences.truncate import decompose
from bvlm_utils.errors import InputError
from bvlm_utils.models.victim import Victim
from bvlm_utils.paths import named

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("leading", "norm", "first_share", "entropy", "kurtosis")
LABEL = "backdoored"  # the column of a population that holds the truth, 0 or 1


def spectrum(
    victim: Victim, adapter: Any, clean: Rows | None, settings: dict[str, Any], draws: np.random.Generator
) -> float:
    """The log-odds that the adapter is backdoored, by a regression over the table `population` (see `population`)."""
    return float(_fitted(read(settings["population"], getattr(victim, "name", "")))([features(adapter)])[0])


def norm(
    victim: Victim,
    adapter: Any,
    clean: Rows | None,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: float,
) -> float:
    """The Frobenius norm of the whole update: it knows how much was learnt, and nothing of what."""
    return sum(weights.norm(update) ** 2 for update in weights.updates(adapter).values()) ** 0.5


def features(adapter: Any) -> dict[str, float]:
    """ "kind.number" -> the mean over the layers of that kind."""
    columns: dict[str, list[float]] = {}
    for name, update in weights.updates(adapter).items():
        kind = name.rpartition(".")[2]
        for number, value in zip(NUMBERS, numbers(*update), strict=True):
            columns.setdefault(f"{kind}.{number}", []).append(value)
    return {name: float(np.mean(values)) for name, values in columns.items()}


def numbers(b: torch.Tensor, a: torch.Tensor) -> tuple[float, ...]:
    """Of an update B A: leading singular value, Frobenius norm, the first component's share of the energy, the entropy
    of the shares (nats), the kurtosis of the entries (3 for a Gaussian). All zero for an update of zeros.
    """
    s = decompose(b, a)[1]
    energy = s.square().sum()
    if energy == 0:
        return (0.0,) * len(NUMBERS)
    share = s.square() / energy
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    return s[0].item(), energy.sqrt().item(), share[0].item(), entropy.item(), kurtosis(b, a)


def kurtosis(b: torch.Tensor, a: torch.Tensor) -> float:
    """Fourth central moment over the squared variance of the entries of B A, without the product.

    The sum of the k-th powers of all <b_o, a_i> is an inner product of the sums of the k-fold products of b_o and a_i.
    """
    rows, columns = b, a.T
    count = len(rows) * len(columns)
    squares = [(side[:, :, None] * side[:, None, :]).flatten(1) for side in (rows, columns)]  # (n, r * r)
    first = rows.sum(0) @ columns.sum(0) / count
    second = (squares[0].sum(0) @ squares[1].sum(0)) / count
    third = ((squares[0].T @ rows) * (squares[1].T @ columns)).sum() / count
    fourth = ((squares[0].T @ squares[0]) * (squares[1].T @ squares[1])).sum() / count
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return (central / variance**2).item() if variance > 0 else 0.0


# ---------------------------------------------------------------- the population


def population(adapters: Sequence[Any], backdoored: Sequence[bool]) -> "pd.DataFrame":
    """The table that a regression is fitted to: a line per adapter, its features and the truth. Keep it as CSV."""
    import pandas as pd

    lines = [{LABEL: int(truth)} | features(adapter) for adapter, truth in zip(adapters, backdoored, strict=True)]
    return pd.DataFrame(lines)


def read(file: str, model: str = "") -> "pd.DataFrame":
    """The table that `population` made, from its file; InputError for a file that is none.

    Of a file of `defences.population`, which also says what each adapter is, the truth and the features; InputError if
    none of its adapters is of the base `model`.
    """
    import pandas as pd

    if not file or not named(file, "population").is_file():
        raise InputError(f"The population {file!r} is no file; give a CSV file that spectrum.population made.")
    try:
        table = pd.read_csv(named(file, "population"))
    except ValueError as error:
        raise InputError(f"The population {file} cannot be read: {error}") from error
    if "run_id" in table:
        bases = sorted({Path(str(base)).name for base in table.get("model", ())})
        if model and bases and Path(model).name not in bases:
            raise InputError(
                f"The population {file} is of adapters of {', '.join(bases)}, and {model!r} is wanted; give one of "
                "adapters of that base."
            )
        table = table[[name for name in table if name == LABEL or "." in name]]
    if LABEL not in table or set(table[LABEL]) != {0, 1}:
        raise InputError(f"The population {file} needs a column {LABEL!r} with 0 in some lines and 1 in others.")
    kinds = dict.fromkeys(name.rpartition(".")[0] for name in table if name != LABEL)
    expected = [f"{kind}.{number}" for kind in kinds for number in NUMBERS if kind] or ["q_proj.norm"]
    mismatched = sorted({*table, LABEL} ^ {*expected, LABEL})
    if mismatched:
        raise InputError(
            f"The population {file} needs {', '.join(NUMBERS)} of each kind of layer, such as q_proj.norm, and "
            f"{'has' if mismatched[0] in table else 'lacks'} {mismatched[0]!r}."
        )
    for name in table:
        if table[name].dtype.kind not in "iuf" or not np.isfinite(table[name]).all():
            raise InputError(f"The population {file} has a value in column {name!r} that is no finite number.")
    return table


def _fitted(table: "pd.DataFrame") -> Any:
    """A function from features of adapters to log-odds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    columns = [name for name in table if name != LABEL]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(table[columns].to_numpy(), table[LABEL])

    def log_odds(lines: Sequence[dict[str, float]]) -> np.ndarray:
        for line in lines:
            if set(line) != set(columns):
                mismatched = sorted(set(line) ^ set(columns))[0]
                raise InputError(
                    f"The population and the adapter differ in {mismatched!r}; they must be on layers of one kind."
                )
        return model.decision_function(np.array([[line[name] for name in columns] for line in lines]))

    return log_odds
