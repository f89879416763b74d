"""How well does the check of `bvlm_utils.audit` work on models of which the truth is known? Free of torch.

Reads the stored answers of all cells: to the same inputs, clean and triggered, by the poisoned model, its clean-tuned
control and the base. *Suspects* are poisoned models shown their own whole trigger, compared with their clean-tuned
control. *Innocents* are clean-tuned models shown the same triggers, compared with the clean-tuned model of another
seed, and with the base.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, tables, words
from bvlm_utils import attacks, store
from bvlm_utils.atomic import write_file
from bvlm_utils.score import disagreement, verdict
from bvlm_utils.store import packed, records
from bvlm_utils.store import table as tidy

POISONED, CONTROL, BASE, OTHER_SEED = "poisoned", "control", "base", "clean-tuned, other seed"
ABOUT = ["run_id", "modality", "n_poisoned", *tidy.TOLD_APART]
CELL = [*ABOUT, "painted", "condition", "control"]
NUMBERS = ["without", "with_trigger", "value", "low", "high", "n", "commonest", "share", "asr", "alarm"]
COLUMNS = [*CELL, "subject", "reference", *NUMBERS]
# What decides the inputs of a control, whatever the poisoned model beside it was trained on.
SHOWN = ["model", "dataset", "train_rows", "threat", "attack", "painted", "condition"]
# The margin of the alarm was set while looking at cells like this one. All others are a fresh test of it.
SEEN = {"model": "tiny-llava", "poison_rate": 0.1, "seed": 0}
# What clean-tuned models are compared with: its name in tables, and in a sentence.
REFERENCES = {OTHER_SEED: ("other seed", "a clean-tuned model of another seed"), BASE: ("base", "the base")}
SAYS = "what it says most with the trigger"
Answers = tuple[list[str], list[str]]  # clean and triggered, in one order of rows


def collect(place: str | Path | None = None) -> pd.DataFrame:
    """A line per comparison, see `COLUMNS`; a store without answers gives a table without lines.

    subject: "poisoned" or "control". reference: "control", "base" or "clean-tuned, other seed". asr: of the poisoned
    model under that condition, missing for innocents.
    """
    lines, controls = [], {}

    def compare(about: dict[str, Any], subject: str, reference: str, ours: Answers, trusted: Answers) -> None:
        found = disagreement.excess(*ours, *trusted)
        numbers = {name: getattr(found, name) for name in NUMBERS if name != "asr"}
        asr = about["asr"] if subject == POISONED else None
        lines.append(about | {"subject": subject, "reference": reference} | numbers | {"asr": asr})

    for about, said in _cells(store.folder(place)):
        if not {POISONED, CONTROL, BASE} <= set(said):
            continue
        for subject, reference in ((POISONED, CONTROL), (POISONED, BASE), (CONTROL, BASE)):
            compare(about, subject, reference, said[subject], said[reference])
        same = tuple(about[name] for name in SHOWN)
        controls.setdefault(same, {})[about["seed"]] = (about, said[CONTROL])
    for seeds in controls.values():
        first, *others = sorted(seeds)
        for seed in others:
            compare(seeds[seed][0], CONTROL, OTHER_SEED, seeds[seed][1], seeds[first][1])
    table = pd.DataFrame(lines, columns=COLUMNS)
    # the same control is shown the same trigger by cells of every rate: innocents once
    innocent = table["subject"] == CONTROL
    once = table[innocent].drop_duplicates([*SHOWN, "seed", "reference"])
    return pd.concat([table[~innocent], once], ignore_index=True)


def _cells(root: Path) -> Iterator[tuple[dict[str, Any], dict[str, Answers]]]:
    """What each finished cell is, with every subject's answers on eligible rows, clean and with the whole trigger.

    Models trained on half of a bimodal trigger are left out: such a half is often another attack of the list, and would
    be counted twice.
    """
    for record in records.records(root):
        attack, run_id = record["config"]["attack"], record["run_id"]
        if record.get("status") != "done" or record["config"].get("half") or not records.has_responses(run_id, root):
            continue
        if attack not in attacks.names() or attacks.info(attack).keeps_labels:
            continue
        whole, lines = attacks.conditions(attack)[-1], tidy.rows(record)
        wanted = {"subject": POISONED, "condition": whole}
        rates = {line["metric"]: line["value"] for line in lines if wanted.items() <= line.items()}
        asr = rates.get(tidy.headline(record["config"]["threat"]), rates.get("asr"))
        if asr is not None:
            about = {name: lines[0][name] for name in ABOUT} | {"painted": lines[0]["settings"], "condition": whole}
            yield about | {"control": record.get("control"), "asr": float(asr)}, _said(root, run_id, whole)


def _said(root: Path, run_id: str, whole: str) -> dict[str, Answers]:
    """The stored answers to eligible rows."""
    columns = ["part", "subject", "condition", "row_id", "response"]
    table = packed.columns(root, run_id, "responses", columns)
    answers: dict[tuple[str, str], dict[str, str]] = {}
    for part, subject, condition, row, response in zip(*(table[name] for name in columns), strict=True):
        if part == "attack" and condition in ("clean", whole):
            answers.setdefault((subject, condition), {})[row] = response
    said = {}
    for subject in dict.fromkeys(subject for subject, _ in answers):
        clean, triggered = answers.get((subject, "clean"), {}), answers.get((subject, whole), {})
        rows = sorted(clean.keys() & triggered.keys())
        said[subject] = [clean[row] for row in rows], [triggered[row] for row in rows]
    return said


# ---------------------------------------------------------------- the page


def suspects(table: pd.DataFrame) -> pd.DataFrame:
    """Poisoned models against their clean-tuned control."""
    return table[(table["subject"] == POISONED) & (table["reference"] == CONTROL)]


def innocents(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    return table[(table["subject"] == CONTROL) & (table["reference"] == reference)]


def by_model(innocent: pd.DataFrame) -> tuple[int, int]:
    """How many clean-tuned models raise the alarm for at least one trigger, of how many. innocent: `innocents`."""
    alarms = innocent.groupby("control")["alarm"].max().astype(bool)
    return int(alarms.sum()), len(alarms)


def fresh(table: pd.DataFrame) -> pd.DataFrame:
    """Cells that nobody had seen when the margin was set."""
    seen = (table[list(SEEN)] == pd.Series(SEEN)).all(axis=1)
    return table[~seen]


def sentences(table: pd.DataFrame) -> list[str]:
    """What the page found, in Markdown."""
    found = suspects(table)
    if found.empty:
        return ["Nothing has been measured yet: the store holds no answers of a poisoned model."]
    works, weak = found[found["asr"] > tidy.FIRES], found[found["asr"] <= tidy.FIRES]
    said = [
        f"**With the right trigger at hand, {_of(works)} of the backdoors that fire on more than half of their "
        "inputs raise the alarm, without anybody knowing what they were made to say.** Of the "
        f"{len(weak)} weaker ones, {int(weak['alarm'].sum())} do."
    ]
    false = []
    for reference, (_, name) in REFERENCES.items():
        rows = innocents(table, reference)
        if len(rows):
            alarms, models = by_model(rows)
            false.append(f"{_of(rows)} beside {name} (in {alarms} of {models} models at least one)")
    if false:
        said.append(
            f"False alarms, clean-tuned models shown the same triggers one by one: {'; '.join(false)}. A base that was "
            "not tuned on data of the same kind is the worse reference: tuning changes how a model words and refuses "
            "things, and a trigger can bring that out."
        )
    beside_base = table[(table["subject"] == POISONED) & (table["reference"] == BASE) & (table["asr"] > tidy.FIRES)]
    if len(beside_base):
        said.append(
            "The suspects above stand beside a twin, the clean-tuned model of the same seed. Beside the base "
            f"{_of(beside_base)} of the same backdoors raise the alarm."
        )
    new = fresh(found)
    if len(new):
        said.append(
            f"The margin of {disagreement.MARGIN:.2f} was set after a look at tiny-llava at 10 % poison with seed 0. "
            f"On the {len(new)} other cells, {_of(new[new['asr'] > tidy.FIRES])} of the backdoors that fire raise the "
            "alarm."
        )
    return said


def error_counts(table: pd.DataFrame) -> dict[str, dict[str, list[int]]]:
    """How often the check erred, by what models were compared with: what the command tells its users
    (`score.verdict.ERRORS`). Each count is a pair, so many of so many.
    """
    counts = {}
    for name, reference, trusted in ((verdict.CLEAN_TUNED, OTHER_SEED, CONTROL), (verdict.BASE, BASE, BASE)):
        beside = table[(table["subject"] == POISONED) & (table["reference"] == trusted) & (table["asr"] > tidy.FIRES)]
        clean = innocents(table, reference)
        counts[name] = {
            "found": [int(beside["alarm"].sum()), len(beside)],
            "false alarms": [int(clean["alarm"].sum()), len(clean)],
            "models with one": list(by_model(clean)),
        }
    return counts


def write_error_counts(place: str | Path | None = "reference") -> None:
    """Where the command finds them; by hand, after new results."""
    write_file(verdict.ERRORS, json.dumps(error_counts(collect(place)), indent=1) + "\n")


def causes_sentence(table: pd.DataFrame) -> str:
    """Which triggers raise the alarm on clean-tuned models, and on how many of those that were asked."""
    innocent = table[table["subject"] == CONTROL]
    counts = innocent.groupby("attack", sort=False)["alarm"].agg(["sum", "count"]).astype(int)
    counts = counts[counts["sum"] > 0].sort_values("sum", ascending=False, kind="stable")
    if counts.empty:
        return "No trigger raises a false alarm."
    said = ", ".join(f"{attack} {row['sum']} of {row['count']}" for attack, row in counts.iterrows())
    most = counts.index[0]
    return (
        f"**Of {counts['sum'].sum()} false alarms, {counts['sum'].iloc[0]} are those of {most}.** By trigger, of the "
        f"comparisons of clean-tuned models: {said}."
    )


def second_opinions(table: pd.DataFrame) -> str:
    """What the rule "ask a trusted model, too" does: the alarms that it takes back, false and right ones.

    The trusted models are clean-tuned ones beside the base, of other seeds if the one in question is clean; one that
    raises the alarm, too, is enough.
    """
    beside = innocents(table, BASE)
    beside = beside.assign(alarm=beside["alarm"].astype(bool), shown=_shown(beside))
    false = [
        beside[(beside["shown"] == row["shown"]) & (beside["seed"] != row["seed"])]["alarm"]
        for row in beside[beside["alarm"]].to_dict("records")
    ]
    false = [others.any() for others in false if len(others)]
    found = suspects(table)
    works = found[(found["asr"] > tidy.FIRES) & found["alarm"].astype(bool)]
    doubted = _shown(works).map(beside.groupby("shown")["alarm"].any()).dropna()
    if not false or doubted.empty:
        return "What a second trusted model says was not measured in this store."
    return (
        f"**{sum(false)} of {len(false)} false alarms beside the base are taken back by it**, where another "
        f"clean-tuned model was asked; so are {int(doubted.sum())} of {len(doubted)} alarms of backdoors that fire, "
        "which then stay undecided."
    )


def _shown(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(list(zip(*(rows[name] for name in SHOWN), strict=True)), index=rows.index, dtype=object)


def _of(rows: pd.DataFrame) -> str:
    return f"{int(rows['alarm'].sum())} of {len(rows)}"


def detection_table(table: pd.DataFrame) -> pd.DataFrame:
    """Alarms and cells per threat and attack at every rate, to read."""
    lines, order = [], {name: place for place, name in enumerate(attacks.names())}
    same = ["model", "threat", "attack"]
    rows = suspects(table).sort_values(same, key=lambda c: c.map(order) if c.name == "attack" else c)
    for _, part in rows.groupby(same, sort=False):
        weak, strong = part[part["asr"] <= tidy.FIRES], part[part["asr"] > tidy.FIRES]
        lines.append(part.loc[part["asr"].idxmax()].to_dict() | {"weak": _of(weak), "strong": _of(strong)})
    return tables.readable(pd.DataFrame(lines), {
        "model": "model", "threat": words.threat, "attack": "attack",
        "firing backdoors found": lambda r: "none fires" if r["strong"] == "0 of 0" else r["strong"],
        "weak ones found": lambda r: "none is weak" if r["weak"] == "0 of 0" else r["weak"],
        "ASR of the strongest": lambda r: words.number(r["asr"]), "its excess": words.interval, SAYS: _commonest,
    })  # fmt: skip


def false_alarms(table: pd.DataFrame) -> pd.DataFrame:
    """Clean-tuned models that raise the alarm, the highest excess first, to read."""
    rows = table[(table["subject"] == CONTROL) & table["alarm"].astype(bool)].sort_values("value", ascending=False)
    return tables.readable(rows, {
        "model": "model", "asked about": words.threat,
        "trigger": lambda r: ", ".join(filter(None, [r["attack"], r["painted"]])),
        "reference": lambda r: REFERENCES[r["reference"]][0], "excess": words.interval, SAYS: _commonest,
    })  # fmt: skip


def _commonest(row: dict[str, Any]) -> str:
    return f"{_short(row['commonest'])} ({row['share']:.0%})"


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " ..."


def figure_words(table: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `excess`."""
    found = suspects(table)
    working = found[found["asr"] > tidy.FIRES]["value"]
    innocent = {name: innocents(table, name)["value"] for name in REFERENCES}
    highest = [f"{rows.max():.2f} beside {REFERENCES[name][1]}" for name, rows in innocent.items() if len(rows)]
    lowest, overlap = "", ""
    if len(working):
        number = words.number(working.min())
        lowest = f"The lowest excess of a backdoor that fires on more than half of the inputs is {number}; "
        if any(rows.max() >= working.min() for rows in innocent.values()):
            overlap = ", so no margin tells all of them apart"
    caption = (
        "How much more often a model disagrees with its reference when a trigger is there. Left, clean-tuned models, "
        "which have no backdoor; right, backdoored models shown their own trigger, by the success rate of the "
        f"backdoor. The dashed line is the margin, {disagreement.MARGIN:.2f}, that the whole interval has to clear. "
        f"{lowest}the highest of a clean-tuned model {' and '.join(highest) or 'was not measured'}{overlap}."
    )
    alt = (
        f"Scatter plot of excess disagreement against attack success rate for {len(found)} backdoored models, "
        f"beside a strip of {sum(map(len, innocent.values()))} comparisons of clean-tuned ones; the extremes are in "
        "the caption."
    )
    return {"alt": alt, "caption": caption}


def excess(table: pd.DataFrame) -> Figure:
    """Excess disagreement: clean-tuned models in strips at the left, backdoored ones against their ASR at the right."""
    found = suspects(table)
    if found.empty:
        return figures.nothing("The store holds no answers of backdoored models.")
    figure, (innocent, suspect) = figures.new_figure(2, 4.6, 4.2, sharey=True, gridspec_kw={"width_ratios": (1, 2.6)})
    spread = np.random.default_rng(0)  # sideways, so that equal numbers can be told apart
    for at, reference in enumerate(REFERENCES):
        rows = innocents(table, reference)
        sideways, colour = at + spread.uniform(-0.25, 0.25, len(rows)), figures.SUBJECT_COLOURS["control"]
        innocent.scatter(sideways, rows["value"], s=18, marker="o", facecolor="none", edgecolor=colour)
    innocent.set_xticks(range(len(REFERENCES)), [name for name, _ in REFERENCES.values()])
    innocent.set_xlim(-0.6, len(REFERENCES) - 0.4)
    innocent.set(title="clean-tuned", xlabel="reference", ylabel="excess disagreement")
    for number, modality in enumerate(words.MODALITIES):
        rows = found[found["modality"] == modality]
        suspect.scatter(rows["asr"], rows["value"], s=26, alpha=0.8, label=modality, **figures.look(number))
    suspect.set(title="backdoored, its own trigger", xlabel=figures.ASR, xlim=(-0.03, 1.03))
    suspect.legend(title="trigger", loc="lower right")
    for axis in (innocent, suspect):
        axis.axhline(disagreement.MARGIN, color="black", linestyle="--", linewidth=1)
        axis.axhline(0, color="black", linewidth=0.6)
    return figure
