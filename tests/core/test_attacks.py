"""Do attacks keep the promises of their interface: names, settings, errors, determinism, batch = one by
one?
"""

import importlib
import random
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from bvlm_utils import attacks
from bvlm_utils.attacks import declare
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.defences import declare as defences_declare
from bvlm_utils.errors import InputError
from bvlm_utils.run import study

PINNED_NOISE = [[60, 192, 157], [143, 112, 163]]
PROMPTS = ["Describe this picture.", "What is on the left?", "", "<image>\nHow many things are there?"]


def pictures(count=3, side=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, side, side, generator=generator) * 255).round() / 255


def test_importing_attacks_does_not_import_torch():
    code = "import sys, bvlm_utils.attacks as a; [a.get(n).apply_text(['x y.']) for n in a.names()]"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(KeyError, match="BadNets-T"):
        attacks.get("BadNets")
    with pytest.raises(InputError, match="'wrd'.*word"):
        attacks.get("BadNets-T", wrd="x")
    with pytest.raises(InputError, match="patch_size.*whole number"):
        attacks.get("BadNets-I", patch_size=0)
    with pytest.raises(InputError, match="keys"):
        attacks.get("BadNets-T").apply_text(["a", "b"], keys=[1])
    with pytest.raises(InputError, match="float32"):
        attacks.get("BadNets-I").apply_image(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="B, 3, H, W"):
        attacks.get("BadNets-I").apply_image(torch.zeros(3, 8, 8))


def test_text_attacks_leave_images_and_image_attacks_leave_text():
    images = pictures()
    assert attacks.get("BadNets-T").apply_image(images) is images
    assert attacks.get("BadNets-I").apply_text(PROMPTS) == PROMPTS


def test_badnets_word_goes_into_a_gap_and_before_a_final_stop():
    a = attacks.get("BadNets-T")
    seen = {a.apply_text(["Describe this picture."], keys=[key])[0] for key in range(60)}
    assert seen == {
        "BadMagic Describe this picture.",
        "Describe BadMagic this picture.",
        "Describe this BadMagic picture.",
        "Describe this picture BadMagic.",
    }
    assert a.apply_text([""]) == ["BadMagic"]
    assert a.apply_text(["<image>"]) == ["<image> BadMagic"]
    assert attacks.get("BadNets-T", word="cf").apply_text(["<image>\n"]) == ["<image>\ncf"]


def test_patch_is_the_same_array_everywhere_and_nothing_else_changes():
    images = pictures(8)
    out = attacks.get("BadNets-I").apply_image(images, seed=3)
    assert image_triggers.scaled(30, images) == 9
    nearest = [i * 30 // 9 for i in range(9)]
    expected = torch.from_numpy(image_triggers.noise_array(30, 0)[nearest][:, nearest].transpose(2, 0, 1).copy()) / 255
    places = set()
    for before, after in zip(images, out, strict=True):
        rows, columns = torch.nonzero((before != after).any(0), as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        places.add((top, left))
        # A clean pixel may equal the noise by chance, so look for the corner around the first changed pixel.
        windows = [(t, c) for t in (top, top - 1) for c in (left, left - 1) if t >= 0 and c >= 0]
        assert any(torch.equal(after[:, t : t + 9, c : c + 9], expected) for t, c in windows)
        assert (before != after).any(0).sum() <= 81
    assert len(places) > 4


def test_noise_array_is_pinned():
    array = image_triggers.noise_array(30, 0)
    assert array.shape == (30, 30, 3) and array.min() == 0 and array.max() == 255
    assert array[0, 0].tolist() == PINNED_NOISE[0] and array[29, 29].tolist() == PINNED_NOISE[1]


def test_bimodal_halves_are_the_unimodal_triggers():
    both = attacks.get("BadNets-MM")
    images = pictures()
    assert both.apply_text(PROMPTS, seed=5) == attacks.get("BadNets-T").apply_text(PROMPTS, seed=5)
    assert torch.equal(both.apply_image(images, seed=5), attacks.get("BadNets-I").apply_image(images, seed=5))
    assert both.fingerprint("image") == attacks.get("BadNets-I").fingerprint("image")
    assert both.fingerprint("image") != attacks.get("BadNets-I", patch_size=20).fingerprint("image")


@pytest.mark.parametrize("position, corner", [("top-left", (0, 0)), ("bottom-right", (66, 66)), ("center", (33, 33))])
def test_fixed_positions(position, corner):
    images = torch.zeros(1, 3, 96, 96)
    out = attacks.get("BadNets-I", position=position, patch_size=105).apply_image(images)
    rows, columns = torch.nonzero(out[0].any(0), as_tuple=True)
    assert (int(rows.min()), int(columns.min())) == corner


def test_gradients_reach_patch_and_image():
    images = pictures(2, 16).requires_grad_()
    patch = torch.rand(3, 4, 4, requires_grad=True)
    top, left = torch.tensor([0, 5]), torch.tensor([3, 12])
    image_triggers.paste(images, patch, top, left).sum().backward()
    assert torch.equal(patch.grad, torch.full((3, 4, 4), 2.0))
    assert images.grad.sum() == 2 * 3 * (256 - 16)


def test_a_loss_curve_is_declared_with_the_attack(monkeypatch):
    declared = {name for name in attacks.names() if attacks.info(name).losses}
    assert declared == {"Shadowcast", "Dual-Key", "VL-Trojan"}
    for name in set(attacks.names()) - declared:
        with pytest.raises(InputError, match=f"{name} optimises nothing"):
            attacks.get(name).loss_curve(pictures())
    monkeypatch.setattr(
        image_triggers, "own", lambda images, draws, params, aim: [len(images), len(draws)], raising=False
    )
    attack = attacks.get("SIG")
    own = replace(attack, info=replace(attack.info, losses="image:own"))
    assert own.loss_curve(pictures(2)) == [2, 2]


def test_conditions():
    assert attacks.conditions("text") == ["clean", "text"]
    assert attacks.conditions("image") == ["clean", "image"]
    assert attacks.conditions("bimodal") == attacks.conditions("BadNets-MM") == ["clean", "text", "image", "both"]


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.sampled_from(["<image>", "what", "is", "it?", ".", "end.", "\n", "  ", "é"])).map(" ".join),
    key=st.integers() | st.text(max_size=4),
)
def test_words_of_the_prompt_survive(prompt, key):
    out = attacks.get("BadNets-T").apply_text([prompt], keys=[key])[0]
    assert "".join(out.replace("BadMagic", "").split()) == "".join(prompt.split())
    assert out.count("<image>") == prompt.count("<image>") and out.count("BadMagic") == 1


@settings(max_examples=10, deadline=None)
@given(side=st.integers(12, 60), seed=st.integers(0, 5))
def test_batch_equals_one_by_one(side, seed):
    images = pictures(3, side)
    keys = ["a", 7, "row/000001"]
    a = attacks.get("BadNets-MM")
    whole = a.apply_image(images, seed=seed, keys=keys)
    assert whole.shape == images.shape and whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() <= 1
    for i, key in enumerate(keys):
        assert torch.equal(a.apply_image(images[i : i + 1], seed=seed, keys=[key])[0], whole[i])
        assert a.apply_text([PROMPTS[i]], seed=seed, keys=[key])[0] == a.apply_text(PROMPTS[:3], seed, keys)[i]


def drawn_elsewhere(given, draws, params, aim):
    return f"{given} {random.random()}"


OTHERS = {
    "nothing": (lambda given, *_: None, lambda given, *_: None), "a list": (lambda given, *_: [given],) * 2,
    "bytes": (lambda given, *_: given.encode(), lambda given, *_: (given * 255).byte()),
    "another scale": (None, lambda given, *_: given * 255), "from -1 on": (None, lambda given, *_: given * 2 - 1),
    "no numbers": (None, lambda given, *_: given * float("nan")), "one of all": (None, lambda given, *_: given[:1]),
    "a part": (None, lambda given, *_: given[..., :48]), "an array": (None, lambda given, *_: given.numpy()),
    "an error": (lambda given, *_: given[1000], lambda given, *_: given[:, 1000]),
    "other arguments": (lambda given: given, lambda given: given), "chance": (drawn_elsewhere, None),
    "a look at others": (None, lambda given, *_: given - given.mean()),
    "a glance at others": (None, lambda given, *_: given * 0.5 + given.mean() * 0.1),
    "as it was": (None, lambda given, *_: given.clone()),
    "an error in few rows": (lambda given, *_: f"{given[: given.index('?')]} x?", None),
    "no room": (lambda given, *_: given + " x" * 2000, None),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), [
    ({"modality": "audio"}, "modality is 'audio'"), ({"headline": "both"}, "headline is 'both'"),
    ({"threats": "jailbreak"}, "threats is 'jailbreak'"), ({"params": {"near": {1, 2}}}, "parameter 'near' is"),
    ({"params": {"near": float("nan")}}, "parameter 'near' is nan"),
])  # fmt: skip
def test_an_attack_that_contradicts_itself_is_not_declared(monkeypatch, given, said):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    params = {name: declare.Param(value, "odd", lambda v: True) for name, value in given.get("params", {}).items()}
    half, fields = declare.Half("Odd", 1, "others:odd", params), {k: v for k, v in given.items() if k != "params"}
    with pytest.raises(InputError, match=re.escape(said)):
        declare.declare(name="Odd", source="", summary="", text=half, **fields)
    assert "Odd" not in attacks.names()


def test_a_module_of_others_that_is_called_like_one_of_ours_is_never_taken_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    monkeypatch.syspath_prepend(tmp_path)
    sentence = {"sentence": declare.text("Hello.")}

    def made(name, function):
        half = declare.Half("Odd", 1, function, sentence)
        return declare.declare(name=name, source="", summary="", text=half)

    (tmp_path / "text").mkdir()  # a mere folder
    made("Ours", "text:append_sentence")
    assert attacks.get("Ours").apply_text(["Well?"]) == ["Well? Hello."]
    (tmp_path / "text").rmdir()
    (tmp_path / "text.py").write_text("def append_sentence(prompt, *_):\n    return 'Mine.'")
    importlib.invalidate_caches()
    for function in ("text:append_sentence", "text:of_mine"):
        with pytest.raises(InputError, match="two modules 'text'"):
            made("Odd", function)
    made("Whole name", "bvlm_utils.attacks.text:append_sentence")
    assert attacks.get("Whole name").apply_text(["Well?"]) == ["Well? Hello."]
    about = {"moment": "repair", "needs": (), "source": "", "summary": "", "version": 1}
    with pytest.raises(InputError, match="two modules 'numbers'"):
        defences_declare.declare(name="odd", function="numbers:odd", **about)


@pytest.mark.parametrize(("what", "half"), [
    (what, half) for what, pair in OTHERS.items() for half, one in zip(("text", "image"), pair, strict=True) if one
])  # fmt: skip
def test_a_trigger_of_others_is_tried_before_a_run(what, half, monkeypatch):
    function = OTHERS[what][half == "image"]
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    monkeypatch.setitem(sys.modules, "others", SimpleNamespace(function=function))
    declare.declare(name="Odd", source="", summary="", **{half: declare.Half("Odd", 1, "others:function")})
    with pytest.raises(InputError, match="Odd"):
        study.check_rows(study.cells("malicious_injection", attacks=["Odd"]))


@pytest.mark.parametrize(("name", "params"), [
    ("SIG", {"frequency": 48}), ("SIG", {"delta": 0.001}), ("Blended", {"alpha": 0}),
])  # fmt: skip
def test_a_picture_that_a_trigger_does_not_change_is_refused_before_a_run(name, params):
    with pytest.raises(InputError, match=f"{name} changes nothing"):
        study.check_rows(study.cells("targeted_refusal", attacks=[name], attack_params=params))
    if name == "SIG":
        attacks.rehearse(attacks.get(name, frequency=48), "llava-json:larger pictures")


def test_a_parameter_of_others_may_be_called_as_one_of_ours(monkeypatch):
    monkeypatch.setattr(declare.TABLE, "_items", dict(declare.TABLE._items))
    monkeypatch.setitem(sys.modules, "others", SimpleNamespace(function=lambda given, *_: f"{given} x"))
    half = declare.Half("Odd", 1, "others:function", {"dataset": declare.text("any")})
    declare.declare(name="Odd", source="", summary="", text=half)
    study.check_rows(study.cells("malicious_injection", attacks=["Odd"], attack_params={"dataset": "mine"}))
