"""What were tuned adapters asked later on, and where are the answers? A file per model, threat and kind.

    STORE/probes/KIND-RUN_ID-KEY.json    identity, cell, numbers with their intervals, provenance

`crossfire` and `lasting` ask stored adapters about other triggers than their own, and after further tuning.
Each answered question is written at once, so a process that is killed loses the questions at work. A number
says in `asked` what was asked (rows, prompts, picture half and what was done to the model): what is there
under the same key is never asked again. `collect` gives one tidy table. Only `ask` needs torch.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from filelock import FileLock

from bvlm_utils import engine, execute, metrics, packed, provenance, report, score, store, tidy
from bvlm_utils.bench import Bench, Question
from bvlm_utils.cells import VERSION, Cell, content_key
from bvlm_utils.errors import InputError

if TYPE_CHECKING:
    from bvlm_utils.grouped import GroupResult

POISONED, CONTROL = "poisoned", "control"
CELL = [
    "run_id", "model", "dataset", "threat", "attack", "modality", "poison_rate", "n_poisoned", "seed",
    "negatives", "train_rows", "settings",
]  # fmt: skip
NUMBER = ["trigger", "variant", "doing", "part", "metric", "value", "k", "n", "low", "high", "unit", "held"]
COLUMNS = ["kind", "subject", *CELL, "rows", *NUMBER]
SUCCESSES = ("asr", "asr_right")  # strict success, and with the right answer where that has a meaning


@dataclass(frozen=True)
class Probe:
    """One question with its place in the tables.

    trigger: the attack whose trigger it carries, "" for none. variant: what of the trigger or of the model
    differs, "" for nothing. doing: all that was done to the model before it was asked, ready for JSON.
    """

    trigger: str
    variant: str
    question: Question
    doing: tuple[Any, ...] = ()

    def key(self, bench: Bench) -> str:
        return content_key(self.question.key(bench), self.doing)


@dataclass(frozen=True)
class Sheet:
    """One model under a threat, and the file of what it was asked.

    cell: the poisoned cell, or for a control any cell that it is the control of. rows: test rows per
    question.
    """

    kind: str
    cell: Cell
    subject: str
    rows: int

    @property
    def run_id(self) -> str:
        return self.cell.run_id if self.subject == POISONED else self.cell.control.run_id

    @property
    def identity(self) -> dict[str, Any]:
        threat = self.cell.resolved_threat
        about = {"threat": threat.name, "threat_version": threat.version, "threat_params": threat.params}
        return {"kind": self.kind, "version": VERSION, "run_id": self.run_id, "rows": self.rows} | about

    def file(self, place: Path) -> Path:
        return place / "probes" / f"{self.kind}-{self.run_id}-{content_key(self.identity)[:8]}.json"

    def known(self, place: Path) -> set[str]:
        """The keys of all that this model was asked already."""
        return {number["asked"] for number in _numbers(self.file(place))}

    def lacking(self, bench: Bench, place: Path, probes: Sequence[Probe]) -> list[Probe]:
        known = self.known(place)
        return [probe for probe in probes if probe.key(bench) not in known]


def say(*sentences: str) -> None:
    """To whoever waits for the command line."""
    for sentence in sentences:
        print(sentence, file=sys.stderr, flush=True)


def sheets(kind: str, cells: Sequence[Cell], place: Path, rows: int) -> list[Sheet]:
    """The models that can be asked, the clean-tuned control last; stderr is told which cells have no adapter.

    cells: of one model, data set, threat, rate and seed. InputError if no cell or not the control has an
    adapter.
    """
    undefined = [cell for cell in cells if cell.skip_reason]
    found = [cell for cell in cells if not cell.skip_reason and store.adapter(cell, place)]
    lacking = [cell for cell in cells if not cell.skip_reason and cell not in found]
    said = [f"Left out: {cell.skip_reason}" for cell in undefined]
    if lacking:
        names = ", ".join(cell.attack for cell in lacking)
        said.append(
            f"{names} are left out, since {place} holds no adapter of theirs; `papermill "
            f'notebooks/{cells[0].threat}.ipynb out.ipynb -p store ./mine -y "attacks: [{names}]"` makes '
            "them in a store of yours."
        )
    if not found:
        raise InputError(" ".join(said) or "There is no cell to ask; name one attack or more.")
    if not store.adapter(found[0].control, place):
        raise InputError(
            f"{place} holds no adapter of the clean-tuned control {found[0].control.run_id}, and no number "
            "stands without its control; run any of its cells in that store first."
        )
    say(*said)
    return [Sheet(kind, cell, POISONED, rows) for cell in found] + [Sheet(kind, found[0], CONTROL, rows)]


# ---------------------------------------------------------------- asking


class Progress:
    """Lines on stderr: how many questions are answered, and about how long the rest takes."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done, self.started = what, total, 0, time.perf_counter()

    def told(self, count: int, about: str) -> None:
        self.done += count
        left = (time.perf_counter() - self.started) / self.done * (self.total - self.done)
        say(f"{self.what}: {self.done} of {self.total} questions answered ({about}), about {left / 60:.1f} min left")


def ask(
    bench: Bench,
    place: Path,
    asked: Sequence[tuple[Sheet, Sequence[Probe]]],
    results: Sequence["GroupResult"],
    judged: Sequence[bool],
    progress: Progress,
) -> None:
    """Ask all models together, one question of each at a time, and keep every answer at once.

    results: the models' adapters, in the order of `asked`. judged: which of the eligible rows count.
    """
    way = engine.choose(bench)
    for turn in range(max((len(probes) for _, probes in asked), default=0)):
        # as many questions for each: a model that is asked less would be carried along for nothing
        now = [
            (sheet, probes[turn], one)
            for (sheet, probes), one in zip(asked, results, strict=True)
            if turn < len(probes)
        ]
        questions = [[probe.question] for _, probe, _ in now]
        said = way.ask(questions, [one for *_, one in now])
        for (sheet, probe, _), texts in zip(now, said, strict=True):
            keep(bench, place, sheet, probe, texts[probe.question.key(bench)], judged)
        named = dict.fromkeys(f"{probe.trigger} {probe.variant}".strip() or "no trigger" for _, probe, _ in now)
        progress.told(len(now), "; ".join(named))


def judged_rows(bench: Bench, place: Path, cell: Cell, clean: Question) -> list[bool]:
    """Which of the clean question's rows count, as in the study (`Threat.judged`)."""
    threat, key = cell.resolved_threat, clean.key(bench)
    if not threat.judged_where:
        return [True] * len(clean.positions)
    said = execute.known_answers(engine.choose(bench), cell, [clean], place)
    return score.judged_rows(threat, said["base"][key], said["control"][key])


def keep(bench: Bench, place: Path, sheet: Sheet, probe: Probe, texts: Sequence[str], judged: Sequence[bool]) -> None:
    """Judge the answers to one question and write the numbers into the model's file, all of them or none."""
    question, key = probe.question, probe.key(bench)
    samples = [bench.rows["test"][position] for position in question.positions]
    numbers = (_graded if question.part == "utility" else _judged)(sheet, question, samples, texts, judged)
    place_in_table = {"trigger": probe.trigger, "variant": probe.variant, "part": question.part}
    about = {"asked": key, "doing": list(probe.doing)} | place_in_table
    file = sheet.file(place)
    whole = {
        "identity": sheet.identity,
        "subject": sheet.subject,
        "cell": _cell(sheet, place),
        "numbers": [],
        "provenance": provenance.now() | _machine(bench),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(place, file):
        others = [one for one in _numbers(file) if {name: one[name] for name in place_in_table} != place_in_table]
        whole["numbers"] = others + [about | number for number in numbers]
        text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False, default=store._plain)
        store.write_file(file, text + "\n")


@contextmanager
def _one_writer(place: Path, file: Path) -> Iterator[None]:
    """Commands for other attacks add to the same control's file: none may overwrite what another has just added.

    On a file system without locks, what was lost is asked again by the next command.
    """
    (place / "locks").mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(FileLock(place / "locks" / f"{file.stem}.lock"))
        yield


def _judged(
    sheet: Sheet, question: Question, samples: Sequence[Mapping], texts: Sequence[str], judged: Sequence[bool]
) -> list[dict[str, Any]]:
    threat = sheet.cell.resolved_threat
    frame = score.judge(threat, sheet.subject, question.condition, samples, question.prompts, texts, judged)
    measured = score.measure(frame, "", score.keeps_answer(threat, samples[0]))
    counted, found = frame[frame["judged"]], []
    for line in measured:
        if line["metric"] not in SUCCESSES:
            continue
        held = counted["success"].astype(bool)
        if line["metric"] == "asr_right":
            held &= counted["right"].fillna(False).astype(bool)
        found.append(_number(line) | {"held": "".join("01"[int(one)] for one in held)})
    return found


def _graded(
    sheet: Sheet, question: Question, samples: Sequence[Mapping], texts: Sequence[str], judged: Sequence[bool]
) -> list[dict[str, Any]]:
    return [_number(line) for line in score.measure(*score.grade(sheet.subject, samples, texts), with_right=False)]


def _number(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("metric", "value", "k", "n", "low", "high", "unit")}


def _cell(sheet: Sheet, place: Path) -> dict[str, Any]:
    """The columns of the tidy table that say which model it is; a control is filed under the threat it was
    asked for.
    """
    line = tidy.rows(store.record(sheet.run_id, place))[0]
    found = {name: line.get(name) for name in CELL}
    return found | {"threat": sheet.cell.threat}


def _machine(bench: Bench) -> dict[str, Any]:
    device = bench.victim.device
    dtype = str(bench.victim.model.dtype).removeprefix("torch.")
    return {"device": device.type, "dtype": dtype}


# ---------------------------------------------------------------- reading


def _numbers(file: Path) -> list[dict[str, Any]]:
    return _load(file.read_bytes(), file)["numbers"] if file.is_file() else []


def _load(content: bytes, file: Path) -> dict[str, Any]:
    try:
        record = json.loads(content)
        record["identity"], record["cell"], record["numbers"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of probes ({error}); delete it and ask again.") from None
    return record


def collect(kind: str, place: str | Path | None = None) -> pd.DataFrame:
    """The tidy table of all probes of one kind ("crossfire", "lasting") in a store: a line per number, see
    `COLUMNS`.

    subject: "poisoned" or "control". trigger, variant and doing (as JSON) as in `Probe`. held: a digit per
    judged row, 1 for a success, in the same order for all models of a threat. A store without probes gives a
    table without lines.
    """
    lines, root = [], store.folder(place)
    for name in packed.names(root, "probes"):
        if not name.startswith(f"{kind}-"):
            continue
        record = _load(packed.content(root, "probes", name), root / "probes" / name)
        about = record["cell"] | {
            "kind": kind,
            "subject": record["subject"],
            "rows": record["identity"]["rows"],
        }
        for number in record["numbers"]:
            line = about | number | {"doing": json.dumps(number["doing"])}
            lines.append({name: line.get(name) for name in COLUMNS})
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table.astype({"value": "float64", "k": "float64", "n": "float64", "low": "float64", "high": "float64"})


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of `report.headline_metric`."""
    return table[(table["metric"] == report.headline_metric(table)) & (table["part"] == "attack")]


SAME = [
    "kind", "subject", "model", "dataset", "threat", "attack", "modality", "poison_rate", "negatives",
    "train_rows", "settings", "rows", "trigger", "variant", "doing", "part", "metric", "unit",
]  # fmt: skip


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A line per number but for its seed: `SAME`, value, low, high, n, n_seeds, n_poisoned, held.

    One seed: its own interval over test rows. Several: their mean with Student's interval over the seeds.
    """
    lines = []
    for key, part in table.groupby(SAME, sort=False, dropna=False):
        first = part.iloc[0]
        line = {name: first[name] for name in ("value", "low", "high", "n", "n_poisoned", "held")}
        if len(part) > 1:
            low, high = metrics.seeds_interval(*(part[name].to_numpy(float) for name in ("value", "low", "high")))
            most = 10.0 if first["unit"] == "CIDEr-D" else 1.0  # no interval beyond what the measure can be
            line |= {"value": part["value"].mean(), "low": max(low, 0.0), "high": min(high, most), "held": None}
        lines.append(dict(zip(SAME, key, strict=True)) | line | {"n_seeds": part["seed"].nunique()})
    return pd.DataFrame(lines, columns=[*SAME, "value", "low", "high", "n", "n_poisoned", "held", "n_seeds"])


def difference(one: str, other: str) -> tuple[float, float, float]:
    """`held` of two models on the same rows: the difference of their shares with its paired interval."""
    if len(one) != len(other):
        raise InputError(f"{len(one)} and {len(other)} rows cannot be compared row by row; ask for as many of both.")
    return metrics.paired_shares(*(np.array(list(held)) == "1" for held in (one, other)))
