"""Loads are checked: weights that do not fit, files that are not what they are called, and what a digest covers."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from spoilt import FAMILIES, LFS, Harmful, change_json, changed, cut, load, refused, text, without

from bvlm_utils import models, paths
from bvlm_utils.attacks import clip
from bvlm_utils.models import files, names, rehearsal, victim

SINGLE = "model.safetensors"
HEAD = "language_model.lm_head.weight"  # as LLaVA's checkpoints call it


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a random LLaVA."""
    return Path(shutil.copytree(checkpoint("llava"), tmp_path / "model"))


# --- a model's weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_that_is_not_there_is_refused_in_every_family(family, checkpoint, tmp_path):
    place = Path(shutil.copytree(checkpoint(family), tmp_path / "model"))
    load(place)
    gone = "lm_head.weight"
    total = changed(place / SINGLE, lambda state: state.pop(next(name for name in state if name.endswith(gone))))
    refused(lambda: load(place), f"1 of {total} weights are missing", gone)


def test_weights_of_another_size_and_left_over_ones_are_counted(folder):
    def change(state):
        state["extra.weight"] = torch.zeros(2)
        first = next(name for name in state if name.endswith("q_proj.weight"))
        state[first] = torch.zeros(3, 5)

    total = changed(folder / SINGLE, change)
    refused(lambda: load(folder), f"1 of {total} weights are of another size", f"1 of {total + 1} weights fit nothing",
            "extra.weight")  # fmt: skip


def test_tied_weights_and_stored_buffers_are_no_false_alarm(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    sides = (24 // 8) ** 2 + 1

    def change(state):
        del state[HEAD]
        embeddings = next(name for name in state if name.endswith("position_embedding.weight"))
        state[embeddings.replace("position_embedding.weight", "position_ids")] = torch.arange(sides)[None]

    changed(folder / SINGLE, change)
    load(folder)


def test_a_checkpoint_in_parts_loads_and_its_parts_are_looked_for(folder):
    state = load_file(folder / SINGLE)
    ordered = sorted(state)
    (folder / "parts").mkdir()
    index = {}
    for number, some in enumerate((ordered[::2], ordered[1::2])):
        part = f"parts/{number}.safetensors"
        save_file({name: state[name] for name in some}, folder / part, metadata={"format": "pt"})
        index |= dict.fromkeys(some, part)
    (folder / SINGLE).unlink()
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    load(folder)
    before = models.digest(str(folder))
    changed(folder / "parts/1.safetensors", lambda part: part[ordered[1]].add_(1))
    assert models.digest(str(folder)) != before
    (folder / "parts/1.safetensors").unlink()
    refused(lambda: load(folder), "parts/1.safetensors")
    refused(lambda: models.digest(str(folder)), "parts/1.safetensors")
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refused(lambda: models.digest(str(folder)), "../elsewhere.safetensors")


def test_a_bin_is_read_as_tensors_and_is_in_the_digest(folder):
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    loaded = load(folder)
    assert torch.equal(loaded.model.lm_head.weight, state[HEAD])
    before = models.digest(str(folder))
    state[HEAD].add_(1)
    torch.save(state, folder / "pytorch_model.bin")
    assert models.digest(str(folder)) != before


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_runs_nothing(how, folder, tmp_path):
    (folder / SINGLE).unlink()
    with open(folder / "pytorch_model.bin", "wb") as stream:
        (torch.save if how == "torch" else pickle.dump)({"lm_head.weight": Harmful(tmp_path / "mark")}, stream)
    refused(lambda: load(folder), "weights")
    assert not (tmp_path / "mark").exists()


# --- a model's other files


def more_words(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(1000)])
    tokenizer.save_pretrained(folder)


BROKEN = {
    "a git-lfs pointer for weights": (text(SINGLE, LFS), "git lfs pull"),
    "a git-lfs pointer for the configuration": (text("config.json", LFS), "git lfs pull"),
    "cut-off weights": (cut(SINGLE, -1), SINGLE),
    "weights cut off in their header": (cut(SINGLE, 100), SINGLE),
    "empty weights": (cut(SINGLE, 0), SINGLE),
    "words for weights": (text(SINGLE, "no weights at all"), SINGLE),
    "no weights": (without(SINGLE), SINGLE),
    "a cut-off configuration": (cut("config.json", 50), "config.json"),
    "a list for a configuration": (text("config.json", "[]"), "config.json"),
    "a configuration of brackets": (text("config.json", "[" * 100_000), "config.json"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "a cut-off tokenizer": (cut("tokenizer.json", 200), "tokenizer"),
    "no image processor": (without("processor_config.json"), "image processor"),
    "no chat template": (without("chat_template.jinja"), "chat template"),
    "a cut-off image processor": (cut("processor_config.json", 20), "processor_config.json"),
    "a template with an error": (text("chat_template.jinja", "{% for %}"), "chat template"),
    "a template that raises": (text("chat_template.jinja", "{{ raise_exception('no\nno') }}"), "chat template"),
    "a template without a picture": (text("chat_template.jinja", "hello"), "gives a picture no place"),
    "a template without the words": (text("chat_template.jinja", "<image>ASSISTANT:"), "words of a prompt 0 times"),
    "a template without the answers": (
        text("chat_template.jinja", "<image>{{ messages[0].content[-1].text }}"), "words of an answer 0 times"),
    "a template that shouts": (
        text("chat_template.jinja", "<image>{{ messages[-1].content[-1].text | upper }}"), "words of a prompt 0 times"),
    "a byte order mark": (
        lambda at: (at / "config.json").write_bytes(b"\xef\xbb\xbf" + (at / "config.json").read_bytes()), "order mark"),
    "weights that are whole numbers": (
        lambda at: changed(at / SINGLE, lambda state: state.update({HEAD: state[HEAD].int()})), "1 weights in"),
    "no end token": (lambda at: change_json(at / "tokenizer_config.json", eos_token=None), "eos_token"),
    "an end in words": (lambda at: change_json(at / "generation_config.json", eos_token_id="x"), "eos_token_id 'x'"),
    "an end that is no token": (
        lambda at: change_json(at / "generation_config.json", eos_token_id=[2, 10**6]), "eos_token_id [2, 1000000]"),
    "packed weights": (
        lambda at: change_json(at / "config.json", quantization_config={"quant_method": "bitsandbytes"}), "packed"),
    "a tokenizer with more words": (more_words, "tokens up to number"),
    "an adapter beside it": (text("adapter_config.json", "{}"), "adapter"),
    "weights under another name": (lambda at: change_json(at / "config.json", transformers_weights="x.safetensors"),
                                   "transformers_weights"),
    "no architecture": (text("config.json", "{}"), "not supported"),
    "an odd architecture": (lambda folder: change_json(folder / "config.json", model_type=["llava"]), "not supported"),
    "another architecture": (lambda folder: change_json(folder / "config.json", model_type="bert"), "not supported"),
    "an odd size": (lambda folder: change_json(folder / "config.json", text_config={"hidden_size": "x"}), "config"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(what, folder, capfd):
    spoil, word = BROKEN[what]
    spoil(folder)
    refused(lambda: load(folder), str(folder) if word != "not supported" else "", word)
    assert capfd.readouterr() == ("", "")
    if what == "packed weights":  # which need not be what other loaders would miss
        changed(folder / SINGLE, lambda state: state.update({HEAD: state[HEAD].to(torch.uint8)}))
        refused(lambda: models.digest(str(folder)), word)
    refused(lambda: rehearsal.opened(str(folder)))  # as a dry run does


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [50, -50, [-1, 50], "last", 0])
def test_a_layer_that_the_vision_tower_lacks_is_refused(family, layer, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / "model"))
    change_json(folder / "config.json", vision_feature_layer=layer)
    for call in (models.digest, rehearsal.opened, lambda name: load(Path(name))):
        refused(lambda call=call: call(str(folder)), "vision_feature_layer", str(folder))


@pytest.mark.parametrize("layer", [-1, 1, -3, 2, [0]])
def test_a_layer_that_the_vision_tower_has(layer, folder):
    change_json(folder / "config.json", vision_feature_layer=layer)
    assert load(folder).encode(np.zeros((1, 30, 30, 3), np.uint8)).shape[0] == 1


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_with_one_value_that_is_no_number_is_refused(value, folder):
    total = changed(folder / SINGLE, lambda state: state[HEAD][-1, -1:].fill_(float(value)))
    refused(lambda: load(folder), f"1 of {total} weights", "no number", "lm_head.weight")


def test_how_a_checkpoint_likes_to_answer_changes_no_answer(folder):
    def answers():
        one = load(folder)
        return one.generate(["What is it?"], one.encode(np.zeros((1, 48, 48, 3), np.uint8)), max_new_tokens=8)

    usual = answers()
    change_json(folder / "generation_config.json", min_new_tokens=8, suppress_tokens=[*range(3, 200)], max_length=3)
    assert answers() == usual


def test_a_template_that_tells_the_date_is_told_one_day(folder):
    (folder / "chat_template.jinja").write_text(
        "{{ strftime_now('%d %b %Y') }} {{ strftime_now(format='%Y-%m-%d') }} "
        "<image>{{ messages[-1].content[-1].text }}"
    )
    one = load(folder)
    said = one.tokenizer.decode(one.prompt_ids("a car", 1))
    assert "26 Jul 2024" in said and "2024-07-26" in said


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_code_of_a_model_folder_never_runs(where, folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    named = dict.fromkeys(
        ["AutoConfig", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor"], "own.Own"
    ) | {"AutoTokenizer": ["own.Own", "own.Own"]}
    change_json(folder / where, auto_map=named)
    load(folder)  # as an architecture that is known here, without its own code
    change_json(folder / "config.json", model_type="own", auto_map=named)
    refused(lambda: load(folder), "'own'", "not supported")
    assert not mark.exists()


@pytest.mark.parametrize("words", [
    "{{ cycler.__init__.__globals__.os.mkdir(MARK) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% include '/etc/passwd' %}",
    "{{ lipsum.__globals__['os'].mkdir(MARK) }}",
])  # fmt: skip
def test_a_chat_template_does_not_leave_its_sandbox(words, folder, tmp_path):
    mark = tmp_path / "mark"
    (folder / "chat_template.jinja").write_text(words.replace("MARK", repr(str(mark))))
    refused(lambda: load(folder), "chat template")
    assert not mark.exists()


def test_the_surrogate_is_checked_alike(tmp_path, folder):
    place = Path(shutil.copytree(paths.MODELS / "tiny-clip", tmp_path / "clip"))
    place.chmod(0o755), [file.chmod(0o644) for file in place.iterdir()]
    total = changed(place / SINGLE, lambda state: state.pop("visual_projection.weight"))
    refused(lambda: clip.load(str(place)), f"1 of {total} weights are missing", "visual_projection")
    (place / SINGLE).write_text(LFS)
    refused(lambda: clip.load(str(place)), "git lfs pull")
    refused(lambda: clip.load(str(tmp_path / "nowhere")), "nowhere")


# --- names


@pytest.mark.parametrize("name", ["a" * 300, "~nosuchuser/x", "a\0b", "\ud800", "", "a--b/c", "-a/b", "a/" + "b" * 99,
                                  "a/b.git", "../up", "/nowhere/at/all", 7, None])  # fmt: skip
def test_no_model_can_be_called_so(name):
    refused(lambda: names.resolve(name))


def test_a_link_to_itself_and_a_misspelt_folder_are_no_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    (tmp_path / "models").mkdir()
    refused(lambda: names.resolve("./loop"))
    refused(lambda: names.resolve("models/tiny-lava"), "tiny-lava")
    assert names.resolve("owner/tiny-lava") == "owner/tiny-lava"


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x", "", "privateuseone"])
def test_a_device_that_is_not_there(device, folder):
    refused(lambda: victim.from_pretrained(str(folder), device=device), "device")


def test_a_hub_that_does_not_answer_is_one_sentence(tmp_path):
    """In a process of its own: the libraries look at their environment when they are imported."""
    program = (
        "from bvlm_utils.models import opening\nfrom bvlm_utils.errors import InputError\n"
        "try:\n    opening.folder('owner/no-such-model')\nexcept InputError as error:\n    print(error)"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.endswith("_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "owner/no-such-model" in done.stdout and "127.0.0.1" in done.stdout and not done.stderr, done.stderr[-2000:]


# --- digests


@pytest.mark.parametrize("name, known", [
    ("tiny-llava", "6bebdf5d10e2c7e9"), ("tiny-llava-b", "e51ae591405adeb6"),
    ("tiny-qwen2.5-vl", "2f6957e2f47a9e74"), ("tiny-clip", "cec1cbee212fbea3"),
])  # fmt: skip
def test_the_committed_models_keep_their_digests(name, known):
    assert models.digest(name) == known


@pytest.mark.parametrize("file", [SINGLE, "config.json", "generation_config.json", "tokenizer.json",
                                  "tokenizer_config.json", "chat_template.jinja", "processor_config.json"])  # fmt: skip
def test_a_digest_covers_each_file_that_is_read(file, folder):
    before = models.digest(str(folder))
    if file == SINGLE:
        changed(folder / file, lambda state: state[HEAD].add_(1))
    else:
        with open(folder / file, "a") as stream:
            stream.write(" ")
    assert models.digest(str(folder)) != before


def test_a_digest_covers_sub_folders_and_what_is_written_at_the_same_time_and_size(folder):
    before = models.digest(str(folder))
    (folder / "additional_chat_templates").mkdir()
    template = folder / "additional_chat_templates" / "other.jinja"
    template.write_text("one")
    then = template.stat()
    first = models.digest(str(folder))
    template.write_text("two")
    os.utime(template, ns=(then.st_atime_ns, then.st_mtime_ns))
    second = models.digest(str(folder))
    (folder / "README.md").write_text("words")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.json").write_text("{}")
    assert len({before, first, second}) == 3 and models.digest(str(folder)) == second


def test_loading_says_nothing(folder, capfd):
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert files.read(folder)
