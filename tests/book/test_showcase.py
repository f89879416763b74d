"""What the store keeps of triggers and responses is put on the page as it is."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bvlm_book import examples
from bvlm_book import page as book_page
from bvlm_book.chapters import attacks
from bvlm_utils import study


def test_marks_what_the_trigger_added():
    assert examples.marked("What is left?", "What BadMagic is left?") == "What <mark>BadMagic</mark> is left?"
    assert examples.marked("a < b", "a < b I watched") == "a &lt; b <mark>I watched</mark>"
    assert examples.marked("same", "same") == "same"
    assert examples.marked("Name it.", "Name it BadMagic.") == "Name it <mark>BadMagic</mark>."
    assert examples.marked("a red car", "a [red] car") == "a <mark>[</mark>red<mark>]</mark> car"


def test_a_strip_is_split_into_its_pictures(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    white = np.full((8, 4, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([pictures[0], white, pictures[1], white, pictures[2]], axis=1)).save(
        tmp_path / "a.png"
    )
    assert np.array_equal(attacks.split_strip((tmp_path / "a.png").read_bytes(), gap=4), pictures)
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(tmp_path / "b.png")
    assert np.array_equal(attacks.split_strip((tmp_path / "b.png").read_bytes()), pictures)


@pytest.fixture
def shown(monkeypatch):
    """What is put on the page, as HTML or Markdown."""
    found = []
    for module in (book_page, examples):
        monkeypatch.setattr(module, "display", lambda one: found.append(one.data))
    return found


def pictures(source):
    """Alt text -> picture, of the pictures in HTML."""
    tags = re.findall(r'alt="([^"]+)" width="\d+" src="data:image/png;base64,([^"]+)"', source)
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for alt, data in tags}


CLEAN = np.full((2, 8, 8, 3), 100, np.uint8)
TRIGGERED = CLEAN + np.uint8(20)
PROMPTS = [("What is it?", "What cf is it?"), ("Name it.", "Name cf it.")]


def test_the_gallery_has_each_picture_its_difference_and_each_prompt_once(shown):
    examples.show_gallery([
        examples.Example("BadNets-T", CLEAN, CLEAN, PROMPTS), examples.Example("SIG", CLEAN, TRIGGERED, PROMPTS),
        examples.Example("BadNets-MM", CLEAN, TRIGGERED, PROMPTS),
    ])  # fmt: skip
    found = pictures(shown[0])
    assert len(found) == 1 + 2 * 2 and (found["What SIG changed"] == 187).all()
    assert shown[1].count("<mark>cf</mark>") == 1 and "BadNets-T" in shown[1] and "BadNets-MM" not in shown[1]
    assert "Name it." in shown[1], "the shortest prompt is shown"


def test_one_run_shows_both_models_without_and_with_the_trigger(shown, monkeypatch):
    (cell,) = study.cells("targeted_refusal", attacks=["BadNets-MM"])
    lines = [
        {"subject": who, "condition": condition, "row_id": row, "prompt": PROMPTS[row][condition == "both"],
         "answer": "a pig", "response": f"{who} <{condition}>", "part": "attack", "judged": row == 1,
         "success": False, "payload": who == "poisoned" and condition == "both"}
        for row in (0, 1) for condition in ("clean", "text", "both") for who in ("base", "control", "poisoned")
    ]  # fmt: skip
    monkeypatch.setattr(examples.store, "read", lambda one, store: {"status": "done"})
    monkeypatch.setattr(examples.store, "responses", lambda one, store: pd.DataFrame(lines))
    monkeypatch.setattr(examples.examples, "read", lambda one, store: (CLEAN, TRIGGERED, PROMPTS))
    examples.show_responses([cell])
    (source,) = shown
    assert "<mark>poisoned &lt;both&gt;</mark>" in source and source.count("<mark>") == 1
    assert "Name cf it." in source and "What" not in source and "base" not in re.sub("base64", "", source)
    assert [picture.mean() for picture in pictures(source).values()] == [100, 120], "of the judged input"
