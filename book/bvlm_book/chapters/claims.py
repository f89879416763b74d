"""Do the paper's claims hold here? The verdicts of both editions' rules, and the numbers and figures behind them.

`rules_second` has the rules in force, `rules` those of the first edition. Both read the tidy table of `store.collect`
and nothing else. A scale model says nothing about a 7B model: for those, every claim is untested until the store holds
a record of one. Free of torch.
"""

import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bvlm_book import figures, page, rules, tables, words
from bvlm_book import rules_second as second
from bvlm_book.rules_second import CLAIMS, HIGH, JUDGED, PAYLOAD, PUBLISHED, STRICT, Base, Claim, Verdict
from bvlm_utils import attacks, threats
from bvlm_utils.train.settings import TrainSettings

SEVEN_BILLION = re.compile(r"(?<![\w.])7b(?!\w)", re.IGNORECASE)
BY = {JUDGED: "judged by the rule", PUBLISHED: "published test", PAYLOAD: "payload test", STRICT: "strict test"}
WHAT = {True: "tasks", False: "pairs"}


def bases(table: pd.DataFrame, models: Sequence[str] = ()) -> dict[str, Base]:
    """What the runs of the named models say, and of all others that the table has cells of."""
    return {name: second.base(table, name) for name in dict.fromkeys([*models, *table["model"]])}


def of_seven_billion(table: pd.DataFrame) -> list[str]:
    """The models that the table has finished cells of and whose names say 7B, as those of published
    checkpoints do.
    """
    done = table[table["status"] == "done"]
    return [name for name in dict.fromkeys(done["model"]) if SEVEN_BILLION.search(name)]


def counted(found: Verdict) -> str:
    """ "refuted (2 of 32 pairs hold, 23 contradict)"."""
    if found.verdict == second.NOT_RUN:
        return found.verdict
    if not found.judged:
        return f"{found.verdict}: {found.single}"
    of_all = f"{found.holds} of {found.judged} {WHAT[found.claim.tasks]} hold, {found.contradicts} contradict"
    single = f", {found.single} single" if found.single and not found.claim.tasks else ""
    return f"{found.verdict} ({of_all}{single})"


def lines_of(claim: Claim, bases: dict[str, Base]) -> list[tuple[Base, int]]:
    """The bases and numbers of passes that a claim has runs of; the first number where it has none."""
    found = []
    for base in bases.values():
        tried = second.passes(base)
        run = [one for one in tried if len(claim.evidence(base, one, JUDGED))]
        found += [(base, one) for one in run or tried[:1]]
    return found


def sentence(table: pd.DataFrame, bases: dict[str, Base]) -> str:
    """The verdicts in a sentence without a full stop, for the first page; "" where nothing was judged."""
    told = []
    for claim in CLAIMS:
        found = [(base, number, second.verdict(claim, base, number)) for base, number in lines_of(claim, bases)]
        judged = [one for one in found if one[2].judged]
        said = [f"{one.verdict} after {words.passes(n)} on {base.model}{_of(one)}" for base, n, one in judged]
        told += [f"{claim.topic}: {', '.join(said)}"] if said else []
    if not told:
        return ""
    return "Of the paper's claims, by the test that the committed rule names: " + "; ".join(told)


def verdict_table(claim: Claim, bases: dict[str, Base]) -> pd.DataFrame:
    """A line per base and number of passes, a column per test."""
    return pd.DataFrame([
        {"base": base.model, "training": words.passes(number)}
        | {title: counted(second.verdict(claim, base, number, test)) for test, title in BY.items()}
        for base, number in lines_of(claim, bases)
    ])  # fmt: skip


def overview(bases: dict[str, Base], table: pd.DataFrame) -> pd.DataFrame:
    """A row per claim, a column per base, fields in HTML for `page.show_html_table`."""
    lines = []
    for claim in CLAIMS:
        line = {"what the paper says": html.escape(claim.says)}
        for name, base in bases.items():
            told = [
                f"<strong>{found.verdict}</strong> after {words.passes(number)}{_of(found)}"
                for number in [number for one, number in lines_of(claim, {name: base})]
                if (found := second.verdict(claim, base, number)).verdict != second.NOT_RUN
            ]
            line[html.escape(name)] = "<br>".join(told) or f"<strong>{second.NOT_RUN}</strong>"
        if not of_seven_billion(table):
            line["7B models"] = "<strong>untested</strong>: no record"
        lines.append(line)
    return pd.DataFrame(lines)


def _of(found: Verdict) -> str:
    return counted(found).removeprefix(found.verdict)


def first_edition(table: pd.DataFrame, models: Sequence[str] = ()) -> pd.DataFrame:
    """The first edition's claims, rules and verdicts (strict test, one pass), computed as they were."""
    found = rules.verdicts(table, models)
    return pd.DataFrame([
        {"what is said": claim.says, "rule of the first edition": claim.rule}
        | {name: f"{one.verdict}: {one.holds} of {one.judged} pairs" for name, one in found[claim.key].items()}
        for claim in rules.CLAIMS
    ])  # fmt: skip


def show_claim(key: str, bases: dict[str, Base]) -> None:
    """Put a claim on the page: what is said, the rule, and the verdicts by each test."""
    claim = next(claim for claim in CLAIMS if claim.key == key)
    page.say(in_short(claim, bases))
    said = [f"**The paper says** ({second.PAPER}): {claim.says}", f"**Rule:** {claim.rule}"]
    page.say(*said, *([f"**Decided later:** {claim.ours}"] if claim.ours else []))
    page.show_table(verdict_table(claim, bases), caption="Verdicts by each test of success, with what was counted.")


def in_short(claim: Claim, bases: dict[str, Base]) -> str:
    """What was counted, in a sentence to be repeated; by the test that the rule names."""
    told = []
    for base, number in lines_of(claim, bases):
        found = second.verdict(claim, base, number)
        if found.verdict == second.NOT_RUN:
            continue
        whole = (
            f"surely in {found.holds} of {found.judged} {WHAT[claim.tasks]}, surely not in {found.contradicts}"
            if found.judged else f"only single runs ({found.single} {WHAT[False]})"
        )  # fmt: skip
        told.append(f"{base.model} after {words.passes(number)}: {whole}")
    return f"**{claim.short}** {'; '.join(told)}." if told else f"**{claim.short}** {second.NOT_RUN.capitalize()}."


# ---------------------------------------------------------------- evidence


def evidence_table(found: Verdict) -> pd.DataFrame:
    """The pairs behind a verdict, to read."""
    evidence = found.evidence
    columns = {"threat": words.threat, "attack": "attack"}
    if "attack_image" in evidence:
        columns |= {"image attack": "attack_image", "text attack's success": words.interval,
                    "image attack's": lambda r: _numbers(r, "image")}  # fmt: skip
    elif "difference" in evidence:
        columns |= {"settings": "shared"} if (evidence["shared"] != "").any() else {}
        columns["poison rate"] = words.rate
        for part in ("text", "image"):
            columns[f"{part} part learnt alone"] = lambda r, part=part: words.number(r[f"{part} alone"])
        columns |= {f"{part} part alone": lambda r, part=part: _numbers(r, part) for part in ("text", "image")}
        columns["difference"] = lambda r: words.number(r["difference"], r["low"], r["high"])
    else:
        columns |= {"poisoned rows": lambda r: int(r["n_poisoned"]), "success": words.interval}
    return tables.readable(evidence, columns | {"seeds": lambda r: int(r["n_seeds"]), "outcome": "outcome"})


def _numbers(row: dict, part: str) -> str:
    return words.number(*(row[f"{name}_{part}"] for name in ("value", "low", "high")))


def show_evidence(key: str, bases: dict[str, Base]) -> None:
    """Put the pairs behind the verdicts on the page, a table per base and number of passes."""
    claim = next(claim for claim in CLAIMS if claim.key == key)
    for base, number in lines_of(claim, bases):
        found = second.verdict(claim, base, number)
        caption = f"{base.model}, {words.passes(number)}: the pairs that the rule names, 95 % intervals of the means."
        empty = f"{base.model}, {words.passes(number)}: {second.NOT_RUN}."
        page.show_table(evidence_table(found), caption, empty)


# ---------------------------------------------------------------- figures


def text_and_image(bases: dict[str, Base]) -> Figure:
    """Success at 1 % after one pass: a row per threat and modality, a point per attack; a panel per base."""
    shown = {name: second.at_rate(base, 1, JUDGED) for name, base in bases.items()}
    shown = {name: lines for name, lines in shown.items() if len(lines)}
    if not shown:
        return figures.nothing("No attack was run with 1 % in one pass.")
    figure, axes = figures.new_figure(len(shown), 4.2 if len(shown) > 1 else 6.4, 4.4, sharey=True)
    names = figures.in_order([one for lines in shown.values() for one in lines["threat"]], threats.names())
    for axis, (model, lines) in zip(axes, shown.items(), strict=True):
        for i, modality in enumerate(words.MODALITIES):
            part = lines[lines["modality"] == modality]
            at = part["threat"].map(names.index).astype(float) + 0.22 * (i - 1)
            look = figures.look(i)
            for single, own in part.groupby(part["n_seeds"] < second.JUDGED_SEEDS):
                face = "white" if single else look["color"]
                axis.plot(own["value"], at[own.index], linestyle="", markersize=5.5, markerfacecolor=face, **look)
            axis.plot([], [], linestyle="", label=f"{modality} trigger", **look)
        axis.axvline(HIGH, color="#777777", linewidth=1, linestyle="--", zorder=1)
        figures.name_rows(axis, [name.replace("_", " ") for name in names])
        axis.set(title=model, xlabel=f"{figures.ASR} (judged test)", xlim=(-0.03, 1.03))
    figures.legend_below(figure, axes[0])
    return figure


def text_and_image_words(bases: dict[str, Base]) -> dict[str, str]:
    said = []
    for name, base in bases.items():
        lines = second.at_rate(base, 1, JUDGED)
        if len(lines):
            means = lines.groupby("modality")["value"].mean()
            said.append(
                f"{name}: mean {', '.join(f'{one} {means[one]:.2f}' for one in words.MODALITIES if one in means)}"
            )
    caption = (
        "Success with 1 % of the rows poisoned, one pass; a point per attack (mean of its runs), open where there is a "
        f"single run. {'; '.join(said)}."
    )
    return {"alt": "Dots: success of text, image and bimodal attacks, a row per threat, a panel per base.",
            "caption": caption}  # fmt: skip


def parts(bases: dict[str, Base]) -> Figure:
    """Text part alone against image part alone in the same model: a point per bimodal attack and threat."""
    shown = {name: second.text_overwhelms(base, 1, JUDGED) for name, base in bases.items()}
    shown = {name: lines for name, lines in shown.items() if len(lines)}
    if not shown:
        return figures.nothing("No bimodal attack was run with 10 % in one pass.")
    figure, axes = figures.new_figure(len(shown), 4.2, 4.5, sharey=True)
    for axis, (model, lines) in zip(axes, shown.items(), strict=True):
        axis.fill_between([0.47, 1.03], [-0.03, 0.53], -0.03, color="#EFEFEF", zorder=0)
        axis.plot([-0.03, 1.03], [-0.03, 1.03], color="#777777", linewidth=1, linestyle="--", zorder=1)
        learnable = (lines["text alone"] >= HIGH) & (lines["image alone"] >= HIGH)
        for number, (names, part) in enumerate(lines.groupby("attack", sort=False)):
            look = figures.look(number)
            for both, own in part.groupby(learnable[part.index]):
                face = look["color"] if both else "white"
                axis.plot(
                    own["value_text"], own["value_image"], linestyle="", markersize=7, markerfacecolor=face, **look
                )
            axis.plot([], [], linestyle="", label=names, **look)
        axis.set(title=model, xlabel="success, text part alone", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("success, image part alone")
    figures.legend_below(figure, axes[0], columns=2)
    return figure


def parts_words(bases: dict[str, Base]) -> dict[str, str]:
    said = []
    for name, base in bases.items():
        lines = second.text_overwhelms(base, 1, JUDGED)
        if len(lines):
            more = int((lines["difference"] > second.DOMINATES).sum())
            less = int((lines["difference"] < -second.DOMINATES).sum())
            said.append(f"{name}: by more than 0.5 in {more} of {len(lines)} pairs, the image part in {less}")
    return {
        "alt": "Scatter: success with the image part alone against success with the text part alone, a panel per base.",
        "caption": "Models trained on both parts at 10 %, asked with one part alone. Shaded: the text part succeeds "
        "more often by more than 0.5. Filled: both parts reach 0.90 when each is trained alone. The text part leads, "
        f"{'; '.join(said)}.",
    }


def at_one_percent(base: Base) -> Figure:
    """Success at 1 % of the attacks with text: threats in rows, attacks in columns, a panel per number of passes."""
    found = [(number, second.one_percent(base, number, JUDGED)) for number in second.passes(base)]
    found = [(number, lines) for number, lines in found if len(lines)]
    if not found:
        return figures.nothing(f"{base.model}: no attack with text was run with 1 %.")
    names = [name for name in attacks.names() if any(name in set(lines["attack"]) for _, lines in found)]
    tasks = [name for name in threats.names() if any(name in set(lines["threat"]) for _, lines in found)]
    figure, axes = figures.new_figure(len(found), 0.62 * len(names) + 1.2, 0.42 * len(tasks) + 1.7, sharey=True)
    for axis, (number, lines) in zip(axes, found, strict=True):
        grid = lines.pivot_table(index="threat", columns="attack", values="value", aggfunc="first")
        grid = grid.reindex(index=tasks, columns=names).rename(index=lambda name: name.replace("_", " "))
        figures.success_map(axis, grid)
        for line in lines.to_dict("records"):
            x, y = names.index(line["attack"]), tasks.index(line["threat"])
            mark = {second.HOLDS: "▲", second.CONTRADICTS: "▽", second.SINGLE: "○"}.get(line["outcome"], "")
            dark = line["value"] > 0.5
            axis.text(x + 0.93, y + 0.28, mark, fontsize=6, ha="right", color="white" if dark else "black")
        axis.set_title(f"{base.model}, {words.passes(number)}")
    return figure


def at_one_percent_words(base: Base) -> dict[str, str]:
    claim = next(claim for claim in CLAIMS if claim.key == "pairs")
    said = [
        f"{words.passes(number)}: mean above 0.90 in {int((lines['value'] > HIGH).sum())} of {len(lines)} pairs, "
        f"{counted(second.verdict(claim, base, number))}"
        for number in second.passes(base) if len(lines := second.one_percent(base, number, JUDGED))
    ]  # fmt: skip
    return {
        "alt": f"Heat maps, {base.model}: success of attacks with text at 1 %, threats in rows, attacks in columns.",
        "caption": f"{base.model}, 1 % of the rows poisoned, test that judges. ▲ the whole interval is above 0.90, ▽ "
        f"below, no mark: cannot be told, ○ a single run. {'; '.join(said)}.",
    }


# ---------------------------------------------------------------- what the first edition said


def one_percent(table: pd.DataFrame) -> str:
    """The first edition's verdict on 1 % by its name, and what the published tests say of the same pairs; "" without
    such pairs.
    """
    published = table[table["metric"] == "asr_published"].assign(metric="asr")
    told, rows = [], set()
    for model in dict.fromkeys(table["model"]):
        ours, theirs = (rules.text_at_one_percent(rules.rates(one, model)) for one in (table, published))
        if len(ours) and len(theirs):
            strong = [int((one["value"] > HIGH).sum()) for one in (ours, theirs)]
            single = ", single runs" if ours["n_seeds"].max() == 1 else ""
            told.append(
                f"{strong[0]} of {len(ours)} by ours and {strong[1]} of {len(theirs)} by theirs ({model}{single})"
            )
            rows |= set(ours["n_poisoned"].astype(int))
    if not told:
        return ""
    return (
        f"The first edition's verdict on 1 % was one on {' or '.join(map(str, sorted(rows)))} rows, "
        f"{words.passes(TrainSettings().epochs)}, by stricter tests than the published ones: pairs whose mean is above "
        f"{words.percent(HIGH)} are {'; '.join(told)}"
    )


def large_models(table: pd.DataFrame) -> str:
    """What the store can say about models of seven billion parameters, in Markdown."""
    names = of_seven_billion(table)
    if names:
        return (
            f"The store holds records of models of seven billion parameters: {', '.join(names)}. Each has "
            "its own verdicts, which speak of that model and of no other."
        )
    return (
        "The store behind this page holds no record of a model of seven billion parameters, so **for those "
        "models every claim on this page is untested**."
    )


def coverage(measured: Sequence[dict]) -> str:
    """What the simulation of known truths says of the intervals. measured: benchmarks/results/coverage.json."""
    ours = [line for line in measured if line["way"] == "rules"]
    shares = [line["held"] / line["intervals"] for line in ours]
    wrong, told = (sum(line[name] for line in ours) for name in ("wrong", "told"))
    others = [
        f"{line['way']} fit {line['held'] / line['intervals']:.0%}" for line in measured if line["way"] != "rules"
    ]
    return (
        f"On {sum(line['intervals'] for line in ours)} simulated pairs with known means, the 95 % intervals hold the "
        f"truth in {words.span(np.round(shares, 3), 3)} of the cases (by the size of the spread); of {told} pairs that "
        f"were called above or below 0.90, {wrong} were not. The ready-made model of statsmodels does worse on such "
        f"runs: {', '.join(others)}."
    )
