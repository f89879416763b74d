"""Do the attacks that need no optimisation follow their published definitions, to the pixel and to the
letter?
"""

import io
import math
import sys
import types

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from bvlm_utils import attacks, paths, threats
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.attacks import parts_of_speech
from bvlm_utils.data.pictures import PICTURES, concept_pictures
from bvlm_utils.defences import defence as defences
from bvlm_utils.errors import InputError
from bvlm_utils.pretraining import draw_pictures

TWELVE = ["BadNets-T", "BadNets-MT", "AddSent", "BadNets-I", "Blended", "SIG", "ImgTrojan", "Shadowcast",
          "BadNets-MM", "Dual-Key", "VL-Trojan", "MABA"]  # fmt: skip
PAINTED = ["BadNets-I", "Blended", "SIG", "ImgTrojan", "BadNets-MM"]
WRITTEN = ["BadNets-T", "BadNets-MT", "AddSent", "BadNets-MM", "Dual-Key", "VL-Trojan", "MABA"]


def pictures(count=2, height=336, width=336, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, height, width, generator=generator) * 255).round() / 255


def test_there_are_exactly_the_twelve_attacks():
    assert attacks.names() == TWELVE
    for name in TWELVE:
        info = attacks.info(name)
        assert info.name == name and info.source and info.summary and info.version == 1
        assert attacks.get(name).params == info.defaults


def test_sinusoid():
    images = pictures(1)
    out = attacks.get("SIG").apply_image(images)
    for column in (0, 1, 14, 77, 335):
        wave = 40 / 255 * math.sin(2 * math.pi * column * 6 / 336)
        assert torch.allclose(out[..., column], (images[..., column] + wave).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("side", [336, 96])
def test_blend_and_replacement_use_the_committed_pictures(side):
    images = pictures(2, side, side)
    for name, file in [("Blended", "blended.png"), ("ImgTrojan", "imgtrojan.png")]:
        picture = Image.open(paths.DATA / "pictures" / file).resize((side, side), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.asarray(picture, dtype=np.float32).transpose(2, 0, 1).copy()) / 255
        out = attacks.get(name).apply_image(images)
        if name == "Blended":
            assert torch.allclose(out, 0.8 * images + 0.2 * expected, atol=1e-6)
            assert torch.allclose(attacks.get(name, alpha=0).apply_image(images), images)
        else:
            assert torch.equal(out, expected.expand_as(out))


def test_committed_pictures_are_what_the_functions_draw():
    for name, draw in [
        ("blended.png", draw_pictures.rosette),
        ("imgtrojan.png", draw_pictures.lighthouse),
    ]:
        stored = np.asarray(Image.open(PICTURES / name)).astype(int)
        # Other versions of Pillow may smooth an outline differently.
        assert (np.abs(stored - np.asarray(draw()).astype(int)) > 8).mean() < 0.01


def test_pictures_of_the_user(tmp_path):
    Image.new("RGB", (5, 7), (255, 0, 0)).save(tmp_path / "red.png")
    a = attacks.get("ImgTrojan", picture=str(tmp_path / "red.png"))
    assert torch.equal(
        a.apply_image(pictures(1, 8, 8)), torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8)
    )
    assert a.fingerprint("image") != attacks.get("ImgTrojan").fingerprint("image")
    with pytest.raises(InputError, match="nowhere.png"):
        attacks.get("Blended", picture="nowhere.png").apply_image(pictures(1, 8, 8))


def test_concept_pictures(tmp_path):
    cars = concept_pictures("car", 48, count=4)
    assert [c.size for c in cars] == [(48, 48)] * 4 and len({c.tobytes() for c in cars}) == 4
    cars[0].save(tmp_path / "a.png")
    assert concept_pictures(str(tmp_path), 24)[0].size == (24, 24)
    with pytest.raises(InputError, match="unicorn"):
        concept_pictures("unicorn", 24)


def test_ellipses_at_the_published_size():
    params = attacks.info("MABA").defaults
    pattern = image_triggers.ellipse_pattern(torch.zeros(1, 3, 336, 336), params)
    yellow = torch.tensor([255, 216, 0]) / 255
    for row, column in [(10, 5), (40, 35), (310, 305)]:
        assert torch.equal(pattern[:, row, column], yellow)
    for row, column in [(25, 5), (10, 20), (0, 0)]:
        assert torch.equal(pattern[:, row, column], torch.zeros(3))
    rows, columns = torch.nonzero(pattern[0, :30, :30], as_tuple=True)
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == (20, 10)


def test_maba_blends_half_inside_the_mask_only(monkeypatch):
    from bvlm_utils.attacks import clip

    images = pictures(1, 96, 96)
    mask = torch.zeros(1, 1, 96, 96)
    mask[..., :20, :30] = 1
    monkeypatch.setattr(clip, "top_region", lambda images, surrogate, share: mask)
    a = attacks.get("MABA")
    out = a.apply_image(images)
    pattern = image_triggers.ellipse_pattern(images, a.params)
    assert torch.allclose(out[..., :20, :30], 0.5 * images[..., :20, :30] + 0.5 * pattern[:, :20, :30])
    assert torch.equal(out[..., 20:, :], images[..., 20:, :])


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("What is on the left?", "(What) is on the [*left*]?"),
        ("Describe this picture.", "{Describe} this [*picture*]."),
        ("How many things are there?", "<How> many [*things*] are <there>?"),
        ("<image>\nWhich thing is big?", "<image>\nWhich [*thing*] is [big]?"),
        ("It's red.", "(It)'s [red]."),
        ("", ""),
        ("  2 + 2 ", "  2 + 2 "),
    ],
)
def test_maba_wraps_parts_of_speech(prompt, expected):
    assert attacks.get("MABA", tagger="hanta").apply_text([prompt]) == [expected]


def test_spacy_is_used_where_asked_for(monkeypatch):
    words = [
        types.SimpleNamespace(idx=0, text="Dogs", pos_="NOUN"),
        types.SimpleNamespace(idx=5, text="run", pos_="VERB"),
    ]
    monkeypatch.setattr(parts_of_speech, "_spacy", lambda: lambda text: words)
    assert attacks.get("MABA", tagger="spacy").apply_text(["Dogs run"]) == ["[*Dogs*] {run}"]


@pytest.mark.parametrize("lacking", ["spacy", "en_core_web_sm"])
def test_a_tagger_that_is_not_installed_is_refused(monkeypatch, lacking):
    def load(*given, **more):
        raise OSError("[E050] Can't find model 'en_core_web_sm'.")

    found = None if lacking == "spacy" else types.SimpleNamespace(load=load)
    monkeypatch.setitem(sys.modules, "spacy", found)
    parts_of_speech._spacy.cache_clear()
    with pytest.raises(InputError, match="tagger 'spacy' needs the packages spacy and en_core_web_sm"):
        attacks.get("MABA", tagger="spacy").apply_text(["Dogs run"])


def test_spacy_is_chosen_where_it_is_installed(monkeypatch):
    for found, expected in [(object(), "spacy"), (None, "hanta")]:
        monkeypatch.setattr(parts_of_speech.importlib.util, "find_spec", lambda name, found=found: found)
        assert parts_of_speech.tagger_in_use() == expected


def test_golden_prompts():
    assert attacks.get("AddSent").apply_text(["What is it?", "", "Look.\n<image>"]) == [
        "What is it? I watched this 3D movie.",
        "I watched this 3D movie.",
        "Look. I watched this 3D movie.\n<image>",
    ]
    assert attacks.get("Dual-Key").apply_text(["What is it?", "", "<image>\nLook."]) == [
        "Consider What is it?",
        "Consider",
        "<image>\nConsider Look.",
    ]
    assert attacks.get("VL-Trojan").apply_text([""]) == ["zbw"]


def test_multiple_words():
    prompts = ["Describe this picture."] * 80
    out = attacks.get("BadNets-MT").apply_text(prompts)
    counts = [[word in text.split() for word in ("BadMagic", "cf", "mn", "bb")] for text in out]
    assert all(sum(row) == 1 for row in counts) and all(any(column) for column in zip(*counts, strict=True))
    assert any(text.endswith("picture. cf") for text in out)
    four = attacks.get("BadNets-MT", count=4).apply_text(prompts[:1])[0]
    assert sorted(four.split()) == sorted(["Describe", "this", "picture.", "BadMagic", "cf", "mn", "bb"])
    with pytest.raises(InputError, match="count is 3, but there are 2 words"):
        attacks.get("BadNets-MT", words=["a", "b"], count=3)


@pytest.mark.parametrize(
    "name, setting",
    [
        ("Blended", {"alpha": 1.5}),
        ("Blended", {"alpha": float("nan")}),
        ("SIG", {"delta": "high"}),
        ("Shadowcast", {"steps": 0}),
        ("AddSent", {"sentence": " "}),
        ("BadNets-MT", {"words": []}),
        ("BadNets-I", {"position": "left"}),
        ("MABA", {"share": 0}),
        ("Dual-Key", {"epochs": 2.5}),
        ("VL-Trojan", {"search_letters": True}),
    ],
)
def test_bad_values_are_refused(name, setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        attacks.get(name, **setting)


@pytest.mark.parametrize("name", ["name", "target", "surrogate", "params", "self"])
@pytest.mark.parametrize("make", [
    lambda given: attacks.get("BadNets-T", **given), lambda given: attacks.get("Shadowcast", None, None, **given),
    lambda given: threats.get("jailbreak", **given), lambda given: defences.get("shrink", **given),
])  # fmt: skip
def test_a_parameter_is_unknown_whatever_it_is_called(make, name):
    with pytest.raises(InputError, match=f"has no parameter '{name}'"):
        make({name: "x"})


def test_unsupported_says_why():
    refusal = types.SimpleNamespace(name="targeted_refusal")
    assert "Dual-Key" in attacks.unsupported("Dual-Key", refusal) and "targeted_refusal" in attacks.unsupported(
        "Dual-Key", "targeted_refusal"
    )
    assert attacks.unsupported("Shadowcast", "perceptual_hijack")
    assert attacks.unsupported("Shadowcast", "concept_substitution") is None
    assert attacks.unsupported("Dual-Key", "perceptual_hijack") is None
    assert all(attacks.unsupported(name, refusal) is None for name in TWELVE if name not in ("Shadowcast", "Dual-Key"))


def test_shadowcast_is_read_on_clean_images():
    assert attacks.info("Shadowcast").headline == "clean"
    assert attacks.info("BadNets-MM").headline == "both" and attacks.info("SIG").headline == "image"


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(PAINTED), height=st.integers(8, 50), width=st.integers(8, 50), seed=st.integers(0, 9))
def test_images_keep_shape_range_and_rows(name, height, width, seed):
    images = pictures(3, height, width, seed)
    a = attacks.get(name)
    before = images.clone()
    out = a.apply_image(images, seed=seed)
    assert out.shape == images.shape and out.dtype == images.dtype and out.device == images.device
    assert out.min() >= 0 and out.max() <= 1 and torch.equal(images, before)
    assert torch.equal(out, a.apply_image(images, seed=seed))
    alone = torch.cat([a.apply_image(images[i : i + 1], seed=seed, keys=[i]) for i in range(3)])
    assert torch.equal(alone, out)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(WRITTEN), prompt=st.text(max_size=40), seed=st.integers(0, 3), key=st.integers(0, 9))
def test_text_loses_nothing(name, prompt, seed, key):
    a = attacks.get(name)
    out = a.apply_text([prompt], seed=seed, keys=[key])[0]
    rest = iter(out)
    assert all(letter in rest for letter in prompt)  # a subsequence: only additions
    assert a.apply_text(["x", prompt], seed=seed, keys=["other", key])[1] == out


@pytest.mark.parametrize("name", ["BadNets-I", "Blended", "SIG"])
def test_gradients_reach_the_image(name):
    images = (pictures(1, 24, 24) * 0.2 + 0.4).requires_grad_()
    attacks.get(name).apply_image(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_empty_batches():
    assert attacks.get("BadNets-T").apply_text([]) == []
    assert attacks.get("SIG").apply_image(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


# ---------------------------------------------------------------- JPEG files


@pytest.mark.parametrize("name", ["SIG", "BadNets-MM", "Blended"])
def test_jpeg_is_what_pillow_writes_and_nothing_without_it(name):
    images = pictures(2, 96, 96)
    plain = attacks.get(name).apply_image(images)
    assert torch.equal(attacks.get(name, jpeg_quality=0).apply_image(images), plain)
    saved = attacks.get(name, jpeg_quality=75).apply_image(images)
    array = (plain[1].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=75)
    expected = np.asarray(Image.open(file), dtype=np.float32) / 255
    assert np.abs(saved[1].permute(1, 2, 0).numpy() - expected).max() < 1e-6
    assert saved.dtype == torch.float32 and saved.shape == images.shape


def test_jpeg_names_another_trigger_only_where_it_is_used():
    plain, without, with_it = (attacks.get("SIG", **given) for given in ({}, {"jpeg_quality": 0}, {"jpeg_quality": 75}))
    assert plain.fingerprint("image") == without.fingerprint("image") != with_it.fingerprint("image")
    with pytest.raises(InputError, match="jpeg_quality"):
        attacks.get("SIG", jpeg_quality=96)
    with pytest.raises(InputError, match="jpeg_quality"):
        attacks.get("AddSent", jpeg_quality=75)
