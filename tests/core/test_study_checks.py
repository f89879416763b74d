"""What is checked before a run is checked once for all cells that it is the same for, and nothing goes by unchecked."""

import json

import numpy as np
import pytest
from PIL import Image

from bvlm_utils.data import files
from bvlm_utils.errors import InputError
from bvlm_utils.run import study

ROWS = 60


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Data of one's own by the prompts of its rows."""
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
    for number, picture in enumerate(levels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")

    def write(prompt):
        rows = []
        for number in range(ROWS):
            said = [{"from": "human", "value": f"<image>\n{prompt(number)}"}, {"from": "gpt", "value": "A dog."}]
            rows.append({"id": number, "image": f"{number}.png", "conversations": said})
        (tmp_path / "own.json").write_text(json.dumps(rows))
        return "llava-json:./own.json"

    return write


def cells(dataset, **given):
    settings = {"attacks": ["BadNets-T", "MABA"], "poison_rates": [0.1, 0.2], "seeds": [0, 1], "test_rows": 4}
    return study.cells("targeted_refusal", dataset=dataset, train_rows=20, **settings | given)


@pytest.fixture
def looks(monkeypatch):
    """Which rows and questions of cells are made."""
    found = {"manifest": [], "questions": []}
    for name, cells in found.items():
        make = getattr(study, name)
        monkeypatch.setattr(
            study, name, lambda bench, cell, make=make, cells=cells: (cells.append(cell), make(bench, cell))
        )
    return found


def test_a_trigger_that_changes_every_row_is_looked_at_once_for_all_models_rates_and_seeds(own, looks):
    dataset = own(lambda number: "What does the dog do?")
    study.check_rows([*cells(dataset, model=["tiny-llava", "tiny-qwen2.5-vl"]), *cells(dataset, epochs=3)])
    assert [cell.attack for cell in looks["questions"]] == ["BadNets-T", "MABA"] and not looks["manifest"]


@pytest.mark.parametrize(
    "other", [{"trigger_seed": 1}, {"test_rows": 5}, {"attack_params": {"word": "zq"}}, {"threat_params": {}}]
)
def test_what_changes_a_question_is_looked_at_again(own, looks, other):
    dataset = own(lambda number: "What does the dog do?")
    one = {"attacks": ["BadNets-T"]}
    study.check_rows([*cells(dataset, **one), *cells(dataset, **one, **other)])
    assert len(looks["questions"]) == (1 if "threat_params" in other else 2)


def test_rows_that_words_do_not_change_are_refused_where_a_cell_takes_them_and_nowhere_else(own):
    def bare(numbers):
        return own(lambda number: f"{number} + 2?" if number in numbers else "What does the dog do?")

    def taken(cell):
        bench = study.Bench(*study.bench_key(cell))
        prompts = [study.manifest(bench, cell).rows, study.questions(bench, cell)[-2].positions]
        return {row.position for row in prompts[0]}, set(prompts[1])

    good = cells(own(lambda number: "What does the dog do?"))
    trained = [files.load("llava-json:./own.json", split)["row_id"] for split in ("train", "test")]
    numbers = [[int(name.split("/")[2]) for name in names] for names in trained]
    poisoned = set().union(*(taken(cell)[0] for cell in good))
    free = next(at for at in range(20) if at not in poisoned)
    study.check_rows(cells(bare({numbers[0][free]})))
    last = cells("llava-json:./own.json", poison_rates=[0.2], seeds=[1], attacks=["MABA"])[0]
    for number in (numbers[0][min(taken(last)[0])], numbers[1][0]):
        with pytest.raises(InputError, match=rf"change nothing in the prompt.*{number} \+ 2"):
            study.check_rows(cells(bare({number})))
