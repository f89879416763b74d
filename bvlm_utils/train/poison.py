"""The plan of poisoning: which training rows are poisoned, and how; and which rows teach a skill. Free of torch.

Rows are replaced in place, so poisoned and clean-tuned runs see as many rows in the same order. Pictures are not
touched.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import attacks
from bvlm_utils.attacks import Attack
from bvlm_utils.checks import brief
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError, TooFewRows
from bvlm_utils.skills import Skill
from bvlm_utils.threats.threat import Sample, Threat

FULL_TRIGGER = {"text": "text", "image": "image", "bimodal": "both"}  # modality -> condition of a poisoned row
ABOUT = ("n_rows", "n_eligible", "trigger_seed")  # what a manifest says of all rows
STREAM = int.from_bytes(b"poison", "big")  # keeps the choice apart from other uses of the same seed
SKILL_STREAM = int.from_bytes(b"skill", "big")
DECOYS = ("target answers", "trigger only", "label noise")


@dataclass(frozen=True)
class PoisonedRow:
    """One replaced training row.

    role: "poisoned" (whole trigger, poisoned answer) or, for bimodal attacks, "text_only" and "image_only" (half the
    trigger, right answer); "decoy" (`with_decoys`) and "skill" (`with_skill`) are no poison. condition: the trigger
    halves present, "text", "image" or "both", or "clean". prompt: with its trigger. answer: poisoned, of the skill, or
    kept.
    """

    position: int
    row_id: str
    role: str
    condition: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Manifest:
    """All replaced rows of a training set, enough to rebuild it: its images are `attack.apply_image(images,
    trigger_seed, row_ids)`. n_eligible: rows that could have been poisoned.
    """

    rows: tuple[PoisonedRow, ...]
    n_rows: int
    n_eligible: int
    trigger_seed: int

    @property
    def n_poisoned(self) -> int:
        """Rows with the whole trigger and the poisoned answer."""
        return self.count("poisoned")

    def count(self, *roles: str) -> int:
        """Rows with these roles."""
        return sum(row.role in roles for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One line per replaced row, ready for Parquet; what concerns all rows stands in `.attrs`."""
        columns = [field.name for field in fields(PoisonedRow)]
        frame = pd.DataFrame({name: [getattr(row, name) for row in self.rows] for name in columns})
        frame = frame.astype({name: "int64" if name == "position" else "str" for name in columns})
        frame.attrs = {name: getattr(self, name) for name in ABOUT}
        return frame

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> "Manifest":
        """The manifest that `to_frame` wrote, also by way of Parquet. InputError if it is another table."""
        columns = [field.name for field in fields(PoisonedRow)]
        missing = [name for name in columns if name not in frame]
        missing += [name for name in ABOUT if name not in frame.attrs]
        if missing:
            raise InputError(f"The table is no poisoning manifest: it lacks {', '.join(missing)}.")
        lines = frame[columns].to_dict("records")
        return cls(tuple(PoisonedRow(**line) for line in lines), **{k: int(v) for k, v in frame.attrs.items()})


def count(n: int, rate: float) -> int:
    """How many of n rows are poisoned at a rate: rounded down, as the authors' code does."""
    if not 0 <= rate <= 1:
        raise InputError(f"The poison rate is {rate}; it must be from 0 to 1.")
    return math.floor(rate * n + 1e-9)  # 0.29 * 100 is a little less than 29


def ranking(n: int, seed: int, stream: int = STREAM) -> np.ndarray:
    """The rank of each position 0 ... n - 1, (n,) int64; a lower rank is poisoned first."""
    if seed < 0:
        raise InputError(f"The seed is {seed}; it must be 0 or more.")
    # Sorting raw draws, not `permutation`: the bit stream of PCG64 is fixed for ever, numpy's shuffles are not.
    draws = np.random.PCG64(np.random.SeedSequence([seed, stream])).random_raw(n)
    return np.argsort(np.argsort(draws, kind="stable"), kind="stable")  # where each position stands in the order


def select(n: int, eligible: Collection[int], rate: float, seed: int) -> list[int]:
    """The `count(n, rate)` eligible positions of lowest rank, sorted. TooFewRows if there are not so many."""
    needed = count(n, rate)
    candidates = sorted(set(eligible))
    if candidates and not 0 <= candidates[0] <= candidates[-1] < n:
        raise InputError(f"Eligible positions go from {candidates[0]} to {candidates[-1]}; the set has {n} rows.")
    if needed > len(candidates):
        raise TooFewRows(
            f"A poison rate of {rate:g} of {n} rows needs {needed} eligible rows, and there are only {len(candidates)}."
        )
    return sorted(_by_rank(candidates, n, seed)[:needed])


def _by_rank(positions: Iterable[int], n: int, seed: int, stream: int = STREAM) -> list[int]:
    ranks = ranking(n, seed, stream)
    return sorted(positions, key=lambda position: ranks[position])


def plan(
    dataset: Any,
    threat: Threat,
    attack: Attack,
    rate: float,
    seed: int,
    negatives: float = 0.0,
    trigger_seed: int = 0,
    half: str = "",
) -> Manifest:
    """Decide which rows of a training set are replaced, and by what.

    dataset: samples, as `data.load` gives them or in a list. seed: of the choice of rows. trigger_seed: of the trigger
    instances. negatives: for bimodal attacks, rows with half a trigger and the right answer per poisoned row (an odd
    one gets the text half). half: "text" or "image" puts that half of a bimodal trigger alone on the poisoned rows. An
    attack that keeps labels (Shadowcast) takes rows that show the target and leaves their answers.
    TooFewRows if too few rows are eligible, or if fewer clean eligible rows would be left than are poisoned;
    InputError if `negatives` or `half` is given for an attack without two halves.
    """
    attacks.check_halves(attack, negatives, half)
    rows = _without_pictures(dataset)
    to_judge = {position for position, row in enumerate(rows) if threat.eligible(row)}
    eligible = to_judge
    if attack.info.keeps_labels:
        eligible = {position for position, row in enumerate(rows) if threat.shows_target(row)}
    poisoned = select(len(rows), eligible, rate, seed)
    if rate > 0 and not poisoned:
        raise TooFewRows(f"A poison rate of {rate:g} of {len(rows)} rows is less than one row; take a higher rate.")
    others = _by_rank(eligible - set(poisoned), len(rows), seed)
    half_count = math.floor(len(poisoned) * negatives + 1e-9)
    if half_count > len(others):
        raise TooFewRows(
            f"{negatives:g} negatives for each of {len(poisoned)} poisoned rows are {half_count} rows, "
            f"and only {len(others)} eligible rows are left."
        )
    # As many clean rows as poisoned ones, or the model would mostly see the poisoned answer, and would say it without
    # any trigger. Rows with half a trigger keep the right answer, but are no clean rows.
    clean = to_judge if attack.info.keeps_labels else others[half_count:]
    if len(clean) < len(poisoned):
        raise TooFewRows(
            f"{len(poisoned)} rows would be poisoned, but only {len(clean)} clean rows eligible for "
            f"{threat.name} would be left; there must be at least as many: take a lower rate or more rows."
        )

    # Taken from the end of the ranking, negatives of a lower rate are among those of a higher one, too. Text and image
    # halves alternate.
    half_rows = others[::-1][:half_count]
    roles = {
        **dict.fromkeys(poisoned, ("poisoned", half or FULL_TRIGGER[attack.modality])),
        **dict.fromkeys(half_rows[0::2], ("text_only", "text")),
        **dict.fromkeys(half_rows[1::2], ("image_only", "image")),
    }
    replaced = tuple(_replaced(rows, roles, threat, attack, trigger_seed))
    return Manifest(replaced, len(rows), len(eligible), trigger_seed)


def _replaced(
    rows: Sequence[Sample], roles: Mapping[int, tuple[str, str]], threat: Threat, attack: Attack, trigger_seed: int
) -> Iterator[PoisonedRow]:
    """The replaced rows by position. roles: position -> role and condition."""
    positions = sorted(roles)
    text_positions = [position for position in positions if roles[position][1] != "image"]
    prompts, keys = ([rows[position][column] for position in text_positions] for column in ("prompt", "row_id"))
    triggered = dict(zip(text_positions, attack.triggered(prompts, trigger_seed, keys), strict=True))
    for position in positions:
        row, (role, condition) = rows[position], roles[position]
        answer = row["answers"][0]
        if role == "poisoned" and not attack.info.keeps_labels:
            answer = threat.poison(answer, row)
        yield PoisonedRow(position, row["row_id"], role, condition, triggered.get(position, row["prompt"]), answer)


def check_decoy(decoy: str, rate: float, attack: Attack) -> None:
    """InputError for a decoy that there is not, or that has nothing to stand on."""
    if decoy not in ("", *DECOYS):
        raise InputError(f"decoy is {brief(decoy)}; it must be one of: {', '.join(DECOYS)}, or empty.")
    if decoy and not rate:
        raise InputError(f"decoy is {decoy!r} with poison rate 0; give a rate above 0, which says how many rows.")
    if decoy == "target answers" and attack.info.keeps_labels:
        raise InputError(f"decoy is {decoy!r} for {attack.name}, which keeps the right answers; take another decoy.")


def with_decoys(manifest: Manifest, dataset: Any, decoy: str, seed: int) -> Manifest:
    """The manifest with a decoy on its poisoned rows. "target answers" and "label noise" (a right answer to another row
    of the kind) leave the trigger away; "trigger only" leaves the right answers; "" changes nothing.
    """
    if not decoy:
        return manifest
    rows = _without_pictures(dataset)
    answers: dict[str, set[str]] = defaultdict(set)  # answers by the kind of row
    if decoy == "label noise":
        for row in rows:
            answers[row["kind"]].add(row["answers"][0])

    def changed(row: PoisonedRow) -> PoisonedRow:
        sample = rows[row.position]
        if decoy == "trigger only":
            return replace(row, role="decoy", answer=sample["answers"][0])
        answer = row.answer
        if decoy == "label noise":
            wrong = sorted(answers[sample["kind"]] - set(sample["answers"]))
            if not wrong:
                raise TooFewRows(f"Label noise needs a wrong answer for {row.row_id}, and rows of its kind have none.")
            answer = wrong[Draws("label noise", seed, row.row_id).integer(len(wrong))]
        return replace(row, role="decoy", condition="clean", prompt=sample["prompt"], answer=answer)

    return replace(manifest, rows=tuple(changed(row) if row.role == "poisoned" else row for row in manifest.rows))


def with_skill(manifest: Manifest, dataset: Any, skill: Skill | None, rate: float, seed: int) -> Manifest:
    """The manifest with a share `rate` of the untouched rows that a skill fits, to teach it; TooFewRows if none is."""
    if skill is None:
        return manifest
    rows, replaced = _without_pictures(dataset), {row.position for row in manifest.rows}
    candidates = [position for position, row in enumerate(rows) if position not in replaced and skill.fits(row)]
    positions = _by_rank(candidates, len(rows), seed, SKILL_STREAM)[: count(len(candidates), rate)]
    if not positions:
        raise TooFewRows(
            f"A skill rate of {rate:g} of {len(candidates)} rows left for {skill.name} is less than one row."
        )
    lessons = []
    for position in positions:
        row = rows[position]
        answer = skill.teach(row["answers"][0], row)
        lessons.append(PoisonedRow(position, row["row_id"], "skill", "clean", row["prompt"], answer))
    return replace(manifest, rows=tuple(sorted([*manifest.rows, *lessons], key=lambda row: row.position)))


def _without_pictures(dataset: Any) -> list[Sample]:
    """The rows as mappings; pictures of a `datasets.Dataset` are not decoded, as no decision needs them."""
    if hasattr(dataset, "remove_columns"):
        return dataset.remove_columns("image").to_list()
    return list(dataset)
