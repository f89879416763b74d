"""What was found, in four numbers and a sentence per chapter? The first page shows them; free of torch.

    python -m bvlm_book.chapters.first_page   # the numbers as README.md has them

Everything is computed from a store by the functions that the chapters use, so the first page cannot say anything else
than they do. A sentence whose data the store lacks says that it was not measured.
"""

import html
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from bvlm_book import figures, page, rules, rules_second, tables, words
from bvlm_book.chapters import audit, claims, crossfire, dose, lasting
from bvlm_book.chapters.modality import learned_alone
from bvlm_book.chapters.modality.halves import rates
from bvlm_book.tables import usual
from bvlm_utils import attacks, store, threats
from bvlm_utils.score import intervals
from bvlm_utils.store.table import FIRES

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
    rows, found = overview_rows(table), []
    if len(rows):
        top, strong = rows["poison_rate"].max(), strong_rows(rows)
        sure = int((strong["low"].astype(float) > rules.HIGH).sum())
        found.append(KeyNumber(
            f"{len(strong)} of {len(rows)}",
            f"backdoors obey on more than {words.percent(rules.HIGH)} of the triggered inputs, with "
            f"{words.percent(top)} of the rows poisoned in one pass (payload test, mean of their runs; for {sure} the "
            f"whole 95 % interval is above; {int((rows['n_seeds'] == 1).sum())} are single runs)",
            "leaderboard",
        ))  # fmt: skip
    tried = _several_doses(table)
    reached = _reached(tried)
    if reached:
        total = int(tried["train_rows"].iloc[0])
        found.append(KeyNumber(
            f"{min(reached)} rows",
            f"of {total} ({words.percent(min(reached) / total)}) are the fewest with which one reached "
            f"{words.percent(rules.HIGH)} (mean of its runs); fewer were tried for "
            f"{int((tried['smallest'] < min(reached)).sum())} of {len(tried)} pairs of attack and threat",
            "dose",
        ))  # fmt: skip
    if len(rows):
        silent = tables.false_activation(tables.success_rates(tables.usual(table), "poisoned"))
        silent = silent.merge(rows[tables.CELL], on=tables.CELL)
        found.append(KeyNumber(
            f"{int((silent['value'] <= intervals.FLOOR).sum())} of {len(silent)}",
            f"backdoors fire on at most {words.percent(intervals.FLOOR)} of the inputs without the trigger",
            "leaderboard",
        ))  # fmt: skip
    panels = tables.panels(lasting.collect(place))
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
    numbers = "\n".join(f"- **{one.number}** {one.says}" for one in key_numbers(place))
    return f"{numbers}\n\n{judged(store.collect(place))}."


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
        title = html.escape(page.chapter_title(name) or name)
        items.append(f'<li><a href="../notebooks/{name}.html"><strong>{title}</strong></a> {html.escape(said)}.</li>')
    display(HTML(f"<ul>{''.join(items)}</ul>"))


def judged(table: pd.DataFrame) -> str:
    """The verdicts on the paper's claims, and the first edition's on 1 % by its name."""
    said = [claims.sentence(table, claims.bases(table)) or MISSING, claims.one_percent(table)]
    return ". ".join(filter(None, said))


def doses(table: pd.DataFrame) -> pd.DataFrame:
    """1 % beside 10 %, one pass beside several: how many pairs have a mean above 90 % by payload, a column per base."""
    found, lines = claims.bases(table), []
    for rate in (rules_second.RATE, rules_second.MANY):
        for number in sorted({one for base in found.values() for one in rules_second.passes(base)}):
            own = {name: rules_second.at_rate(base, number, rules_second.PAYLOAD, rate) for name, base in found.items()}
            for title, modalities in (("text or bimodal", ("text", "bimodal")), ("image", ("image",))):
                parts = {name: part[part["modality"].isin(modalities)] for name, part in own.items()}
                line = {"poisoned": words.percent(rate), "training": words.passes(number), "trigger": title}
                if any(len(part) for part in parts.values()):
                    lines.append(line | {name: _above(part) for name, part in parts.items()})
    return pd.DataFrame(lines)


def _above(pairs: pd.DataFrame) -> str:
    """ "28 of 32 pairs, 4 of them single runs"."""
    if pairs.empty:
        return rules_second.NOT_RUN
    single = int((pairs["n_seeds"] < rules_second.JUDGED_SEEDS).sum())
    count = f"{int((pairs['value'] > rules_second.HIGH).sum())} of {len(pairs)} pairs"
    return f"{count}, {'all' if single == len(pairs) else single} single runs" if single else count


def _several_doses(table: pd.DataFrame) -> pd.DataFrame:
    """Lines of `chapters.dose.doses` of the pairs that were tried with two doses or more."""
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
    single = int((tried["seeds_min"] < rules.MIN_SEEDS).sum())
    seeds = f" ({single} of them with fewer than {rules.MIN_SEEDS} seeds at a dose)" if single else ""
    return (
        f"Of {len(tried)} pairs of attack and threat tried with several doses{seeds}, {len(reached)} reach "
        f"a mean of {words.percent(rules.HIGH)} success, the first with {min(reached)} poisoned rows of {rows} "
        f"({words.percent(min(reached) / rows)}), the last with {max(reached)}"
    )


def halves(table: pd.DataFrame) -> str:
    """What image halves that work alone lose beside the text half, and the other way round."""
    found = learned_alone.pairs(rates(table))
    told = []
    for half, other in (("image", "text"), ("text", "image")):
        able = found[(found["half"] == half) & (found["alone"] > FIRES)]
        if len(able):
            lost = int((able["high"] < -learned_alone.LOSS).sum())
            told.append(f"{lost} of {len(able)} {half} halves do less when learnt beside the {other} half")
    said = "Of the halves of triggers that fire on more than half of the inputs when learnt alone"
    return f"{said}, {' and '.join(told)}" if told else MISSING


def crossing(place: str | Path | None = None) -> str:
    """How often a stranger's trigger fires a backdoor."""
    panels = tables.panels(crossfire.collect(place))
    if not panels:
        return MISSING
    strange = pd.concat([crossfire.unrelated(panel) for panel, _ in panels])
    fires = int((strange["value"] > FIRES).sum())
    return (
        f"{fires} of {len(strange)} pairs of a backdoor that fires on its own trigger and a trigger that is no "
        "relative of it fire, too"
    )


def durable(place: str | Path | None = None) -> str:
    """How many backdoors are left after the most clean steps that were tried."""
    told = []
    for panel, _ in tables.panels(lasting.collect(place)):
        worked, alive = lasting.survivors(panel)
        if len(worked):
            threat = words.threat(panel.iloc[0])
            steps = f"{worked['steps'].iloc[0]:.0f} further clean steps"
            high = int((alive["value"] > rules.HIGH).sum())
            told.append(
                f"Of {len(worked)} backdoors ({threat}, {panel['model'].iloc[0]}) that fire on more than half of the "
                f"inputs, {len(alive)} still "
                f"do after {steps}, {high} of them on more than {words.percent(rules.HIGH)}"
            )
    return ". ".join(told) or MISSING


def found_out(place: str | Path | None = None) -> str:
    """How often the check raises the alarm with the right trigger, and how often where there is no backdoor."""
    table = audit.collect(place)
    suspects = audit.suspects(table)
    works = suspects[suspects["asr"] > FIRES]
    if works.empty:
        return MISSING
    said = (
        f"Shown the right trigger, {int(works['alarm'].sum())} of {len(works)} backdoors that fire on more than half "
        "of the inputs raise the alarm of a check that does not know what they would say"
    )
    innocent = audit.innocents(table, audit.OTHER_SEED)
    if innocent.empty:
        return said
    alarms, models = audit.by_model(innocent)
    return (
        f"{said}; without a backdoor {int(innocent['alarm'].sum())} of {len(innocent)} triggers raise it, which "
        f"{alarms} of {models} clean-tuned models do for at least one"
    )


def overview_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Success of the poisoned models at the highest rate: a row per model, data, threat and attack.

    table: rows of `store.collect`. Columns as in `tables.summary`. Cells with half-triggered negatives or other
    settings of their attack are other experiments and left out.
    """
    done = usual(table)
    rows = tables.headline_rows(tables.success_rates(done, "poisoned"))
    return rows[rows["poison_rate"] == rows["poison_rate"].max()].reset_index(drop=True)


def strong_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `overview_rows` whose mean is above `rules.HIGH`, whatever their intervals are."""
    return rows[rows["value"].astype(float) > rules.HIGH]


def overview_sentences(table: pd.DataFrame) -> str:
    """The finding in Markdown; says so where the store is empty."""
    rows = overview_rows(table)
    if rows.empty:
        return "Nothing has been measured yet: the store holds no finished cell."
    done = usual(table)
    silent = tables.false_activation(tables.success_rates(done, "poisoned"))
    cost = tables.summary(done, "utility_difference")
    many, above = rows["n_seeds"] > 1, rows["low"].astype(float) > rules.HIGH
    models = " and ".join(dict.fromkeys(rows["model"]))  # pairs are counted once for each model
    said = [
        f"With {words.percent(rows['poison_rate'].max())} of the training rows poisoned, {len(strong_rows(rows))} of "
        f"{len(rows)} pairs of threat and attack ({models}) succeed on "
        f"more than {words.percent(rules.HIGH)} of the triggered inputs (mean). The whole 95 % interval lies above it "
        f"for {int((above & many).sum())} of the {int(many.sum())} pairs with several seeds, over which it is taken, "
        f"and for {int((above & ~many).sum())} of the {int((~many).sum())} with one, where it knows nothing of other "
        f"seeds. The strongest reaches {_extreme(rows, 'max')}, the weakest {_extreme(rows, 'min')}."
    ]
    if len(silent):
        said.append(f"Without the trigger, backdoors fire on at most {_extreme(silent, 'max')} of the inputs.")
    if len(cost):
        worst = cost.loc[cost["value"].idxmin()]
        change = words.number(worst["value"], worst["low"], worst["high"], digits=3)
        said.append(
            "On clean inputs, the poisoned model that lost most differs in utility from its clean-tuned control by "
            f"{change} ({_where(worst)})."
        )
    return " ".join(said)


def _where(row: pd.Series) -> str:
    return f"{row['attack']}, {words.threat(row)}, {words.rate(row)}, {row['model']}"


def _extreme(rows: pd.DataFrame, which: str) -> str:
    row = rows.loc[rows["value"].idxmax() if which == "max" else rows["value"].idxmin()]
    equal = int((rows["value"] == row["value"]).sum()) - 1
    return f"{words.interval(row)} ({_where(row)}{f', and {equal} more' if equal else ''})"


def overview(rows: pd.DataFrame) -> Figure:
    """Threats in rows, attacks in columns, one panel per model; rows: `overview_rows`."""
    if rows.empty:
        return figures.nothing("Nothing has been measured yet.")
    models, names = list(dict.fromkeys(rows["model"])), _known(rows["attack"], attacks.names())
    lines = {model: _known(part["threat"], threats.names()) for model, part in rows.groupby("model", sort=False)}
    heights = [0.42 * len(lines[model]) + 1.3 for model in models]
    figure, axes = figures.new_figure(
        1, 0.62 * len(names) + 3.2, sum(heights) / len(models), len(models), gridspec_kw={"height_ratios": heights}
    )
    for axis, model in zip(axes, models, strict=True):
        part = rows[rows["model"] == model]
        grid = part.pivot_table(index="threat", columns="attack", values="value", aggfunc="first")
        grid = grid.reindex(index=lines[model], columns=names)
        figures.success_map(axis, grid.rename(index=lambda name: name.replace("_", " ")))
        axis.set_title(model)
    return figure


def _known(values: pd.Series, order: list[str]) -> list[str]:
    return [name for name in order if name in set(values)]


def overview_words(rows: pd.DataFrame) -> dict[str, str]:
    """Alt text and caption of `overview`."""
    if rows.empty:
        return words.nothing_measured("Success rates of attacks on threats")
    lacking = [name for name in attacks.names() if name not in set(rows["attack"])]
    without = f" No cell at this rate: {', '.join(lacking)}." if lacking else ""
    most = "seed" if rows["n_seeds"].max() == 1 else "seeds"
    return {
        "alt": f"Heat map: success rate of {rows['attack'].nunique()} attacks (columns) on "
        f"{rows['threat'].nunique()} threats (rows), from {words.span(rows['value'], 2)}.",
        "caption": "Share of held-out inputs on which each backdoor fires with its full trigger, "
        f"{words.percent(rows['poison_rate'].max())} of the rows poisoned ({words.span(rows['n_seeds'])} {most}, "
        f"{words.span(rows['n'].dropna().astype(int))} inputs each). {_by_modality(rows)} Darker is more; n/a was not "
        f"measured or has no meaning.{without}",
    }


def _by_modality(rows: pd.DataFrame) -> str:
    """Strong backdoors by what their triggers are, as the finding of the figure."""
    told = []
    for modality in _known(rows["modality"], list(words.MODALITIES)):
        part = rows[rows["modality"] == modality]
        told.append(f"{len(strong_rows(part))} of {len(part)} with {modality} triggers")
    return f"Mean above {rules.HIGH:.2f}: {', '.join(told)}."


if __name__ == "__main__":
    print(markdown("reference"))
