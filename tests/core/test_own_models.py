"""A dry run opens people's own models as the run does: what the run would refuse is refused before it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from bvlm_utils import command, store
from bvlm_utils.errors import InputError
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.models import rehearsal, victim
from bvlm_utils.run import study

GOOD = {"dataset": "scenes-vqa", "attacks": ["BadNets-T"], "train_rows": 32, "test_rows": 4, "max_new_tokens": 8,
        "threat_params": {"sentence": "No."}}  # fmt: skip
FAMILIES = ["llava", "qwen2.5-vl", "smolvlm"]


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def in_template(words, which="chat_template.jinja"):
    def spoil(folder):
        (folder / which).write_text(words + (folder / which).read_text())

    return spoil


def weights(change):
    def spoil(folder):
        state = load_file(folder / "model.safetensors")
        change(state, min(name for name in state if "language" in name))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def reads(tokens):
    def spoil(folder):
        text = json.loads((folder / "config.json").read_text())["text_config"]
        change_json(folder / "config.json", text_config=text | {"max_position_embeddings": tokens})

    return spoil


def looks(**values):
    def spoil(folder):
        (file,) = folder.glob("*processor_config.json")
        whole = json.loads(file.read_text())
        change_json(file, **{"image_processor": whole["image_processor"] | values})

    return spoil


# how a folder is spoilt, parameters of the grid, what the sentence has to say
WRONG = {
    "a template longer than what is read": (in_template("word " * 600), {}, "give a shorter template"),
    "a template that leaves no room for rows": (in_template("word " * 120), {}, "A row of scenes-vqa"),
    "a template that leaves no room for the trigger": (
        in_template("word " * 60), {"attack_params": {"word": "big " * 150}}, "A row with BadNets-T"),
    "a template that takes no picture": (lambda at: (at / "chat_template.jinja").write_text("a"), {}, "no place"),
    "a template that raises": (in_template("{{ raise_exception('not today') }}"), {}, "not today"),
    "a template that puts the picture first": (
        lambda at: (at / "chat_template.jinja").write_text(
            "{{ bos_token }}USER: <image>{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == "
            "'text' %}{{ part['text'] }}{% endif %}{% endfor %}{{ ' ' }}{% endfor %}ASSISTANT:"),
        {"picture_last": True}, "leave picture_last out"),
    "an image processor without a size that is known": (
        looks(size={"longest_edge": 96}), {}, "a table with height and width"),
    "an image processor without a mean": (looks(image_mean=None), {}, "image_mean"),
    "a model that reads little": (reads(50), {}, "reads 50"),
    "rows that are longer than a model reads": (reads(130), {"max_new_tokens": 20, "threat_params": {}}, "130"),
    "a weight that is not there": (weights(lambda state, name: state.pop(name)), {}, "are missing"),
    "a weight of another size": (
        weights(lambda state, name: state.update({name: state[name][:1]})), {}, "another size"),
    "a weight too many": (weights(lambda state, name: state.update(x=state[name][:1].clone())), {}, "fit nothing"),
    "a rank above the width": (lambda at: None, {"lora_rank": 33}, "at most 32"),
}  # fmt: skip


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a random LLaVA."""
    return Path(shutil.copytree(checkpoint("llava"), tmp_path / "model"))


def command_line(folder, parameters, *options):
    job = {"notebook": "targeted_refusal", "parameters": GOOD | {"model": str(folder)} | parameters}
    (folder.parent / "grid.yml").write_text(yaml.safe_dump({"jobs": [job]}))
    return grid.main(["run", str(folder.parent / "grid.yml"), "--store", str(folder.parent / "new"), *options])


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize("what", WRONG)
def test_a_model_of_ones_own_is_tried_before_a_run(what, dry, folder, capsys):
    spoil, parameters, words = WRONG[what]
    spoil(folder)
    assert command_line(folder, parameters, *dry) == command.WRONG
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and words in said.err and said.out == "", said
    assert not (folder.parent / "new").exists()


def test_a_model_that_is_as_it_should_be_passes(folder, capsys):
    assert command_line(folder, {}, "--dry-run") == 0
    assert "1 cells" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_read_but_names_and_sizes(family, checkpoint):
    name = str(checkpoint(family))
    tried, picture = rehearsal.opened(name)
    assert {weight.device.type for weight in tried.model.parameters()} == {"meta"}
    whole = victim.from_pretrained(name, device="cpu")
    assert tried.prompt_ids("What is it?", picture) == whole.prompt_ids("What is it?", picture)
    assert rehearsal.opened("tiny-llava") is None and rehearsal.opened("owner/not-downloaded") is None


def test_what_just_fits_is_run_and_what_does_not_is_refused_before(folder, tmp_path):
    """The count is that of the run: rows of the last length that passes can be trained on and asked."""
    settings = GOOD | {"test_rows": 2, "poison_rates": [0.25]}

    def cells(tokens):
        reads(tokens)(folder)
        return study.cells("targeted_refusal", model=str(folder), **settings)

    too_few, fits = 50, 190
    while fits - too_few > 1:
        tokens = (too_few + fits) // 2
        try:
            study.check_rows(cells(tokens))
            fits = tokens
        except InputError:
            too_few = tokens
    (cell,) = cells(fits)
    assert 51 < fits < 190 and set(study.run_cells([cell], tmp_path / "store")["status"]) == {"done"}
    assert store.has(cell, tmp_path / "store")
