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

from bvlm_utils import audit, chat, defences, models, paths, store
from bvlm_utils.attacks import clip
from bvlm_utils.defences import weights
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.models import files, names, rehearsal, victim
from bvlm_utils.train import adapters, decode, grouped
from bvlm_utils.train.settings import TrainSettings

SINGLE = "model.safetensors"
HEAD = "language_model.lm_head.weight"  # as LLaVA's checkpoints call it
FAMILIES = ["llava", "qwen2.5-vl", "qwen2-vl", "smolvlm", "idefics3"]


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of a random LLaVA."""
    return Path(shutil.copytree(checkpoint("llava"), tmp_path / "model"))


def refused(call, *words: str) -> str:
    """The one sentence that the call is refused with."""
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.rstrip().endswith(".") and all(word in said for word in words), said
    return said


def load(folder: Path) -> victim.Victim:
    return victim.from_pretrained(str(folder), device="cpu")


def changed(file: Path, change) -> int:
    """Rewrite a file of weights; how many were in it."""
    state = load_file(file)
    total = len(state)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return total


def change_json(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


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


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_runs_nothing(how, folder, tmp_path):
    (folder / SINGLE).unlink()
    with open(folder / "pytorch_model.bin", "wb") as stream:
        (torch.save if how == "torch" else pickle.dump)({"lm_head.weight": Harmful(tmp_path / "mark")}, stream)
    refused(lambda: load(folder), "weights")
    assert not (tmp_path / "mark").exists()


# --- a model's other files


def text(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def cut(file: str, at: int):
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:at])


def without(*which: str):
    return lambda folder: [(folder / file).unlink() for file in which]


def more_words(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{number}" for number in range(1000)])
    tokenizer.save_pretrained(folder)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
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
    ("tiny-llava", "6bebdf5d10e2c7e9"), ("tiny-qwen2.5-vl", "2f6957e2f47a9e74"), ("tiny-clip", "cec1cbee212fbea3"),
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


# --- adapters


@pytest.fixture
def adapter(random_llava, tmp_path):
    """A fresh adapter of the random LLaVA, in its folder."""
    made = adapters.attach_lora(random_llava, TrainSettings(lora_rank=4, lora_alpha=8), 0)
    made.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    adapters.write_card(tmp_path / "adapter", {"model": random_llava.name})
    adapters.detach(random_llava, made)
    return tmp_path / "adapter"


@pytest.fixture(scope="module")
def random_llava(checkpoint):
    return victim.from_pretrained(str(checkpoint("llava")), device="cpu")


def renamed(state):
    """As the original LLaVA calls its layers."""
    for name in list(state):
        state[name.replace("model.language_model.layers", "model.layers")] = state.pop(name)


def halved(state):
    for name in sorted(state)[::2]:
        del state[name]


def resized(state):
    first = sorted(state)[0]
    state[first] = torch.zeros(4, 7)


@pytest.mark.parametrize("change, words", [
    (renamed, "28 of 28 weights fit nothing"),
    (halved, "14 of 28 weights are missing"),
    (resized, "1 of 28 weights are of another size"),
    (lambda state: state.update({f"{adapters.PREFIX}extra": torch.zeros(1)}), "1 of 29 weights fit nothing"),
])  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_the_base_alone(change, words, random_llava, adapter):
    before = [(name, type(module)) for name, module in random_llava.model.named_modules()]
    changed(adapter / adapters.WEIGHTS, change)
    refused(lambda: adapters.load_adapter(random_llava, adapter), words, random_llava.name)
    assert [(name, type(module)) for name, module in random_llava.model.named_modules()] == before
    assert not hasattr(random_llava.model, "peft_config")


@pytest.mark.parametrize("change", [halved, resized, renamed])
def test_adapters_that_are_asked_together_are_checked_alike(change, random_llava, adapter):
    changed(adapter / adapters.WEIGHTS, change)
    saved = adapters.read(adapter)
    refused(lambda: grouped.bank_of(random_llava, [grouped.GroupResult(saved.state, saved.config, [], 0.0, 0, 0)]),
            "of 28 weights")  # fmt: skip


def test_an_adapter_goes_on_and_off(random_llava, adapter):
    changed(adapter / adapters.WEIGHTS, lambda state: [value.add_(0.1) for value in state.values()])
    saved = adapters.read(adapter)
    loaded = adapters.load_adapter(random_llava, adapter)
    on = {name.replace(".default", ""): value for name, value in loaded.state_dict().items() if ".lora_" in name}
    adapters.detach(random_llava, loaded)
    assert on.keys() == saved.state.keys() and all(torch.equal(on[name], saved.state[name]) for name in on)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_used_as_they_are(kind, random_llava, adapter):
    changed(adapter / adapters.WEIGHTS, lambda state: state.update({k: (v + 0.1).to(kind) for k, v in state.items()}))
    saved, stored = adapters.read(adapter), load_file(adapter / adapters.WEIGHTS)
    assert all(torch.equal(value, stored[name].float()) for name, value in saved.state.items())
    assert defences.get("shrink").repair(random_llava, weights.whole(random_llava, saved)).digest != saved.digest


def test_answers_that_cannot_be_computed_are_told(random_llava, adapter):
    """An adapter with them would pass for one without a backdoor."""
    changed(adapter / adapters.WEIGHTS, lambda state: [value.fill_(1e30) for value in state.values()])
    seen = random_llava.encode(np.zeros((1, 24, 24, 3), np.uint8))
    with adapters.attached(random_llava, adapter):
        refused(lambda: random_llava.generate(["?"], seen), "no numbers")
        refused(lambda: decode.answer(random_llava, [[("?", 0)]], seen), "no numbers")


def test_an_adapter_of_an_older_transformers_is_read_by_todays_names(random_llava, adapter):
    """It is the commonest kind of LLaVA adapter, and a repair looks for its layers by name."""
    wanted = adapters.read(adapter)

    def older(state):
        for name in list(state):
            state[name.replace("model.model.language_model.", "model.language_model.model.")] = state.pop(name)

    changed(adapter / adapters.WEIGHTS, older)
    found = adapters.read(adapter)
    assert found.digest == wanted.digest and weights.whole(random_llava, found).digest == wanted.digest
    change_json(adapter / adapters.CONFIG, target_modules=["q_proj", "down_proj"], exclude_modules=".*vision.*")
    refused(lambda: adapters.load_adapter(random_llava, adapter), "fit nothing")
    change_json(adapter / adapters.CONFIG, target_modules=r".*language_model.*_proj")
    with adapters.attached(random_llava, adapter):
        pass

    def both(state):
        name = min(state)
        state[name.replace("model.language_model.model.", "model.model.language_model.")] = state[name] + 1

    changed(adapter / adapters.WEIGHTS, both)
    refused(lambda: adapters.read(adapter), "1 weights under an older name")


def setting(**values):
    return lambda folder: change_json(folder / adapters.CONFIG, **values)


def values(change):
    """Of the first weight."""
    return lambda folder: changed(
        folder / adapters.WEIGHTS, lambda state: state.update({min(state): change(state[min(state)])})
    )


PATTERNS = {  # settings, and the rank and alpha that a plain LoRA has instead; None: not all layers have the same
    "all layers by name": ({"r": 16, "rank_pattern": {".*": 4}}, (4, 8)),
    "all kinds of layers": ({"r": 1, "rank_pattern": {"layers.*": 4}, "alpha_pattern": {".*_proj": 3}}, (4, 3)),
    "what r says": ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}}, (4, 8)),
    "the root of the rank": ({"use_rslora": True}, (4, 16)),
    "patterns that are null": ({"rank_pattern": None, "alpha_pattern": None}, (4, 8)),
    "alphas that differ": ({"alpha_pattern": {"q_proj": 3}}, None),
}


@pytest.mark.parametrize("what", PATTERNS)
def test_patterns_that_give_all_layers_the_same_are_a_plain_lora(what, random_llava, adapter):
    settings, plain = PATTERNS[what]
    change_json(adapter / adapters.CONFIG, **settings)
    saved = adapters.read(adapter)
    if plain:
        grouped.check_plain(saved.config)
        assert (saved.config.r, saved.config.lora_alpha) == plain
    else:
        refused(lambda: grouped.check_plain(saved.config), "alpha_pattern")
    with adapters.attached(random_llava, adapter) as on:
        scales = {module.scaling["default"] for module in on.modules() if hasattr(module, "lora_A")}
    assert scales == ({plain[1] / plain[0]} if plain else {3 / 4, 8 / 4})


def test_ranks_that_differ_load_where_no_layer_has_the_usual_one(checkpoint, tmp_path):
    pattern = {"q_proj": 1, "(?!.*q_proj).*": 3}
    clean = foreign(checkpoint("llava"), tmp_path, r=16, rank_pattern=pattern)
    with adapters.attached(clean, tmp_path) as on:
        ranks = {module.r["default"] for module in on.modules() if hasattr(module, "lora_A")}
    assert ranks == {1, 3}
    refused(lambda: grouped.check_plain(adapters.read(tmp_path).config), "rank_pattern")


ODD = {
    "a git-lfs pointer": (text(adapters.WEIGHTS, LFS), "git lfs pull"),
    "cut-off weights": (cut(adapters.WEIGHTS, -5), adapters.WEIGHTS),
    "no weights": (without(adapters.WEIGHTS), adapters.WEIGHTS),
    "a cut-off configuration": (cut(adapters.CONFIG, 30), adapters.CONFIG),
    "an empty configuration": (text(adapters.CONFIG, "{}"), "LORA"),
    "another method": (setting(peft_type="IA3"), "IA3"),
    "another rank": (setting(r=8), "rank 8"),
    "a rank that needs all memory": (setting(r=10**9), "rank"),
    "a rank of words": (setting(r="four"), "four"),
    "a pattern that needs all memory": (setting(rank_pattern={"q_proj": 10**9}), "rank"),
    "no alpha": (setting(lora_alpha=None), "lora_alpha"),
    "an endless alpha": (setting(lora_alpha=float("inf")), "lora_alpha"),
    "a module to import": (setting(megatron_config={"a": 1}, megatron_core="antigravity"), "megatron"),
    "a file to read": (setting(corda_config={"cache_file": "/tmp/x"}), "corda_config"),
    "no such layers": (setting(target_modules=["nowhere"]), "does not fit"),
    "layers of no kind": (setting(target_modules=7), "adapter"),
    "a pattern of another rank": (setting(rank_pattern={"q_proj": 2}), "another size"),
    "a pattern for some layers": (setting(r=8, rank_pattern={"q_proj": 4}), "rank 8"),
    "a pattern that is none": (setting(rank_pattern={"(": 4}), "cannot be read"),
    "a rank below 1": (setting(rank_pattern={"q_proj": -1}), "rank"),
    "a method that needs more weights": (setting(use_dora=True), "14 of 42 weights are missing"),
    "a pattern of endless alphas": (setting(alpha_pattern={"q_proj": float("inf")}), "lora_alpha inf"),
    "a pattern of alphas of no kind": (setting(alpha_pattern=7), "lora_alpha None"),
    "a switch in words": (setting(use_rslora="false"), "use_rslora to 'false'"),
    "a beginning that changes the base": (setting(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    "a value that is no number": (values(lambda weight: weight.index_fill_(1, torch.tensor([2]), float("nan"))),
                                  "have values that are no number"),
    "an endless value": (values(lambda weight: weight.fill_(float("inf"))), "1 of 28 weights"),
    "whole numbers": (values(lambda weight: weight.to(torch.int64)), "are whole numbers"),
    "a weight that is not named as PEFT does": (
        lambda at: changed(at / adapters.WEIGHTS, lambda state: state.update(
            {min(state).removeprefix(adapters.PREFIX): state.pop(min(state))})), "1 of 28 weights"),
    "a tuned projector beside it": (text("non_lora_trainables.bin", "x" * 5000), "non_lora_trainables.bin"),
    "a tuned vision tower beside it": (text("vit.safetensors", "x" * 5000), "vit.safetensors"),
    "a token that its base has not": (text("added_tokens.json", '{"<new>": 9}'), "'<new>' has the number 9"),
    "a token of another number": (text("tokenizer_config.json", json.dumps({"added_tokens_decoder": {
        "999": {"content": "<image>"}}})), "'<image>' has the number 999"),
    "added tokens of no kind": (text("tokenizer_config.json", '{"added_tokens_decoder": [1]}'), "added_tokens_decoder"),
    "a cut-off tokenizer": (text("tokenizer.json", '{"model": '), "tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_a_broken_adapter_is_refused_in_one_sentence(what, random_llava, adapter):
    spoil, word = ODD[what]
    spoil(adapter)
    refused(lambda: adapters.load_adapter(random_llava, adapter), str(adapter), word)
    assert not hasattr(random_llava.model, "peft_config")


def test_an_adapter_that_changes_nothing_is_told(random_llava, adapter, recwarn):
    with pytest.warns(Remark, match="changes nothing"):
        adapters.read(adapter)
    recwarn.clear()
    changed(adapter / adapters.WEIGHTS, lambda state: [value.add_(0.1) for value in state.values()])
    adapters.read(adapter)
    assert not recwarn


def test_an_adapter_of_another_family_is_not_told_to_be_of_the_picture_side(checkpoint, tmp_path):
    """Its settings name layers of Qwen's picture side, and its weights are of none."""
    foreign(checkpoint("llava"), tmp_path, target_modules=["up_proj"])
    refused(lambda: adapters.load_adapter(load(checkpoint("qwen2.5-vl")), tmp_path), "are missing", "qwen2.5-vl")


def test_a_tokenizer_beside_an_adapter_is_that_of_its_base(random_llava, adapter, recwarn):
    changed(adapter / adapters.WEIGHTS, lambda state: [value.add_(0.1) for value in state.values()])
    random_llava.tokenizer.save_pretrained(adapter)

    def load():
        with adapters.attached(random_llava, adapter):
            return [one for one in recwarn if issubclass(one.category, Remark)]

    assert not load()
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    assert len(load()) == 1
    file = adapter / "tokenizer.json"
    whole = file.read_text()
    for before, after in (('"<0xFF>": ', '"zzz": '), ('"<0xFE>": ', '"<0xFF>": 998, "yyy": ')):
        assert before in whole
        file.write_text(whole.replace(before, after))
        refused(load, str(adapter), random_llava.name, "tokens differ")


def foreign(checkpoint: Path, folder: Path, **settings) -> victim.Victim:
    """Save an adapter as PEFT makes it, with weights that change the answers; the model of the checkpoint, clean."""
    from peft import LoraConfig, get_peft_model

    clean = load(checkpoint)
    usual = {"r": 2, "target_modules": victim.language_linears(clean.model)}
    made = get_peft_model(load(checkpoint).model, LoraConfig(**usual | settings))
    for value in made.parameters():
        value.data += 0.1 * value.requires_grad
    made.save_pretrained(str(folder))
    return clean


@pytest.mark.parametrize("family, settings", [
    ("llava", {"modules_to_save": ["lm_head"]}), ("llava", {"lora_bias": True}), ("qwen2.5-vl", {"bias": "lora_only"}),
    ("qwen2.5-vl", {"modules_to_save": ["embed_tokens"], "use_dora": True}),
])  # fmt: skip
def test_nothing_of_an_adapter_stays_in_the_base(family, settings, checkpoint, tmp_path):
    one = foreign(checkpoint(family), tmp_path, **settings)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    with adapters.attached(one, tmp_path):
        assert one.model.state_dict().keys() != before.keys()
    after = one.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not any(value.requires_grad for value in one.model.parameters())


def of_the_base(folder: Path, one: victim.Victim, name: str, change) -> None:
    """A weight of the base in an adapter's file, as PEFT saves embeddings along."""
    weight = change(one.model.get_parameter(name).data.clone())
    changed(folder / adapters.WEIGHTS, lambda state: state.update({adapters.PREFIX + name: weight}))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.language_model.embed_tokens.weight"])
def test_weights_of_the_base_in_an_adapter_leave_nothing_in_it(name, checkpoint, tmp_path):
    one = foreign(checkpoint("llava"), tmp_path)
    of_the_base(tmp_path, one, name, lambda weight: weight * 1.5)
    before = one.model.get_parameter(name).data.clone()
    with adapters.attached(one, tmp_path):
        assert torch.equal(one.model.get_parameter(name), before * 1.5)
    assert torch.equal(one.model.get_parameter(name), before)


@pytest.mark.parametrize("name, change, words", [
    ("lm_head.weight", lambda weight: torch.cat([weight, weight[:2]]), "another size"),
    ("model.vision_tower.embeddings.patch_embedding.weight", lambda weight: weight * 2, "picture side"),
])  # fmt: skip
def test_weights_of_the_base_in_an_adapter_are_checked(name, change, words, checkpoint, tmp_path):
    one = foreign(checkpoint("llava"), tmp_path)
    of_the_base(tmp_path, one, name, change)
    before = one.model.get_parameter(name).data.clone()
    refused(lambda: adapters.load_adapter(one, tmp_path), words, one.name)
    assert torch.equal(one.model.get_parameter(name), before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{"target_modules": "all-linear"}, {"bias": "all"}])
def test_an_adapter_of_the_picture_side_is_refused(family, settings, checkpoint, tmp_path):
    """Features of pictures are kept, and are those of the base."""
    one = foreign(checkpoint(family), tmp_path, **settings)
    refused(lambda: adapters.load_adapter(one, tmp_path), "picture side", one.name)
    assert not hasattr(one.model, "peft_config")


@pytest.mark.parametrize("spoil", [cut(adapters.WEIGHTS, 20), cut(adapters.WEIGHTS, -1), cut(adapters.CONFIG, 10),
                                   without(adapters.WEIGHTS), text(adapters.WEIGHTS, LFS)])  # fmt: skip
def test_a_cut_off_adapter_of_the_store_is_as_if_it_were_not_there(spoil, adapter, tmp_path):
    (tmp_path / "store" / "one").mkdir(parents=True)
    place = adapter.rename(tmp_path / "store" / "one" / "adapter")
    assert store.adapter("one", tmp_path / "store") == place
    spoil(place)
    assert store.adapter("one", tmp_path / "store") is None


def test_an_adapters_pickle_is_not_opened(random_llava, adapter, tmp_path):
    torch.save({"x": Harmful(tmp_path / "mark")}, adapter / "adapter_model.bin")
    (adapter / adapters.WEIGHTS).unlink()
    refused(lambda: adapters.load_adapter(random_llava, adapter), "adapter_model.bin")
    assert not (tmp_path / "mark").exists()


def test_a_file_for_more_weights_may_be_there_without_any(random_llava, adapter):
    """Trainers write it always."""
    torch.save({}, adapter / "non_lora_state_dict.bin")
    with adapters.attached(random_llava, adapter):
        pass


def test_loading_says_nothing(folder, capfd):
    load(folder)
    assert capfd.readouterr() == ("", "")
    assert files.read(folder)


@pytest.mark.parametrize("command", ["chat", "audit"])
@pytest.mark.parametrize("change", [renamed, halved])
def test_commands_refuse_an_adapter_that_does_not_fit(command, change, adapter, random_llava, capsys):
    changed(adapter / adapters.WEIGHTS, change)
    if command == "chat":
        code = chat.main([str(adapter), "--prompt", "Hello", "--device", "cpu"])
    else:
        code = audit.main([str(adapter), "--rows", "3", "--attacks", "BadNets-T"])
    told = capsys.readouterr()
    assert code == 2 and "of 28 weights" in told.err and random_llava.name in told.err and not told.out
    assert "tuning" not in told.err
