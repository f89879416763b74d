"""Questions that tuned adapters are asked later on, and their answers: a file per model, threat and kind.

    STORE/probes/KIND-RUN_ID-KEY.json    identity, cell, numbers with their intervals, provenance

Each answered question is written at once, and a number says in `asked` what was asked (rows, prompts, picture half and
what was done to the model): that is never asked again. `records.collect` gives one tidy table. Only `ask` needs torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bvlm_book.probes.records import CELL, CONTROL, POISONED, numbers_in
from bvlm_utils import store
from bvlm_utils.atomic import write_file
from bvlm_utils.checks import content_key
from bvlm_utils.errors import InputError
from bvlm_utils.run import group, tune_and_ask
from bvlm_utils.run.progress import Progress, say
from bvlm_utils.run.workbench import Bench, Question
from bvlm_utils.score import judge
from bvlm_utils.store import provenance, records, table
from bvlm_utils.store.cell import VERSION, Cell

if TYPE_CHECKING:
    from bvlm_utils.train.grouped import GroupResult

SUCCESSES = ("asr", "asr_right")  # strict success, and with the right answer where that has a meaning
NUMBER = ("metric", "value", "k", "n", "low", "high", "unit")


@dataclass(frozen=True)
class Probe:
    """One question about a trigger ("" for none). variant: what differs, in short; doing: in full, for JSON."""

    trigger: str
    variant: str
    question: Question
    doing: tuple[Any, ...] = ()

    def key(self, bench: Bench) -> str:
        return content_key(self.question.key(bench), self.doing)


@dataclass(frozen=True)
class Sheet:
    """What one model was asked. cell: the poisoned one, or one that the control is of. rows: per question."""

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
        fields = {"threat": threat.name, "threat_version": threat.version, "threat_params": threat.params}
        return {"kind": self.kind, "version": VERSION, "run_id": self.run_id, "rows": self.rows} | fields

    def file(self, root: Path) -> Path:
        return root / "probes" / f"{self.kind}-{self.run_id}-{content_key(self.identity)[:8]}.json"

    def lacking(self, bench: Bench, root: Path, probes: Sequence[Probe]) -> list[Probe]:
        """The probes that this model was not asked yet."""
        asked = {number["asked"] for number in numbers_in(self.file(root))}
        return [probe for probe in probes if probe.key(bench) not in asked]


# A model, what it is to be asked, and its adapter.
Asked = tuple[Sheet, Sequence[Probe], "GroupResult"]


def sheets(kind: str, cells: Sequence[Cell], root: Path, rows: int) -> list[Sheet]:
    """The models that can be asked, the control last. cells: alike but for the attack. InputError without adapters."""
    notes = [f"Left out: {cell.skip_reason}" for cell in cells if cell.skip_reason]
    defined = [cell for cell in cells if not cell.skip_reason]
    tuned = [cell for cell in defined if store.adapter(cell, root)]
    if lacking := ", ".join(cell.attack for cell in defined if cell not in tuned):
        command = f'papermill notebooks/{cells[0].threat}.ipynb out.ipynb -p store ./mine -y "attacks: [{lacking}]"'
        notes.append(f"{lacking} are left out, since {root} holds no adapter of theirs; `{command}` makes them.")
    if not tuned:
        raise InputError(" ".join(notes) or "There is no cell to ask; name one attack or more.")
    if not store.adapter(tuned[0].control, root):
        raise InputError(
            f"{root} holds no adapter of the clean-tuned control {tuned[0].control.run_id}, and no number "
            "stands without its control; run any of its cells in that store first."
        )
    say(*notes)
    return [Sheet(kind, cell, POISONED, rows) for cell in tuned] + [Sheet(kind, tuned[0], CONTROL, rows)]


def ask(bench: Bench, root: Path, jobs: Sequence[Asked], judged: Sequence[bool], progress: Progress) -> None:
    """Ask all models together, one question each at a time, and keep answers at once. judged: rows that count."""
    way = tune_and_ask.choose(bench)
    for turn in range(max((len(probes) for _, probes, _ in jobs), default=0)):
        # as many questions for each: a model that is asked less would be carried along for nothing
        current = [(sheet, probes[turn], result) for sheet, probes, result in jobs if turn < len(probes)]
        answers = way.ask([[probe.question] for _, probe, _ in current], [result for *_, result in current])
        for (sheet, probe, _), texts in zip(current, answers, strict=True):
            keep(bench, root, sheet, probe, texts[probe.question.key(bench)], judged)
        names = dict.fromkeys(f"{probe.trigger} {probe.variant}".strip() or "no trigger" for _, probe, _ in current)
        progress.add(len(current), "; ".join(names))


def ask_stored(bench: Bench, root: Path, plan: Sequence[tuple[Sheet, Sequence[Probe]]], clean: Question) -> None:
    """Ask stored adapters what of `plan` the store does not know yet. clean: the question without a trigger."""
    pairs = [(sheet, lacking) for sheet, probes in plan if (lacking := sheet.lacking(bench, root, probes))]
    if pairs:
        store.clean(root)
        judged = judged_rows(bench, root, pairs[0][0].cell, clean)
        progress = Progress(pairs[0][0].kind, sum(len(lacking) for _, lacking in pairs))
        jobs = [(*pair, tune_and_ask.saved(store.adapter(pair[0].run_id, root))) for pair in pairs]
        ask(bench, root, jobs, judged, progress)


def judged_rows(bench: Bench, root: Path, cell: Cell, clean: Question) -> list[bool]:
    """Which of the clean question's rows count, as in the study (`Threat.judged`)."""
    threat, key = cell.resolved_threat, clean.key(bench)
    if not threat.judged_where:
        return [True] * len(clean.positions)
    answers = group.known_answers(tune_and_ask.choose(bench), cell, [clean], root)
    judged = judge.judged_rows(threat, answers["base"][key], answers["control"][key])
    if not any(judged):
        raise InputError(
            f"In none of the {len(judged)} rows it holds without a trigger that {threat.judged_where}, so no answer "
            "can be judged; ask for more rows."
        )
    return judged


def keep(bench: Bench, root: Path, sheet: Sheet, probe: Probe, texts: Sequence[str], judged: Sequence[bool]) -> None:
    """Judge the answers to one question and write the numbers into the model's file, all of them or none."""
    question = probe.question
    samples = [bench.rows["test"][position] for position in question.positions]
    if question.part == "utility":
        measured = judge.measure(*judge.grade(sheet.subject, samples, texts), with_right=False)
        numbers = [{name: line[name] for name in NUMBER} for line in measured]
    else:
        numbers = _successes(sheet, question, samples, texts, judged)
    # `doing` as JSON gives it back: without it, a further step at another learning rate would replace the first
    doing = json.loads(json.dumps(probe.doing))
    point = {"trigger": probe.trigger, "variant": probe.variant, "doing": doing, "part": question.part}
    fields = {"asked": probe.key(bench)} | point
    line = table.rows(records.record(sheet.run_id, root))[0] | {"threat": sheet.cell.threat}  # a control has none
    device, dtype = bench.victim.device.type, str(bench.victim.model.dtype).removeprefix("torch.")
    record = {
        "identity": sheet.identity, "subject": sheet.subject, "cell": {name: line.get(name) for name in CELL},
        "numbers": [], "provenance": provenance.now() | {"device": device, "dtype": dtype},
    }  # fmt: skip
    file = sheet.file(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(root, file):
        others = [number for number in numbers_in(file) if {name: number[name] for name in point} != point]
        record["numbers"] = others + [fields | number for number in numbers]
        write_file(file, records.as_text(record))


@contextmanager
def _one_writer(root: Path, file: Path) -> Iterator[None]:
    """Commands for other attacks add to the same control's file: none may overwrite what another has just added."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        with suppress(OSError):
            locks.enter_context(FileLock(root / "locks" / f"{file.stem}.lock"))
        yield


def _successes(
    sheet: Sheet, question: Question, samples: Sequence[Mapping], texts: Sequence[str], judged: Sequence[bool]
) -> list[dict[str, Any]]:
    """Success and its interval, and which of the judged rows succeeded: a digit each."""
    threat = sheet.cell.resolved_threat
    frame = judge.judge(threat, sheet.subject, question.condition, samples, question.prompts, texts, judged)
    counted = frame[frame["judged"]]
    successes = {"asr": counted["success"].astype(bool)}
    successes["asr_right"] = successes["asr"] & counted["right"].fillna(False).astype(bool)
    return [
        {name: line[name] for name in NUMBER} | {"held": "".join("01"[int(hit)] for hit in successes[line["metric"]])}
        for line in judge.measure(frame, "", judge.keeps_answer(threat, samples[0])) if line["metric"] in SUCCESSES
    ]  # fmt: skip
