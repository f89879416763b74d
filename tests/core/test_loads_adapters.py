"""Adapters are checked when loaded: weights that do not fit, settings that say otherwise, files beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from spoilt import FAMILIES, LFS, Harmful, change_json, changed, cut, load, refused, text, without

from bvlm_utils import audit, chat, defences, store
from bvlm_utils.defences import weights
from bvlm_utils.errors import Remark
from bvlm_utils.models import victim
from bvlm_utils.train import adapters, decode, grouped
from bvlm_utils.train.settings import TrainSettings


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
