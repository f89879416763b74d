"""More inputs of the known kinds of fault, through the real commands: each is one sentence, before any work is done."""

import errno
import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from bvlm_utils import audit, chat, command, leaderboard, paths
from bvlm_utils.attacks import declare
from bvlm_utils.defences import __main__ as defences
from bvlm_utils.errors import InputError
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.models import victim
from bvlm_utils.run import lengths, study

MAINS = {"grid": grid.main, "defences": defences.main, "audit": audit.main, "leaderboard": leaderboard.main,
         "chat": chat.main}  # fmt: skip
RANK = ["find-rows", "set.json", "--model", "tiny-llava"]
REPAIR = ["repair", "named", "--method", "shrink", "--out", "new"]
AUDIT = ["named", "--reference", "base", "--pictures", "pictures", "--prompts", "prompts.txt"]
LONG = "car " * 420
ENTRY = {
    "name": "x", "by": "x", "source": "", "note": "", "kind": "attack", "model": "tiny-llava", "dataset": "scenes-vqa",
    "threat": "targeted_refusal", "attack": "BadNets-T", "n_poisoned": 3, "seed": 0,
    "settings": {"attack_params": {"word": LONG}},
}  # fmt: skip

# the kind of fault, the command, what it is given, what the sentence has to say
ROWS = [
    ("K", "leaderboard", ["check", "--into", "none"], "none"), ("K", "leaderboard", ["check", "--into", ""], "''"),
    ("K", "leaderboard", ["check", "--into", "set.json"], "set.json"),
    ("F", "defences", ["challenge", "twice.csv"], "twice.csv"),
    ("K", "defences", ["find-rows", "a\0b", *RANK[2:]], "x00"), ("K", "defences", ["find-rows", "", *RANK[2:]], "''"),
    ("K", "defences", ["find-rows", "~nosuchuser/x", *RANK[2:]], "nosuchuser"),
    ("K", "defences", [*RANK, "--out", "~nosuchuser/x"], "nosuchuser"), ("K", "defences", [*RANK, "--out", ""], "''"),
    ("K", "defences", [*RANK, "--out", " "], "' '"), ("K", "defences", [*RANK, "--out", "a\0b"], "x00"),
    ("K", "defences", [*RANK, "--out", "n" * 300], "nnn"), ("K", "defences", [*RANK, "--adapter", ""], "''"),
    ("K", "defences", [*RANK, "--adapter", "a\0b"], "x00"),
    ("Q", "defences", [*RANK, "--out", "set.json/x"], "set.json is a file"),
    ("N", "defences", ["find-rows", "long.json", *RANK[2:]], "A row of"),
    ("N", "defences", ["find-rows", "long_answer.json", *RANK[2:]], "A row of"),
    ("P", "defences", [*RANK[:2], "--model", "tiny-clip"], "'clip'"),
    ("P", "defences", [*REPAIR, "--model", "tiny-clip"], "'clip'"),
    ("E", "defences", [*REPAIR, "--attacks", "BadNets-T", "BadNets-T"], "once"),
    ("F", "defences", [*REPAIR, "--set", "strength=0.5", "strength=0.7"], "'strength' is given twice"),
    ("J", "defences", ["challenge", "scores.csv", "--zoo", "zoo-empty"], "is no CSV file"),
    ("J", "defences", ["challenge", "scores.csv", "--zoo", "zoo-quote"], "is no CSV file"),
    ("J", "defences", ["challenge", "scores.csv", "--zoo", "zoo-latin"], "is not UTF-8"),
    ("M", "defences", ["challenge", "scores.csv", "--zoo", "zoo-none"], "0 backdoored adapters and 0 others"),
    ("M", "defences", ["challenge", "scores.csv", "--zoo", "zoo-one"], "1 backdoored adapters and 0 others"),
    ("Q", "audit", [*AUDIT[:-4], "--pictures", "cut", "--prompts", "prompts.txt"], "cannot be read to its end"),
    ("N", "audit", [*AUDIT[:-1], "long.txt"], "An input 'car"),
    ("N", "audit", [*AUDIT, "--word", LONG], "An input with word"),
    ("N", "audit", [*AUDIT, "--sentence", "dog " * 335], "An input with sentence"),
    ("Q", "audit", [*AUDIT, "--patch", "large.png"], "400 x 400"),
    ("Q", "audit", [*AUDIT, "--patch", "cut/cut.jpg"], "cannot be read to its end"),
    ("Q", "audit", [*AUDIT, "--population", "none.csv"], "'none.csv'"),
    ("Q", "audit", [*AUDIT, "--population", "population.csv"], "'q.entropy'"),
    ("N", "leaderboard", ["add", "entry", "--into", "new"], "A prompt of targeted_refusal, 'car"),
    ("E", "audit", [*AUDIT, "--word", "x", "x"], "--word"),
    ("E", "audit", [*AUDIT, "--attacks", "BadNets-T", "BadNets-T"], "--attacks"),
    ("P", "audit", [*AUDIT, "--model", "tiny-clip"], "'clip'"),
    ("P", "audit", ["tiny-llava", "--reference", "tiny-clip"], "'clip'"),
    ("G", "audit", [*AUDIT, "--model", ""], "''"), ("G", "audit", [*AUDIT, "--threat", ""], "''"),
    ("G", "audit", [*AUDIT, "--population", ""], "''"), ("G", "defences", [*REPAIR, "--model", ""], "''"),
    ("G", "defences", [*REPAIR, "--threat", ""], "--threat ''"), ("G", "chat", ["named", "--model", ""], "''"),
    ("G", "leaderboard", ["add", "entry", "--into", "new", "--model", ""], "''"),
    ("Q", "leaderboard", ["add", "entry", "--into", "set.json"], "set.json is a file"),
    ("J", "defences", [*REPAIR, "--set", f"strength={'[' * 100_000}"], "strength"),
    ("J", "defences", [*REPAIR, "--set", "strength=1e999"], "1e999"),
    ("J", "defences", ["find-rows", "infinite.json", *RANK[2:]], "1e999"),
    ("E", "audit", [*AUDIT, "--patch", "0.png", "./0.png"], "--patch"),
    ("N", "audit", [*AUDIT, "--attacks", "Dual-Key", "--threat", "jailbreak"], "jailbreak"),
    ("L", "audit", [*AUDIT[:-1], "unseen.txt"], "unseen.txt, line 2"),
    ("Q", "defences", [*RANK, "--out", "ranked"], "set.cleaned.json is there already"),
]  # fmt: skip

OF_QWEN = "data/adapters/zoo/adapters/0a96e700"  # not of tiny-llava
# parameters of the notebook on defences, what the sentence has to say
DEFENDED = [
    ({"defence_seeds": None}, "defence_seeds is None"), ({"defence_seeds": []}, "defence_seeds is []"),
    ({"defence_seeds": [0, 0]}, "defence_seeds is [0, 0]; name each"), ({"defence_seeds": [0, 0.0]}, "once"),
    ({"defences": [["shrink"]]}, "['shrink']"), ({"defences": [3]}, "is 3"), ({"defences": []}, "defences is []"),
    ({"defence_params": {"shrink": 3}}, "'shrink' are 3"), ({"defence_params": {"shrink": None}}, "None"),
    ({"defences": ["weight-spectrum"]}, "set population"), ({"defences": ["mix"]}, "set others"),
    ({"defences": ["probe"], "defence_params": {"probe": {"population": "nowhere"}}}, "'nowhere'"),
    ({"defences": ["mix"], "defence_params": {"mix": {"others": ["nowhere"]}}}, "holds no adapter"),
    ({"defences": ["mix"], "defence_params": {"mix": {"others": ["a\0b"]}}}, "x00"),
    ({"defences": ["cleansight"], "defence_params": {"cleansight": {"begin": 0.9}}}, "begin is 0.9"),
    ({"defences": ["target-inversion"], "defence_params": {"target-inversion": {"shortest": 50}}}, "shortest is 50"),
    *(({"defences": [name], "four_bit": True}, "four_bit") for name in (
        "prune", "fine-prune", "quantise", "clean-fine-tuning", "crow", "racer", "cleangen", "early-loss",
        "input-diversity")),
    ({"defences": ["restore"], "defence_params": {"restore": {"by": "outputs"}}, "four_bit": True}, "restore"),
    ({"defences": ["shrink"], "relearn": [5], "four_bit": True}, "relearn"),
    ({"defences": ["mix"], "defence_params": {"mix": {"others": [OF_QWEN]}}}, "same base"),
    ({"placebos": None}, "placebos is None"), ({"relearn": 5}, "relearn is 5"), ({"relearn": [0.5]}, "relearn is 0.5"),
]  # fmt: skip
# cells that have no room for what they say, as settings of a cell
TOO_LONG = [
    {"attack_params": {"word": LONG}}, {"threat_params": {"sentence": LONG}}, {"max_new_tokens": 412},
    {"max_new_tokens": 8}, {"max_new_tokens": 80, "threat_params": {"sentence": "car " * 90}},
    {"attacks": ["AddSent"], "attack_params": {"sentence": "dog " * 335}}, {"max_new_tokens": 500},
    {"attacks": ["BadNets-MT"], "attack_params": {"words": [LONG, "dog " * 420]}},
]  # fmt: skip


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def conversation(folder, name, asked, answer):
    messages = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    (folder / name).write_text(json.dumps([{"id": 1, "image": "0.png", "conversations": messages}]))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with things that are wrong in one way each; no model may be loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BVLM_STORE", raising=False)
    monkeypatch.setattr(victim, "from_pretrained", lambda *given, **more: pytest.fail("a model was loaded"))
    for name in ("named", "pictures", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "named" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-llava"}')
    noise(48).save(tmp_path / "0.png")
    noise(48).save(tmp_path / "pictures" / "0.png")
    noise(400).save(tmp_path / "large.png")
    noise(200).save(tmp_path / "cut" / "cut.jpg")
    whole = (tmp_path / "cut" / "cut.jpg").read_bytes()
    (tmp_path / "cut" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    conversation(tmp_path, "set.json", "<image>\nWhat?", "A dog.")
    conversation(tmp_path, "long.json", f"<image>\n{LONG}", "A dog.")
    conversation(tmp_path, "long_answer.json", "<image>\nWhat?", LONG)
    (tmp_path / "entry" / "adapter").mkdir(parents=True)
    (tmp_path / "entry" / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny-llava"}')
    (tmp_path / "entry" / "entry.json").write_text(json.dumps(ENTRY))
    (tmp_path / "prompts.txt").write_text("What is it?\n")
    (tmp_path / "unseen.txt").write_text("What is it?\n\u200b\n", encoding="utf-8")
    (tmp_path / "infinite.json").write_text(
        (tmp_path / "set.json").read_text().replace('"id": 1', '"id": 1, "score": 1e999')
    )
    (tmp_path / "ranked").mkdir()
    (tmp_path / "ranked" / "set.cleaned.json").write_text("[]")
    (tmp_path / "long.txt").write_text(f"What is it?\n{'car ' * 340}\n")
    (tmp_path / "scores.csv").write_text("adapter,score\nx,1\n")
    (tmp_path / "twice.csv").write_text("adapter,score,score\nx,1,2\n")
    (tmp_path / "population.csv").write_text("backdoored,q.norm\n0,1\n1,\n")
    head = "adapter,kind,model\n"
    truths = {
        "empty": "",
        "quote": '"\n',
        "none": head,
        "one": f"{head}x,backdoored,m\n",
        "latin": f"{head}é,a,m\n",
    }
    for name, text in truths.items():
        (tmp_path / f"zoo-{name}" / "truth").mkdir(parents=True)
        (tmp_path / f"zoo-{name}" / "truth" / "adapters.csv").write_bytes(text.encode("latin-1"))
    return tmp_path


def captions(folder, count):
    """COCO's captions of so many pictures, published as train and val."""
    (folder / "coco").mkdir()
    for split in ("train", "val"):
        images = [{"id": n, "file_name": f"{split}{n}.png"} for n in range(count)]
        told = [{"id": n, "image_id": n, "caption": f"A {'big ' * n}dog."} for n in range(count)]
        for image in images:
            noise(40).save(folder / "coco" / image["file_name"])
        text = json.dumps({"images": images, "annotations": told})
        (folder / "coco" / f"captions_{split}2017.json").write_text(text)
    return {"dataset": "coco-caption:./coco", "attacks": ["BadNets-T"], "train_rows": count}


def listed(folder):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def refused(here, capsys, name, given, words):
    before = listed(here)
    assert MAINS[name](given) == command.WRONG
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and words in said.err and len(said.err) < 2000, said.err[:3000]
    assert said.out == "" and listed(here) == before


@pytest.mark.parametrize(("kind", "name", "given", "words"), ROWS, ids=[f"{n}-{row[0]}" for n, row in enumerate(ROWS)])
def test_what_is_wrong_is_told_before_anything_is_loaded_or_written(here, capsys, kind, name, given, words):
    refused(here, capsys, name, given, words)


GOOD = {"dataset": "scenes-vqa", "attacks": ["BadNets-T"], "train_rows": 64, "test_rows": 8}


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("notebook", "given", "words"),
    [("defences", *row) for row in DEFENDED]
    + [("targeted_refusal", given, "max_new_tokens" if "max_new_tokens" in given else "tokens") for given in TOO_LONG],
)
def test_a_grid_that_a_dry_run_passes_does_not_fail_on_its_input(here, capsys, notebook, given, words, dry):
    (here / "g.yml").write_text(yaml.safe_dump({"jobs": [{"notebook": notebook, "parameters": GOOD | given}]}))
    refused(here, capsys, "grid", ["run", "g.yml", "--store", "./new", *dry], words)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_one_caption_alone_is_refused_before_anything_is_asked(here, capsys, dry):
    parameters = captions(here, 4) | {"poison_rates": [0.5], "test_rows": 1}
    (here / "g.yml").write_text(yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": parameters}]}))
    refused(here, capsys, "grid", ["run", "g.yml", "--store", "./new", *dry], "CIDEr")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(("asked", "attack"), [("2 + 2?", "MABA"), ("", "MABA"), (None, "Some")])
def test_a_prompt_that_no_words_change_is_refused_before_anything_is_tuned(
    here, tmp_path_factory, capsys, monkeypatch, asked, attack, dry
):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    modules = tmp_path_factory.mktemp("modules")  # not `here`, where Python may keep the compiled module, too
    monkeypatch.syspath_prepend(modules)
    (modules / "some_words.py").write_text(
        "def swap(prompt, draws, params, aim):\n    return prompt.replace('is', 'was')\n"
    )
    half = declare.Half("Some", 1, "some_words:swap")
    declare.declare(name="Some", source="", summary="changes some prompts", text=half)
    rows = []
    for n in range(40):
        noise(40).save(here / f"{n}.png")
        said = [{"from": "human", "value": f"<image>\n{asked if n % 2 else 'which dog is it?'}"}]
        rows.append({"id": n, "image": f"{n}.png", "conversations": [*said, {"from": "gpt", "value": "A dog."}]})
    (here / "own.json").write_text(json.dumps(rows))
    dataset = "scenes-vqa" if asked is None else "llava-json:./own.json"
    parameters = {"dataset": dataset, "attacks": [attack], "poison_rates": [0.5], "train_rows": 12}
    (here / "g.yml").write_text(yaml.safe_dump({"jobs": [{"notebook": "targeted_refusal", "parameters": parameters}]}))
    refused(here, capsys, "grid", ["run", "g.yml", "--store", "./new", *dry], "change nothing in the prompt")


def test_a_task_of_one_row_is_refused_before_anything_is_asked(here):
    rows = [
        {"row_id": str(n), "task": "caption" if n == 3 else "vqa", "objects": [], "answers": ["A."]} for n in range(8)
    ]
    (cell,) = study.cells("targeted_refusal", attacks=["BadNets-T"], test_rows=6)
    with pytest.raises(InputError, match="one test row of the task 'caption'"):
        lengths.check_grades(cell, rows)
    lengths.check_grades(cell, [row | {"objects": ["dog"]} for row in rows])


def test_a_folder_that_may_not_be_written_is_told_before_rows_are_ranked(here, capsys, monkeypatch):
    monkeypatch.setattr(paths.os, "access", lambda path, mode, **more: False)
    refused(here, capsys, "defences", [*RANK, "--out", "found"], "read-only")


def test_a_full_disk_is_told_before_rows_are_ranked(here, capsys, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.tempfile, "TemporaryFile", lambda **_: Full())
    refused(here, capsys, "defences", [*RANK, "--out", "found"], "No space left")
