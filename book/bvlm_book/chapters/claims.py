"""Does the paper's claim hold here? The claims, the rules that judge them, the verdicts.

The rules were written, and committed, before the grids that they judge were run; the chapter says which twelve cells
had been seen by then. They read the tidy table of `store.collect` and nothing else. Free of torch.

Common to all rules: a number is the mean over seeds with Student's 95 % interval of the seeds (where they all agree,
which would give it no width, the widest of their own: a change made later that only widens). Fewer than
`MIN_SEEDS` seeds support no verdict. "Above 90 %" means that the lower bound is above 0.90; "most" means more
than half. Skipped cells are no evidence, neither way. A scale model says nothing about a 7B model: for those, every
claim is untested until the store holds a record of one.
"""

import html
import re

import pandas as pd
from IPython.display import HTML, display

from bvlm_book import page, tables, words
from bvlm_book.page import chapter_title
from bvlm_book.rules import (
    CLAIMS,
    CONFIRMED,
    HIGH,
    MIN_SEEDS,
    REFUTED,
    UNTESTABLE,
    Verdict,
    rates,
    text_at_one_percent,
)
from bvlm_utils.store.table import headline
from bvlm_utils.threats import THREATS
from bvlm_utils.train.settings import TrainSettings

HOLDS = {True: "yes", False: "no", None: "cannot be judged"}
SEVEN_BILLION = re.compile(r"(?<![\w.])7b(?!\w)", re.IGNORECASE)
# The chapter (notebooks/NAME.ipynb) that shows the evidence of a claim at length.
CHAPTERS = {
    "text_1": "dose",
    "dominance": "modality",
    "saturation": "dose",
    "few": "dose",
    "memorised": "concept_substitution",
}


def of_seven_billion(table: pd.DataFrame) -> list[str]:
    """The models that the table has finished cells of and whose names say 7B, as those of published
    checkpoints do.
    """
    done = table[table["status"] == "done"]
    return [name for name in dict.fromkeys(done["model"]) if SEVEN_BILLION.search(name)]


def behind(found: Verdict) -> str:
    """How many pairs held of how many judged, and the range of their numbers with the widest bounds."""
    pairs = len(found.evidence)
    if not pairs:
        return "the store has no such pair"
    if not found.judged:
        return f"none of {pairs} pairs can be judged"
    said = f"holds in {found.holds} of {found.judged} judged pairs"
    if found.judged < pairs:
        said += f" ({pairs - found.judged} more cannot be judged)"
    judged = found.evidence[found.evidence["holds"].notna()]
    what, name = ("difference", "difference") if "difference" in judged else ("ASR", "value")
    said += f"; {what} {words.span(judged[name], 2)}"
    said += f", intervals within {judged['low'].min():.2f} and {judged['high'].max():.2f}"
    if "value_unperturbed" in judged:
        said += f"; unperturbed {words.span(judged['value_unperturbed'].dropna(), 2)}"
    return said


def overview(found: dict[str, dict[str, Verdict]], table: pd.DataFrame) -> pd.DataFrame:
    """One row per claim, fields in HTML for `page.show_html_table`. found: `verdicts` of the table."""
    lines = []
    for claim in CLAIMS:
        line = {
            "what is said": f"{html.escape(claim.says)}<br><em>{html.escape(claim.source)}</em>",
            "the rule": html.escape(claim.rule),
        }
        for model, of_model in found[claim.key].items():
            line[html.escape(model)] = f"<strong>{of_model.verdict}</strong>: {html.escape(behind(of_model))}"
        if not of_seven_billion(table):
            line["7B models"] = "<strong>untested</strong>: no record"
        links = [f'<a href="#claim-{claim.key}">below</a>']
        title = chapter_title(CHAPTERS[claim.key])
        if title:
            links.append(f'<a href="{CHAPTERS[claim.key]}.html">{html.escape(title)}</a>')
        lines.append(line | {"evidence": ", ".join(links)})
    return pd.DataFrame(lines)


def evidence_table(found: Verdict) -> pd.DataFrame:
    """The evidence of a verdict to read: a line per pair, with its data set where there are several."""
    evidence = found.evidence
    columns = {"attack": "attack", "threat": words.threat, "poison rate": words.rate}
    if evidence["dataset"].nunique() > 1:
        columns["data"] = "dataset"
    if (evidence["settings"] != "").any():
        columns["settings"] = "settings"
    if "difference" in evidence:
        halves = ("text half alone", "image half alone", "text only", "image only")
        columns |= {half: lambda r, half=half: words.number(r[half]) for half in halves}
        columns["difference"] = lambda r: words.number(r["difference"], r["low"], r["high"])
    else:
        columns |= {"poisoned rows": lambda r: int(r["n_poisoned"]), "ASR": words.interval}
        columns["seeds"] = lambda r: int(r["n_seeds"])
    if "value_unperturbed" in evidence:
        columns["unperturbed"] = lambda r: words.number(*(r[f"{n}_unperturbed"] for n in ("value", "low", "high")))
    columns["holds"] = lambda r: HOLDS[None if pd.isna(r["holds"]) else bool(r["holds"])]
    return tables.readable(evidence, columns)


def show_claim(key: str, found: dict[str, dict[str, Verdict]]) -> None:
    """Put a claim on the page: what is said, by whom, the rule, the verdicts, and where the evidence is."""
    claim = next(claim for claim in CLAIMS if claim.key == key)
    display(HTML(f'<div id="claim-{key}"></div>'))  # the first table links here
    title = chapter_title(CHAPTERS[key])
    page.say(
        f"**Said:** {claim.says} ({claim.source})",
        f"**Rule:** {claim.rule}",
        *(f"**{model}:** {of_model.verdict}; {behind(of_model)}." for model, of_model in found[key].items()),
    )
    if title:  # in HTML, as the book leaves Markdown links of outputs alone
        link = f'<a href="{CHAPTERS[key]}.html">{html.escape(title)}</a>'
        display(HTML(f"<p>More on the evidence: {link}</p>"))


def show_evidence(key: str, found: dict[str, dict[str, Verdict]]) -> None:
    """Put the pairs behind the verdicts on a claim on the page, a table per model."""
    for model, of_model in found[key].items():
        page.show_table(
            evidence_table(of_model),
            caption=f"{model}: the pairs that the rule names, with 95 % intervals.",
            empty=f"{model}: the store holds no pair that the rule names.",
        )


def sentences(found: dict[str, dict[str, Verdict]], table: pd.DataFrame) -> list[str]:
    """How many claims got which verdict, per model, and how much of the store can support one."""
    said = []
    for model in next(iter(found.values())):
        given = [found[claim.key][model].verdict for claim in CLAIMS]
        counts = ", ".join(f"{given.count(v)} {v}" for v in (CONFIRMED, REFUTED, UNTESTABLE))
        said.append(f"**{model}**, of {len(CLAIMS)} claims: {counts}.")
    seeds = table[table["status"] == "done"].groupby(tables.POINT)["seed"].nunique()
    return [
        *said,
        f"A verdict needs {MIN_SEEDS} seeds of a cell: {(seeds >= MIN_SEEDS).sum()} of the {len(seeds)} points of the "
        "grid in the store have them.",
    ]


def one_percent(table: pd.DataFrame) -> str:
    """What the verdict on 1 % rests on, and what the published tests say of the same pairs; "" without such pairs.

    The rule is the same; the number that it reads is `asr_published` in place of a threat's headline.
    """
    told, rows = _by_both_tests(table)
    if not told:
        return ""
    return (
        f"The verdict on 1 % is one on {' or '.join(map(str, sorted(rows)))} rows, one pass, by stricter tests than "
        f"the published ones: pairs whose mean is above {words.percent(HIGH)} are {'; '.join(told)}"
    )


def more_passes(table: pd.DataFrame) -> str:
    """The same count for cells that differ in nothing but the number of passes over the data; "" without such cells."""
    usual, said = TrainSettings().epochs, []
    for passes in sorted(set(table["epochs"].dropna().astype(int)) - {usual}):
        told, _ = _by_both_tests(table[table["settings"] == f"epochs={passes}"].assign(settings=""))
        if told:
            said.append(f"with {passes} passes they are {'; '.join(told)}")
    if not said:
        return ""
    return f"Of the same attacks at 1 %, {'; '.join(said)}. No verdict has been taken on these runs yet."


def _by_both_tests(table: pd.DataFrame) -> tuple[list[str], set[int]]:
    """Per model, how many pairs at 1 % have a mean above HIGH by our test and by the published; their poisoned rows."""
    published = table[table["metric"] == "asr_published"]
    published = published.assign(metric=published["threat"].map({name: headline(name) for name in THREATS.names()}))
    told, rows = [], set()
    for model in dict.fromkeys(table["model"]):
        ours, theirs = (text_at_one_percent(rates(one, model)) for one in (table, published))
        if len(ours) and len(theirs):
            strong = [int((one["value"] > HIGH).sum()) for one in (ours, theirs)]
            single = ", single runs" if ours["n_seeds"].max() == 1 else ""
            counts = f"{strong[0]} of {len(ours)} by ours and {strong[1]} of {len(theirs)} by theirs"
            told.append(f"{counts} ({model}{single})")
            rows |= set(ours["n_poisoned"].astype(int))
    return told, rows


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
