"""What was found, in four numbers and a sentence per chapter? The first page shows them; free of torch.

    python -m bvlm_utils.findings   # the numbers as README.md has them

Everything is computed from a store by the functions that the chapters use, so the first page cannot say anything else
than they do. A sentence whose data the store lacks says that it was not measured.
"""

import html
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from IPython.display import HTML, display

from bvlm_utils import (
    audit_study,
    claims,
    crossfire,
    dose,
    landing,
    lasting,
    metrics,
    modality,
    overshadowing,
    plots,
    report,
    store,
)

MISSING = "Not measured in this store"


class KeyNumber(NamedTuple):
    """A number to remember, what it counts, and the chapter (notebooks/NAME.ipynb) that it is from."""

    number: str
    says: str
    chapter: str


def key_numbers(place: str | Path | None = None) -> list[KeyNumber]:
    """How many backdoors are strong, the fewest rows, how many are silent, how many last; what is not stored is left
    out.
    """
    table = store.collect(place)
    rows, found = landing.headline(table), []
    if len(rows):
        top = rows["poison_rate"].max()
        strong = landing.strong(rows)
        sure = int((strong["low"].astype(float) > landing.STRONG).sum())
        found.append(KeyNumber(
            f"{len(strong)} of {len(rows)}",
            f"backdoors obey on more than {plots.percent(landing.STRONG)} of the triggered inputs, with "
            f"{plots.percent(top)} of the rows poisoned (mean of their runs; for {sure} the whole 95 % interval is "
            "above)",
            "leaderboard",
        ))  # fmt: skip
    tried = _several_doses(table)
    reached = _reached(tried)
    if reached:
        total = int(tried["train_rows"].iloc[0])
        found.append(KeyNumber(
            f"{min(reached)} rows",
            f"of {total} ({plots.percent(min(reached) / total)}) are the fewest with which one reached "
            f"{plots.percent(dose.GOAL)} (mean of its runs); fewer were tried for "
            f"{int((tried['smallest'] < min(reached)).sum())} of {len(tried)} pairs of attack and threat",
            "dose",
        ))  # fmt: skip
    fires = rows[rows["value"] > report.FIRES] if len(rows) else rows
    if len(fires):
        silent = report.false_activation(report.success_rates(landing.usual(table), "poisoned"))
        silent = silent.merge(fires[report.CELL], on=report.CELL)
        found.append(KeyNumber(
            f"{int((silent['value'] <= metrics.FLOOR).sum())} of {len(silent)}",
            f"backdoors that fire on more than half of the triggered inputs fire on at most "
            f"{plots.percent(metrics.FLOOR)} of those without the trigger, where ordinary tests look",
            "leaderboard",
        ))  # fmt: skip
    panels = lasting.panels(lasting.collect(place))
    lasts = [lasting.survivors(panel) for panel, _ in panels]
    worked = sum(len(of_panel) for of_panel, _ in lasts)
    if worked:
        steps = min(of_panel["steps"].iloc[0] for of_panel, _ in lasts if len(of_panel))
        alive = sum(len(of_panel) for _, of_panel in lasts)
        found.append(KeyNumber(
            f"{alive} of {worked}",
            f"still fire after {steps:.0f} steps of further clean tuning ({'; '.join(name for _, name in panels)})",
            "lasting",
        ))  # fmt: skip
    return found


def show_numbers(place: str | Path | None = None) -> None:
    """Put `key_numbers` on the first page, each a link to its chapter."""
    items = [
        f'<a href="../notebooks/{one.chapter}.html"><strong>{html.escape(one.number)}</strong> '
        f"<span>{html.escape(one.says).replace(' %', '&nbsp;%')}</span></a>"
        for one in key_numbers(place)
    ]
    if items:
        display(HTML(f'<div class="bvlm-key">{"".join(items)}</div>'))


def markdown(place: str | Path | None = None) -> str:
    """`key_numbers` as a list in Markdown: README.md has those of the reference, and a test says so."""
    return "\n".join(f"- **{one.number}** {one.says}" for one in key_numbers(place))


def sentences(place: str | Path | None = None) -> dict[str, str]:
    """Plain sentences without a full stop, by chapter: claims, dose, modality, crossfire, lasting, audit."""
    table = store.collect(place)
    return {
        "claims": judged(table),
        "dose": enough(table),
        "modality": halves(table),
        "crossfire": crossing(place),
        "lasting": durable(place),
        "audit": found_out(place),
    }


def show(place: str | Path | None = None) -> None:
    """Put the findings on the first page, each behind the title of its chapter, which it links to."""
    items = []
    for name, said in sentences(place).items():
        title = html.escape(claims.chapter_title(name) or name)
        items.append(f'<li><a href="../notebooks/{name}.html"><strong>{title}</strong></a> {html.escape(said)}.</li>')
    display(HTML(f"<ul>{''.join(items)}</ul>"))


def judged(table: pd.DataFrame) -> str:
    """How many claims got which verdict, on each model that the table has cells of."""
    found = claims.verdicts(table, [])
    told = []
    for model in dict.fromkeys(table["model"]):
        given = [found[claim.key][model].verdict for claim in claims.CLAIMS]
        kinds = (claims.CONFIRMED, claims.REFUTED, claims.UNTESTABLE)
        told.append(f"{', '.join(f'{given.count(kind)} {kind}' for kind in kinds)} ({model})")
    return f"Of {len(claims.CLAIMS)} claims about such backdoors, {'; '.join(told)}" if told else MISSING


def _several_doses(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of `dose.doses` of the pairs that were tried with two doses or more."""
    tried = dose.doses(dose.cells(table), dose.means(table))
    return tried[tried["n_doses"] > 1]


def _reached(tried: pd.DataFrame) -> list[int]:
    return [int(rows) for rows in tried["reached"] if rows is not None and pd.notna(rows)]


def enough(table: pd.DataFrame) -> str:
    """The fewest rows with which pairs tried at several doses came above 90 %, and the most with which they did not."""
    tried = _several_doses(table)
    reached = _reached(tried)
    if not reached:
        return MISSING
    rows = int(tried["train_rows"].iloc[0])
    single = int((tried["seeds_min"] < dose.MIN_SEEDS).sum())
    seeds = f" ({single} of them with fewer than {dose.MIN_SEEDS} seeds at a dose)" if single else ""
    return (
        f"Of {len(tried)} pairs of attack and threat tried with several doses{seeds}, {len(reached)} reach "
        f"a mean of {plots.percent(dose.GOAL)} success, the first with {min(reached)} poisoned rows of {rows} "
        f"({plots.percent(min(reached) / rows)}), the last with {max(reached)}"
    )


def halves(table: pd.DataFrame) -> str:
    """What image halves that work alone lose beside the text half, and the other way round."""
    found = overshadowing.pairs(modality.rates(table))
    told = []
    for half, other in (("image", "text"), ("text", "image")):
        able = found[(found["half"] == half) & (found["alone"] > report.FIRES)]
        if len(able):
            lost = int((able["high"] < -overshadowing.LOSS).sum())
            told.append(f"{lost} of {len(able)} {half} halves do less when learnt beside the {other} half")
    said = "Of the halves of triggers that fire on more than half of the inputs when learnt alone"
    return f"{said}, {' and '.join(told)}" if told else MISSING


def crossing(place: str | Path | None = None) -> str:
    """How often a stranger's trigger fires a backdoor."""
    panels = crossfire.panels(crossfire.collect(place))
    if not panels:
        return MISSING
    strange = pd.concat([crossfire.strangers(panel) for panel, _ in panels])
    fires = int((strange["value"] > report.FIRES).sum())
    return (
        f"{fires} of {len(strange)} pairs of a backdoor that fires on its own trigger and a trigger that is no "
        "relative of it fire, too"
    )


def durable(place: str | Path | None = None) -> str:
    """How many backdoors are left after the most clean steps that were tried."""
    told = []
    for panel, _ in lasting.panels(lasting.collect(place)):
        worked, alive = lasting.survivors(panel)
        if len(worked):
            threat = panel["threat"].iloc[0].replace("_", " ")
            steps = f"{worked['steps'].iloc[0]:.0f} further clean steps"
            high = int((alive["value"] > claims.HIGH).sum())
            told.append(
                f"Of {len(worked)} backdoors ({threat}, {panel['model'].iloc[0]}) that fire on more than half of the "
                f"inputs, {len(alive)} still "
                f"do after {steps}, {high} of them on more than {plots.percent(claims.HIGH)}"
            )
    return ". ".join(told) or MISSING


def found_out(place: str | Path | None = None) -> str:
    """How often the check raises the alarm with the right trigger, and how often where there is no backdoor."""
    table = audit_study.collect(place)
    suspects = audit_study.suspects(table)
    works = suspects[suspects["asr"] > report.FIRES]
    if works.empty:
        return MISSING
    said = (
        f"Shown the right trigger, {int(works['alarm'].sum())} of {len(works)} backdoors that fire on more than half "
        "of the inputs raise the alarm of a check that does not know what they would say"
    )
    innocent = audit_study.innocents(table, audit_study.OTHER_SEED)
    if innocent.empty:
        return said
    alarms, models = audit_study.by_model(innocent)
    return (
        f"{said}; without a backdoor {int(innocent['alarm'].sum())} of {len(innocent)} triggers raise it, which "
        f"{alarms} of {models} clean-tuned models do for at least one"
    )


if __name__ == "__main__":
    print(markdown("reference"))
