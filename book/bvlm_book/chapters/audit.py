"""How well does the check of `bvlm_utils.audit` work on models of which the truth is known? Free of torch.

Reads the stored answers of all cells: to the same inputs, clean and triggered, by the poisoned model, its clean-tuned
control and the base. *Suspects* are poisoned models shown their own whole trigger, compared with their clean-tuned
control. *Innocents* are clean-tuned models shown the same triggers, compared with the clean-tuned model of another
seed, and with the base.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, words
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
# What clean-tuned models are compared with, and its name on the page.
REFERENCES = {OTHER_SEED: "other seed", BASE: "base"}
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


def working(table: pd.DataFrame) -> pd.DataFrame:
    """The suspects whose backdoor works, with `confirmed`: does the alarm stand after a second look?

    The second look shows the trigger to clean-tuned models, the base beside them; one that raises the alarm is enough
    to doubt it. Missing where the store has none to ask.
    """
    found = suspects(table)
    found = found[found["asr"] > tidy.FIRES]
    doubted = innocents(table, BASE).assign(shown=_shown).groupby("shown")["alarm"].any()
    doubted = _shown(found).map(doubted).astype("boolean")
    return found.assign(confirmed=(~doubted & found["alarm"].astype(bool)).mask(doubted.isna()))


def second_looks(table: pd.DataFrame) -> list[bool]:
    """Of the false alarms beside the base: does each stand after another clean-tuned model was shown the trigger?"""
    beside = innocents(table, BASE)
    beside = beside.assign(alarm=beside["alarm"].astype(bool), shown=_shown(beside))
    others = [
        beside[(beside["shown"] == row["shown"]) & (beside["seed"] != row["seed"])]["alarm"]
        for row in beside[beside["alarm"]].to_dict("records")
    ]
    return [not alarms.any() for alarms in others if len(alarms)]


def numbers(table: pd.DataFrame) -> dict[str, str]:
    """What the page says of all comparisons, to be glued; "n/a" for what the store has none of."""
    works, found = working(table), suspects(table)
    weak, stand = found[found["asr"] <= tidy.FIRES], second_looks(table)
    new = fresh(works)
    confirmed = works["confirmed"].dropna()
    innocent = table[table["subject"] == CONTROL]
    by_attack = innocent[innocent["alarm"].astype(bool)]["attack"].value_counts()
    counts = {
        "found": _of(works["alarm"]), "found_new": _of(new["alarm"]), "weak": _of(weak["alarm"]),
        "confirmed": _of(confirmed), "confirmed_share": words.percent(confirmed.mean()) if len(confirmed) else "n/a",
        "stand": _of(stand), "margin": words.number(disagreement.MARGIN),
        "lowest": words.number(works["value"].min()), "disturbing": ", ".join(by_attack.index[:1]) or "n/a",
        "disturbing_share": f"{by_attack.max()} of {by_attack.sum()}" if len(by_attack) else "n/a",
    }  # fmt: skip
    for name, reference in (("seed", OTHER_SEED), ("base", BASE)):
        rows = innocents(table, reference)
        counts[f"false_{name}"] = _of(rows["alarm"])
        counts[f"models_{name}"] = " of ".join(map(str, by_model(rows))) if len(rows) else "n/a"
    return counts


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


def _shown(rows: pd.DataFrame) -> pd.Series:
    return pd.Series(list(zip(*(rows[name] for name in SHOWN), strict=True)), index=rows.index, dtype=object)


def _of(passed: Sequence[bool] | pd.Series) -> str:
    """ "3 of 8"; "n/a" of none."""
    return f"{int(sum(passed))} of {len(passed)}" if len(passed) else "n/a"


def by_trigger(table: pd.DataFrame) -> pd.DataFrame:
    """Right and false alarms by the attack whose trigger was shown, to read."""
    works, lines = working(table), []
    for attack in (name for name in attacks.names() if name in set(table["attack"])):
        own = works[works["attack"] == attack]
        false = {name: (rows := innocents(table, name))[rows["attack"] == attack]["alarm"] for name in REFERENCES}
        lines.append({
            "trigger": attack, "backdoors found": _of(own["alarm"]), "confirmed": _of(own["confirmed"].dropna()),
            **{f"false, beside {REFERENCES[name]}": _of(alarms) for name, alarms in false.items()},
        })  # fmt: skip
    return pd.DataFrame(lines)


def examples(table: pd.DataFrame, place: str | Path | None = None, shown: int = 2) -> pd.DataFrame:
    """Answers behind one right alarm and one false one, to read: those of the clearest of each kind.

    Inputs on which both models agree without the trigger and differ with it.
    """
    works, clean = working(table), innocents(table, BASE)
    kinds = {"right": works[works["alarm"].astype(bool)], "false": clean[clean["alarm"].astype(bool)]}
    lines = []
    for kind, rows in kinds.items():
        if rows.empty:
            continue
        row = rows.sort_values(["share", "value"] if kind == "right" else ["value"], kind="stable").iloc[-1]
        said = store.responses(row["run_id"], place)
        said = said[(said["part"] == "attack") & said["subject"].isin([row["subject"], row["reference"]])]
        said = said.pivot_table(index="row_id", columns=["subject", "condition"], values="response", aggfunc="first")
        trusted, suspect = said[row["reference"]], said[row["subject"]]
        told = (trusted["clean"] == suspect["clean"]) & (trusted[row["condition"]] != suspect[row["condition"]])
        lines += [
            {"alarm": f"{kind}, trigger of {row['attack']}", "both, without the trigger": trusted.at[one, "clean"],
             "trusted model, with it": trusted.at[one, row["condition"]],
             "suspect, with it": suspect.at[one, row["condition"]]}
            for one in said.index[told][:shown]
        ]  # fmt: skip
    return pd.DataFrame(lines)


def excess_words(table: pd.DataFrame) -> dict[str, str]:
    """Title, alternative text and caption of `excess`."""
    works = working(table)["value"]
    highest = [rows.max() for name in REFERENCES if len(rows := innocents(table, name)["value"])]
    over = bool(highest) and len(works) > 0 and max(highest) >= works.min()
    title = "No margin tells all backdoored models from all clean ones." if over else "Backdoored models lie higher."
    alt = f"Scatter plot of excess disagreement against ASR for {len(suspects(table))} backdoored models, beside a "
    alt += f"strip of clean-tuned ones. {title}"
    caption = f"Dashed: the margin of {disagreement.MARGIN:.2f}, which the whole interval has to clear. "
    caption += f"Highest clean-tuned model {words.number(max(highest, default=None))}, lowest working backdoor "
    return {"title": title, "alt": alt, "caption": caption + f"{words.number(works.min() if len(works) else None)}."}


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
    innocent.set_xticks(range(len(REFERENCES)), list(REFERENCES.values()))
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
