"""What was expected before a run, and whether it came true."""

from collections.abc import Sequence

import pandas as pd

TRUE, FALSE, LACKING = "yes", "no", "not all run yet"


def told(lines: Sequence[tuple], columns: Sequence[str]) -> pd.DataFrame:
    """Expectations to read. lines: a value per column, and whether it came true; None while it waits for runs."""
    found = pd.DataFrame(lines, columns=[*columns, "came true"])
    came = [LACKING if true is None else TRUE if true else FALSE for true in found["came true"]]
    return found.assign(**{"came true": came})


def counts(expected: pd.DataFrame) -> dict[str, str]:
    """Of the lines of `told`: how many there are, came true, did not, and wait for runs."""
    came = expected["came true"].value_counts()
    names = {"true": TRUE, "false": FALSE, "open": LACKING}
    return {"expected": str(len(expected))} | {key: str(came.get(name, 0)) for key, name in names.items()}
