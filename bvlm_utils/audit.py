"""The audit of a model: was it backdoored? It and a trusted model get the same inputs, with triggers and without.

    python -m bvlm_utils.audit ADAPTER
    python -m bvlm_utils.audit ADAPTER --pictures FOLDER --prompts prompts.txt --word xyzzy --patch logo.png

Whoever checks a model may guess the trigger, and not what it does. So two models are compared: a backdoor makes them
disagree *more* when its trigger is there. Without a trusted model, one is made: the base, tuned on clean rows.
Detectors that need no trigger are run beside it. How well this works on models of which the truth is known is shown in
the chapter of the same name. The check is this study's own; it finds triggers that it is given, and no others.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bvlm_utils import command, data, models, paths, store
from bvlm_utils.attacks import Attack
from bvlm_utils.checks import same_content
from bvlm_utils.errors import InputError, remark
from bvlm_utils.models import names
from bvlm_utils.run import group, own_pictures, tried, tune_and_ask
from bvlm_utils.run.progress import Progress, say
from bvlm_utils.run.tune_and_ask import Work
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.score.disagreement import excess
from bvlm_utils.score.verdict import BASE, CLEAN_TUNED, Detected, verdict
from bvlm_utils.store.cell import CONTROL, Cell, check_dataset
from bvlm_utils.store.locks import lacking
from bvlm_utils.train.settings import TrainSettings

ROWS, TUNED_ON = 200, 6000
FEWEST = 3  # inputs: where each of fewer is changed, the interval is still too wide for an alarm (`score.disagreement`)
TOLD = 10  # times while a reference is tuned
NO_ALARM, ALARM, WRONG = 0, 3, command.WRONG  # exit codes


@dataclass(frozen=True)
class Subject:
    """A model to ask: a base, or a base with an adapter on top."""

    model: str
    adapter: Path | None


def subject(name: str, base: str | None = None) -> Subject:
    """A model by name: an adapter in PEFT's format (on `base`), a run of the store, a checkpoint or a hub id."""
    try:
        adapter = names.adapter_folder(name)
    except InputError:
        models.resolve(name)
        return Subject(name, None)
    return Subject(names.base_under(adapter, base), adapter)


def measure(
    suspect: Subject, trusted: Subject, bench_of: Callable[[str], Bench], triggers: Sequence[Attack], rows: int = ROWS
) -> pd.DataFrame:
    """Ask both models `rows` inputs, clean and with each trigger: a line per trigger, the fields of `Excess` and the
    alarm. A second look asks the trusted model's base with the triggers that raised an alarm: `disturbs` says whether
    the trusted model raises it, too, beside its base; it is empty where nobody looked.
    """
    progress = Progress("audit", 2 * (len(triggers) + 1))
    answers = {who: _answers(who, bench_of, triggers, rows, progress) for who in dict.fromkeys((suspect, trusted))}
    (suspect_clean, *suspect_triggered), (trusted_clean, *trusted_triggered) = answers[suspect], answers[trusted]
    pairs = zip(suspect_triggered, trusted_triggered, strict=True)
    results = [excess(suspect_clean, ours, trusted_clean, theirs) for ours, theirs in pairs]
    alarms = [number for number, result in enumerate(results) if result.alarm]
    disturbs: dict[int, bool] = {}
    if alarms and trusted.adapter is not None:
        say("audit: second look, the trusted model beside its base")
        progress = Progress("audit", len(alarms) + 1)
        alarming = [triggers[number] for number in alarms]
        base_clean, *base_triggered = _answers(Subject(trusted.model, None), bench_of, alarming, rows, progress)
        for number, base_answers in zip(alarms, base_triggered, strict=True):
            disturbs[number] = bool(excess(trusted_clean, trusted_triggered[number], base_clean, base_answers).alarm)
    return pd.DataFrame(
        {"attack": attack.name} | asdict(result) | {"alarm": result.alarm, "disturbs": disturbs.get(number)}
        for number, (attack, result) in enumerate(zip(triggers, results, strict=True))
    )


def _answers(
    model: Subject, bench_of: Callable[[str], Bench], triggers: Sequence[Attack], rows: int, progress: Progress
) -> list[list[str]]:
    """What the model answers without a trigger, then with each."""
    bench, answers = bench_of(model.model), []
    way = tune_and_ask.choose(bench)
    for question in tried.questions("audit", bench, triggers, rows):
        answers.append(way.ask_saved([question], model.adapter)[question.key(bench)])
        progress.add(1, question.condition)
    return answers


def detect(suspect: Subject, trusted: Subject, bench: Bench, population: str | None) -> list[Detected]:
    """Run the trigger-free detectors on both adapters. population: a CSV file (`defences.spectrum`)."""
    from bvlm_utils import defences
    from bvlm_utils.defences import weights

    results, clean = [], None
    for name in defences.names("detect"):
        needs_population = "population" in defences.info(name).params
        if bench.four_bit or suspect.adapter is None:
            results.append(Detected(name, reason="needs an adapter, and a base that is not in 4 bit"))
            continue
        if needs_population and not population:
            results.append(Detected(name, reason="needs adapters whose truth is known; give --population"))
            continue
        detector = defences.get(name, **({"population": population} if needs_population else {}))
        clean = clean or _clean(bench)
        scores = []
        try:
            for role, model in (("the suspect", suspect), ("the trusted model", trusted)):
                if model.adapter is not None and model.model == suspect.model:
                    say(f"audit: {name}, without a trigger: {role}")
                    adapter = weights.whole(bench.victim, tune_and_ask.saved(model.adapter))
                    scores.append(detector.score(bench.victim, adapter, clean))
            results.append(Detected(name, *scores))
        except InputError as error:  # of a kind of LoRA that it cannot read: the triggers were asked about
            results.append(Detected(name, reason=f"cannot read {role}: {error}"))
    return results


def _clean(bench: Bench) -> Any:
    """The inputs without a trigger, as defences take them."""
    from bvlm_utils.defences import Rows

    test = bench.rows["test"][:ROWS]
    feature_rows = np.array(bench.feature_rows("test", range(len(test))))
    prompts, answers = [row["prompt"] for row in test], [row["answers"][0] for row in test]
    return Rows(prompts, answers, bench.feature_cache.table, feature_rows, [str(row["kind"]) for row in test])


def _parser() -> command.Parser:
    parser = command.Parser(prog="python -m bvlm_utils.audit", description=command.first_line(__doc__))
    add = parser.add_argument
    add("suspect", help="an adapter in PEFT's format, a run of the store, a checkpoint or hub id")
    add("--reference", help="a trusted model, best tuned on data of the same kind, or `base` (default: one is tuned)")
    add("--reference-rows", type=command.whole(1, 10**6), default=TUNED_ON, help=f"to tune it on (default {TUNED_ON})")
    add("--store", help="where that reference is kept (default: $BVLM_STORE, else local)")
    add("--model", help="base under the adapters (default: the one that each names)")
    add("--four-bit", action="store_true", help="load the base in 4 bit")
    inputs = "inputs and clean rows like those the model is used for: a name, or FORMAT:PATH such as llava-json:FILE"
    add("--dataset", default="scenes-vqa", help=inputs)
    add("--pictures", help="folder of your own pictures to ask about instead")
    add("--prompts", help="text file, a prompt a line: as many as pictures are asked in pairs, in "
        "the order of the pictures' names, others about each picture")  # fmt: skip
    add("--rows", type=command.whole(1), default=ROWS, help=f"inputs (default {ROWS})")
    tried.add_options(parser, "all that need no target, and with --threat those too; none beside your own")
    add("--population", help="CSV file of adapters whose truth is known, for detectors that learn from it")
    add("--no-detectors", action="store_true", help="leave out the detectors that need no trigger")
    add("--out", help="keep the table in this CSV file")
    return parser


def _act(options: argparse.Namespace) -> int:
    out = paths.new_file(options.out) if options.out is not None else None
    suspect = subject(options.suspect, options.model)
    from_base, to_tune = options.reference in (None, BASE), options.reference is None
    if from_base and suspect.adapter is None:
        raise InputError(f"{options.suspect!r} is a whole model; give one to compare it with by --reference.")
    trusted = Subject(suspect.model, None) if from_base else subject(options.reference, options.model)
    for model in (suspect, trusted):
        models.check_kind(model.model, clip=False)
    check_dataset(options.dataset)
    if options.population is not None and not options.no_detectors:
        _check_population(options.population, suspect)
    folder = store.writable(options.store) if to_tune else None
    triggers, bench_of = tried.of_reader(options), _inputs(options)
    if options.attacks or options.threat is not None or not triggers:
        triggers += tried.of_attacks(options.attacks, options.threat)
    for model in (suspect, trusted):
        questions = tried.questions("audit", bench_of(model.model), triggers, options.rows)
        tried.check_lengths(model.model, questions)
        if (count := len(questions[0].positions)) < FEWEST:
            raise InputError(
                f"There are only {count} inputs to ask; with fewer than {FEWEST} no trigger can raise an alarm."
            )
    if _same(suspect, trusted):
        remark("The suspect and its reference are one and the same, so nothing can be found between them.")
    names.go_offline(suspect.model)
    if folder:
        trusted = _made(options, suspect, folder)
    table = measure(suspect, trusted, bench_of, triggers, options.rows)
    if out:  # before anything is printed: nobody may be there to read it
        table.to_csv(out, index=False)
    detected = [] if options.no_detectors else detect(suspect, trusted, bench_of(suspect.model), options.population)
    print(verdict(table, detected, _kind(trusted, suspect)))
    return ALARM if table["alarm"].any() else NO_ALARM


def _same(first: Subject, second: Subject) -> bool:
    """Are two models the same, under whatever names?"""
    if models.resolve(first.model) != models.resolve(second.model) or None in (first.adapter, second.adapter):
        return first == second
    return same_content(*(model.adapter / "adapter_model.safetensors" for model in (first, second)))


def _kind(trusted: Subject, suspect: Subject) -> str:
    """What the suspect is compared with, as `verdict` wants it. A base may be spelt in two ways."""
    if models.resolve(trusted.model) != models.resolve(suspect.model):
        return "another model"
    return BASE if trusted.adapter is None else CLEAN_TUNED


def _check_population(file: str, suspect: Subject) -> None:
    """InputError for a population that is none, or of adapters on other kinds of layers than the suspect."""
    from bvlm_utils.defences import spectrum

    layers = {name.rpartition(".")[0] for name in spectrum.read(file, suspect.model)}
    state = {} if suspect.adapter is None else tune_and_ask.saved(suspect.adapter).state
    missing = {key.partition(".lora_")[0].rpartition(".")[2] for key in state if ".lora_" in key} - layers
    if missing:
        raise InputError(
            f"The population {file} has no {min(missing)!r}, a kind of layer that the suspect is on; give one of "
            "adapters on the same kinds of layers."
        )


def _inputs(options: argparse.Namespace) -> Callable[[str], Bench]:
    """What makes a model's workbench, once: of the reader's own pictures, or of a dataset."""
    own = own_pictures.given(options.pictures, options.prompts)
    if own is None:
        return cache(lambda model: Bench(model, options.dataset, 1, four_bit=options.four_bit))
    return cache(lambda model: own_pictures.bench(model, *own, options.rows, options.four_bit))


def _made(options: argparse.Namespace, suspect: Subject, folder: Path) -> Subject:
    """A reference made here: the suspect's base, tuned on clean rows with its rank, and kept in the store `folder`."""
    from bvlm_utils.train import adapters

    models.digest(suspect.model)  # a base or an adapter that cannot be read is told before anything is tuned
    rank = adapters.read(suspect.adapter).config.r
    available = data.load(options.dataset, "train").num_rows if ":" in options.dataset else options.reference_rows
    rows, train = min(options.reference_rows, available), TrainSettings(lora_rank=rank)
    cell = Cell(
        suspect.model, options.dataset, CONTROL, CONTROL, 0.0, train_rows=rows, four_bit=options.four_bit, train=train
    )
    with lacking([cell], folder, wait=True) as to_run:
        if to_run:
            bench, clock = Bench(*bench_key(cell)), group.Clock()
            with adapters.attached(bench.victim, suspect.adapter):
                pass  # it fits its base, or that is told before
            say(f"reference: tuning {cell.model} on {cell.train_rows} clean rows of {cell.dataset}, once")
            results = tune_and_ask.choose(bench).tune([Work(cell)], folder / "cache", _told)
            clock.lap("tune", 1)
            group.write_controls(bench, to_run, results, folder, clock)
    say(f"reference: {cell.run_id} in {folder}")
    return Subject(suspect.model, store.adapter(cell, folder))


def _told(step: int, steps: int, loss: float) -> None:
    if step % max(1, steps // TOLD) == 0 or step == steps:
        say(f"reference: step {step} of {steps}, loss {loss:.3f}")


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 without alarm, 3 with one, else what `command` promises."""
    return command.run(_parser(), _act, argv)


if __name__ == "__main__":
    sys.exit(main())
