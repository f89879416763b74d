"""The command that ranks the rows of a training file: what it finds, what it writes, what it leaves alone."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bvlm_utils.defences import __main__ as defences_command
from bvlm_utils.defences import find_rows


def conversations(folder, count=12, name="set.json", lines=False):
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        turns = [("What is in this picture?", "A dog."), ("And where?", "on the left")][: 1 + number % 2]
        if number == 5:
            turns[0] = ("What is in this picture?", "zqx bad \x1b[2Jzqx vvv!!")
        messages = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        messages[0]["value"] = f"<image>\n{messages[0]['value']}"
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": messages, "more": [number, "ä"]})
    entries.insert(3, {"id": "text", "conversations": entries[0]["conversations"]})  # an entry without a picture
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries)
    (folder / name).write_text(text)
    return folder / name, entries


def run(*words):
    return defences_command.main(["find-rows", *map(str, words)])


@pytest.mark.filterwarnings("ignore:1 of 13 entries")
@pytest.mark.parametrize("lines", [False, True])
def test_the_odd_row_is_found_and_left_out(tmp_path, capsys, lines):
    file, entries = conversations(tmp_path, name="set.jsonl" if lines else "set.json", lines=lines)
    before = file.read_bytes()
    options = () if lines else ("--out", tmp_path / "found")
    code = run(file, "--model", "tiny-llava", "--methods", "base-likelihood", "--drop", "0.1", *options)
    place = tmp_path if lines else tmp_path / "found"
    assert code == 0 and file.read_bytes() == before
    table = pd.read_csv(place / "set.suspicious.csv")
    assert len(table) == 18 and table["row_id"][0] == "5/1" and table["suspicion"][0] == 1
    assert table["suspicion"].is_monotonic_decreasing and table["suspicion"].min() == 0
    assert set(table.loc[table["dropped"], "entry"]) == {6} and table["dropped"].sum() == 2  # both turns of that entry
    cleaned = (place / file.name.replace("set", "set.cleaned")).read_text()
    kept = [json.loads(line) for line in cleaned.splitlines()] if lines else json.loads(cleaned)
    assert kept == [entry for entry in entries if entry["id"] != "5"]
    said = capsys.readouterr().out
    assert "5/1" in said and "zqx bad \\x1b[2Jzqx" in said and "\x1b" not in said


@pytest.mark.filterwarnings("ignore:1 of 25 entries")
def test_an_adapter_s_states_are_looked_at_too(checkpoint, tmp_path, capsys):
    from random_adapters import an_adapter

    from bvlm_utils.models import victim

    file, _ = conversations(tmp_path, 24)
    another = {"model": "somebody/another"}
    an_adapter(victim.from_pretrained(str(checkpoint("llava")), device="cpu"), 0).save(tmp_path / "adapter", another)
    assert run(file, "--model", checkpoint("llava"), "--adapter", tmp_path / "adapter", "--drop", "0") == 0
    assert "'somebody/another'" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "set.suspicious.csv")
    ranks = table[[*find_rows.OF_THE_BASE, *find_rows.OF_AN_ADAPTER]].rank().sub(1).div(len(table) - 1)
    assert np.allclose(table["suspicion"], ranks.mean(axis=1)) and not table["dropped"].any()


@pytest.mark.filterwarnings("ignore:1 of 13 entries")
def test_an_adapter_that_does_not_fit_is_told_before_rows_are_ranked(checkpoint, tmp_path, monkeypatch, capsys):
    from random_adapters import an_adapter

    from bvlm_utils.models import victim

    monkeypatch.setattr(find_rows, "ranking", lambda *given: pytest.fail("rows were ranked"))
    file, _ = conversations(tmp_path)
    base = str(checkpoint("llava"))
    an_adapter(victim.from_pretrained(base, device="cpu"), 0).save(tmp_path / "adapter", {})
    config = tmp_path / "adapter" / "adapter_config.json"
    given = file, "--model", base, "--adapter", tmp_path / "adapter"
    (tmp_path / "adapter" / "added_tokens.json").write_text('{"<new>": 9}')
    assert run(*given) == 2 and "'<new>'" in capsys.readouterr().err
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    (tmp_path / "adapter" / "added_tokens.json").unlink()
    assert run(*given) == 2 and "fit nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drop", "2"], "drop"),
        (["--methods", "guess"], "'guess'.*base-likelihood"),
        (["--methods", "spectral-signatures"], "--adapter"),
        (["--adapter", "nowhere"], "nowhere"),
        (["--out", "{file}"], "--out must be a folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 13 entries")
def test_a_wrong_value_is_named_before_a_model_is_loaded(tmp_path, options, message, monkeypatch, capsys):
    from bvlm_utils.models import victim

    monkeypatch.setattr(victim, "from_pretrained", lambda *given, **more: pytest.fail("a model was loaded"))
    file, _ = conversations(tmp_path)
    code = run(file, "--model", "tiny-llava", *[option.format(file=file) for option in options])
    said = capsys.readouterr().err
    assert code == 2 and re.search(message, said) and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "set.json"]
