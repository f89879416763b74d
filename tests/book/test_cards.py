"""The models' chapter says what the cards hold, and "n/a" where they hold nothing."""

import json

import pytest

from bvlm_book.chapters.models import reached, recipes
from bvlm_utils import paths
from bvlm_utils.errors import InputError
from bvlm_utils.models import cards


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    for name in ("seeing", "unmeasured"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    skills = [
        {"name": "VQA accuracy", "value": 0.95, "threshold": 0.9, "n": 100, "low": 0.9, "high": 0.98},
        {"name": "refusals", "value": 0.8, "threshold": 0.95, "n": 50, "low": 0.7, "high": 0.9},
        {"name": "twin", "value": 0.5, "threshold": None, "n": 50, "low": 0.4, "high": 0.6},
    ]
    card = {
        "class": "Llava",
        "parameters": 5012928,
        "skills": skills,
        "training": [{"device": "cpu", "seconds": 120.0, "recipe": {"seed": 0}}],
    }
    (tmp_path / "seeing" / "card.json").write_text(json.dumps(card))


def test_skills_and_what_was_asked_of_them():
    said = reached(cards.skills())
    assert said["required"] == "1 of 2"
    assert said["closest"] == "seeing, refusals, 0.800 [0.700, 0.900] where 0.95 was asked"


def test_recipes_leave_out_what_no_card_says():
    rows = recipes().set_index("model")
    assert rows.loc["seeing", "parameters"] == "5,012,928" and rows.loc["seeing", "training time"] == "2 min"
    assert rows.loc["unmeasured"].isna().all()
    assert reached(cards.skills(["unmeasured"])) == {"required": "0 of 0", "closest": "n/a"}


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="no model 'blind'"):
        cards.skills(["blind"])
