"""Each number in a sentence leads to the experiments that it was counted from."""

import html
import importlib
import json
import re
from urllib.parse import parse_qsl

import myst_nb
import pandas as pd
import pytest

from bvlm_book import behind, page
from bvlm_utils import paths

# Glued numbers that no experiment of the store stands behind: benchmarks, model cards, rules, what is missing.
OTHER_SOURCES = re.compile(
    r"attacks_perplexity|audit_margin|claims_(coverage|expected|true|false|open)|cost_(gain|loop|files)|gpu_\w+"
    r"|defences_(lacking\w*|rows|came_\w+)|small_patch_seen|talk_\w+"
)


def line(run_id, attack="SIG", rate=0.1, seed=0, **more):
    about = {"model": "m", "dataset": "d", "threat": "jail_break", "attack": attack, "poison_rate": rate, "seed": seed}
    usual = {"settings": "", "train_rows": 6000, "negatives": 0.0, "status": "done"}
    return about | usual | {"run_id": run_id} | more


TABLE = pd.DataFrame([
    line("a"), line("a"), line("b", seed=1), line("c", "MABA"), line("d", "MABA", 0.01), line("e", status="skipped"),
    line("f", settings="half=text"),
])  # fmt: skip


def test_lines_of_any_kind_find_their_experiments():
    assert list(behind.experiments(TABLE)["run_id"]) == ["a", "b", "c", "d", "f"]
    assert list(behind.experiments(TABLE, TABLE[TABLE["run_id"] == "c"])["run_id"]) == ["c"]
    points = pd.DataFrame([{"attack": "SIG", "poison_rate": 0.1, "value": 0.5}])  # over seeds
    assert list(behind.experiments(TABLE, points)["run_id"]) == ["a", "b", "f"]


def test_a_number_names_its_experiments_and_selects_them():
    made = behind.link(TABLE, TABLE[TABLE["run_id"].isin(["a", "d"])])
    assert made.endswith(">{}</a>")
    (where,) = re.findall(r'href="\.\./notebooks/leaderboard\.html#([^"]*)"', made)
    asked = parse_qsl(html.unescape(where), keep_blank_values=True)
    assert [value for name, value in asked if name == "attack"] == ["SIG", "MABA"]
    assert ("rate", "0.01") in asked and ("settings", "") in asked and ("train_rows", "6000") in asked
    (title,) = re.findall(r'title="([^"]*)"', made)
    assert "2 experiments: m; jail break; SIG, MABA; 1 %, 10 % poisoned." in title
    assert "among 5 of the same kinds" in title, "both attacks at both rates, a seed and a skipped one more"
    assert behind.link(TABLE, TABLE[:0]) == '<span class="bvlm-number" title="not run yet">{}</span>'
    assert 'leaderboard.html#tab=defences"' in behind.link(TABLE, TABLE, "defences")


def test_many_names_are_counted():
    many = pd.DataFrame([line(str(i), f"attack {i}", rate=i / 100) for i in range(1, 6)])
    assert "; 5 attacks; 5 poison rates." in behind.told(many, 5)


def test_glued_numbers_are_text_and_html(monkeypatch):
    kept = []
    monkeypatch.setattr(page, "display", lambda data, **about: kept.append(list(data.values())))
    page.glue({"one": "1 < 2", "two": 3}, "x", TABLE, {"one": TABLE})
    (text, linked), two = kept
    assert text == "'1 < 2'" and linked.startswith('<a class="bvlm-number"') and linked.endswith(">1 &lt; 2</a>")
    assert two == ["'3'", "3"]


def test_numbers_are_glued_as_myst_nb_does_it(monkeypatch):
    kept = []
    for module, name in ((page, "display"), (importlib.import_module("myst_nb.ext.glue"), "ipy_display")):
        monkeypatch.setattr(module, name, lambda *data, **about: kept.append((*data, about)))
    page.glue({"one": "1 < 2"}, "x")
    myst_nb.glue("x_one", Shown("1 < 2"), display=False)
    assert kept[0] == kept[1]


class Shown(str):
    def _repr_html_(self):
        return "1 &lt; 2"


def test_a_file_is_offered_in_a_build_alone(monkeypatch, tmp_path):
    monkeypatch.delenv(page.DOWNLOADS, raising=False)
    page.offer("x-numbers.csv", TABLE)
    monkeypatch.setenv(page.DOWNLOADS, str(tmp_path / "new"))
    page.offer("x-numbers.csv", TABLE.assign(empty=None))
    (file,) = tmp_path.rglob("*.csv")
    assert list(pd.read_csv(file)) == list(TABLE)


# ---------------------------------------------------------------- the built book


def glued(file):
    """(role, name) of the numbers in a page's sentences."""
    text = file.read_text(encoding="utf-8")
    return [(role, key.rpartition("::")[2]) for role, key in re.findall(r"\{(glue:\w*)\}`([^`]+?)(?::s)?`", text)]


@pytest.mark.parametrize("file", [*paths.BOOK.glob("*.md"), *paths.NOTEBOOKS.glob("*.ipynb")], ids=lambda one: one.stem)
def test_numbers_without_experiments_are_few(file):
    for role, name in glued(file):
        assert (role == "glue:text") == bool(OTHER_SOURCES.fullmatch(name)), name


def test_each_number_selects_experiments_on_the_leaderboard(book):
    text = (book / "notebooks" / "leaderboard.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    raw = pd.DataFrame(data["raw"]["data"], columns=data["raw"]["columns"]).assign(rate=lambda rows: rows.poison_rate)
    links = {}
    for file in [*book.glob("book/*.html"), *book.glob("notebooks/*.html")]:
        text = file.read_text(encoding="utf-8")
        found = re.findall(
            r'<a class="bvlm-number" href="\.\./notebooks/leaderboard\.html#([^"]*)" title="([^"]+)">', text
        )
        not_run = re.findall(r'<span class="bvlm-number" title="not run yet">([^<]*)</span>', text)
        assert not [one for one in not_run if not re.match(r"no |none|n/a|0 of 0", one)], file.stem
        (source,) = [*paths.BOOK.glob(f"{file.stem}.md"), *paths.NOTEBOOKS.glob(f"{file.stem}.ipynb")]
        assert len(found) + len(not_run) == sum(role == "glue:" for role, _ in glued(source)), file.stem
        links |= dict(found)
    assert len(links) > 20
    for where, title in links.items():
        assert re.match(r"\d+ experiments?: ", title), title
        asked = parse_qsl(html.unescape(where), keep_blank_values=True)
        if asked[0][0] == "tab":
            assert data[{"defences": "defended"}[asked[0][1]]]["data"]
            continue
        chosen = raw
        for name in dict(asked):
            values = [value for other, value in asked if other == name]
            chosen = chosen[chosen[name].map(lambda one: one if isinstance(one, str) else f"{one:g}").isin(values)]
        assert len(chosen) >= int(title.split()[0]), (where, title)


def test_a_page_offers_its_own_numbers_and_a_threat_its_answers(book):
    for name in ("dose", "targeted_refusal", "defences"):
        assert f"_static/results/{name}-numbers.csv" in (book / "notebooks" / f"{name}.html").read_text()
    for file in (book / "_static" / "results").glob("*-*.csv*"):
        assert file.stat().st_size < 1_500_000 and len(pd.read_csv(file, nrows=5)), file.name
    said = pd.read_csv(book / "_static" / "results" / "targeted_refusal-answers.csv.gz")
    assert {"attack", "condition", "prompt", "response", "payload"} <= set(said) and len(said) > 1000
