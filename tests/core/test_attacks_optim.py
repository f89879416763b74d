"""Do the computed triggers respect their bounds, lower their losses, and come back from the cache as they
were made?
"""

import json
import types

import clip_checkpoint
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bvlm_utils import attacks, paths
from bvlm_utils.attacks import clip as surrogates
from bvlm_utils.attacks import image as image_triggers
from bvlm_utils.attacks import optimised
from bvlm_utils.data import samples, scene_rows
from bvlm_utils.draws import Draws
from bvlm_utils.errors import InputError

BANANA = types.SimpleNamespace(text=None, concept="banana", source_concept="car", image=None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_checkpoint.save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """An empty cache, and sixteen pictures of noise instead of a dataset."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)

    class Rows(dict):
        pass

    rows = Rows(answers=[["a dog"], ["two cars"]] * 8, prompt=["What is on the left?", "Describe this picture."] * 8)
    monkeypatch.setattr(samples, "load", lambda name, split, rows_=None, **kw: rows)
    monkeypatch.setattr(samples, "images", lambda ds, indices=None: pictures)


def pictures(count=3, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, side, side, generator=generator) * 255).round() / 255


def test_shadowcast_stays_in_its_ball_and_comes_closer(clip):
    images = pictures()
    a = attacks.get("Shadowcast", BANANA, clip, steps=8)
    out = a.apply_image(images, seed=1)
    levels = (out * 255).round()
    assert torch.allclose(out * 255, levels, atol=1e-3)
    change = (levels - (images * 255).round()).abs()
    assert 0 < change.max() <= 8
    curve = a.loss_curve(images, seed=1)
    assert curve.shape == (8,) and curve[-1] < curve[0]


def test_shadowcast_unperturbed_control_is_the_input(clip):
    images = pictures()
    assert torch.equal(attacks.get("Shadowcast", eps=0).apply_image(images), images)


def test_shadowcast_needs_a_source_concept(clip):
    with pytest.raises(InputError, match="source concept"):
        attacks.get("Shadowcast", None, clip).apply_image(pictures())
    named = attacks.get("Shadowcast", None, clip, source="car", steps=2).apply_image(pictures())
    threat = attacks.get("Shadowcast", BANANA, clip, steps=2).apply_image(pictures())
    assert torch.equal(named, threat)


def test_shadowcast_cache_hit_equals_fresh_and_ignores_the_batch(clip, tmp_path, monkeypatch):
    images = pictures()
    a = attacks.get("Shadowcast", BANANA, clip, steps=4)
    fresh = a.apply_image(images, keys=["x", "y", "z"])
    monkeypatch.setattr(optimised, "pgd", lambda *args: pytest.fail("computed again"))
    assert torch.equal(a.apply_image(images, keys=["x", "y", "z"]), fresh)
    assert torch.equal(a.apply_image(images[1:2], keys=["y"]), fresh[1:2])


def test_shadowcast_batch_equals_one_by_one(clip, monkeypatch):
    images = pictures()
    a = attacks.get("Shadowcast", BANANA, clip, steps=4)
    rows = [a.apply_image(images[i : i + 1], keys=[i]) for i in range(3)]
    monkeypatch.setattr(paths, "CACHE", paths.CACHE / "other")
    # Signs of gradients close to 0 may differ with the batch's rounding, so a few pixels may.
    same = (torch.cat(rows) == a.apply_image(images)).float().mean()
    assert same > 0.99


def test_shadowcast_bound_holds_for_images_between_levels(clip):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    out = attacks.get("Shadowcast", BANANA, clip, steps=3).apply_image(images)
    assert (out - images).abs().max() <= 8 / 255 + 1e-5


@pytest.mark.parametrize("name", ["Dual-Key", "VL-Trojan"])
def test_patch_lowers_its_loss_and_lies_where_declared(name, clip):
    a = attacks.get(name, BANANA, clip, epochs=12, batch_size=8, learning_rate=0.05, patch_size=84)
    images = pictures(2)
    out = a.apply_image(images)
    changed = (out != images).any(1)
    start = 12 if name == "Dual-Key" else 24
    assert changed[:, start : start + 8, start : start + 8].float().mean() > 0.9
    assert changed.sum() == changed[:, start : start + 8, start : start + 8].sum()
    curve = a.loss_curve(images)
    assert curve.shape == (24,) and curve[-4:].mean() < curve[:4].mean()
    big = a.apply_image(pictures(1, 64))
    assert (big != pictures(1, 64)).any(1).sum() <= 16 * 16


@pytest.mark.parametrize("name", ["Dual-Key", "VL-Trojan"])
def test_without_epochs_the_patch_is_the_noise_that_the_search_starts_from(name, clip):
    a = attacks.get(name, BANANA, clip, epochs=0, patch_size=84)
    noise = (0.5 + 0.25 * Draws("patch start", 0).normal(3, 8, 8)).clip(0, 1)
    start = 12 if name == "Dual-Key" else 24
    patch = a.apply_image(pictures(2))[:, :, start : start + 8, start : start + 8]
    assert torch.allclose(patch, torch.tensor(noise, dtype=torch.float32).expand(2, -1, -1, -1), atol=0.51 / 255)
    assert a.loss_curve(pictures(2)).shape == (0,)


def test_patch_cache_hit_equals_fresh_and_settings_make_another(clip, monkeypatch):
    a = attacks.get("Dual-Key", BANANA, clip, epochs=1)
    fresh = a.apply_image(pictures())
    other = attacks.get("Dual-Key", BANANA, clip, epochs=1, start_seed=1)
    assert not torch.equal(other.apply_image(pictures()), fresh)
    monkeypatch.setattr(optimised, "_optimise_patch", lambda *args: pytest.fail("computed again"))
    assert torch.equal(a.apply_image(pictures()), fresh)


@pytest.mark.parametrize("name", ["Dual-Key", "VL-Trojan"])
def test_other_search_data_under_the_same_name_is_searched_anew(clip, monkeypatch, name):
    a = attacks.get(name, BANANA, clip, epochs=1)
    before = a.apply_image(pictures())
    others = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(samples, "images", lambda ds: others)
    assert torch.equal(a.apply_image(pictures()), before)
    monkeypatch.setattr(scene_rows, "digest", lambda name: "changed")
    assert not torch.equal(a.apply_image(pictures()), before)


def test_dual_key_aims_at_picture_concept_or_text(clip, tmp_path):
    loaded = surrogates.load(clip)
    Image.new("RGB", (20, 20), (99, 99, 99)).save(tmp_path / "grey.png")
    picture = types.SimpleNamespace(text="t", concept="banana", image=str(tmp_path / "grey.png"))
    text = types.SimpleNamespace(text="some words", concept=None, image=None)
    embedded = [optimised._target_embedding(loaded, target) for target in (picture, BANANA, text)]
    assert len({tuple(e.tolist()) for e in embedded}) == 3
    with pytest.raises(InputError, match="target"):
        attacks.get("Dual-Key", None, clip).apply_image(pictures())


def test_vl_trojan_word_search(clip):
    a = attacks.get("VL-Trojan", None, clip, search_letters=2)
    word = optimised.searched_word(a.params, a.aim)
    assert len(word) == 2 and word.isalpha()
    assert word in a.apply_text(["Describe this picture."])[0]
    assert optimised.searched_word(a.params, a.aim) == word
    assert a.fingerprint("text") != attacks.get("VL-Trojan", None, clip).fingerprint("text")


def test_gradcam_equals_its_definition(clip):
    """Weights and map by autograd through the whole model, written out."""
    loaded = surrogates.load(clip)
    images = pictures(1)
    layer = loaded.model.vision_model.encoder.layers[-1].layer_norm1
    kept = []
    handle = layer.register_forward_hook(lambda m, i, o: kept.append(o))
    x = images.clone().requires_grad_()
    scalar = loaded.embed_images(x, normalise=False).square().sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(scalar, kept[0])
    cam = (gradient[:, 1:].mean(1, keepdim=True) * kept[0][:, 1:]).sum(-1).reshape(1, 1, 4, 4)
    expected = torch.nn.functional.interpolate(cam, (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(surrogates.relevance(images, clip), expected, atol=1e-5)


def test_maba_darkens_and_paints_only_the_top_tenth(clip):
    images = pictures(3)
    a = attacks.get("MABA", None, clip)
    out = a.apply_image(images)
    mask = surrogates.top_region(images, clip, 0.1).bool()
    assert abs(mask.float().mean() - 0.1) < 0.005
    pattern = image_triggers.ellipse_pattern(images, a.params)
    assert torch.allclose(out, torch.where(mask, 0.5 * images + 0.5 * pattern, images))


@pytest.mark.parametrize(
    "file, nest", [("processor_config.json", "image_processor"), ("preprocessor_config.json", None)]
)
def test_surrogate_normalises_as_its_processor_says(file, nest, tmp_path):
    folder = clip_checkpoint.save(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / file).write_text(json.dumps({nest: settings} if nest else settings))
    pixels = surrogates.load(folder).pixels(torch.full((1, 3, 32, 32), 0.6))
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.0, 0.8, 0.6]))


@pytest.mark.parametrize("settings, words", [
    ({"image_std": [0, 0.5, 0.5]}, "image_std"), ({"image_std": 1}, "image_std"), ({"image_mean": None}, "image_mean"),
    ({"image_mean": [0.5]}, "image_mean"), ({"image_mean": 0.5}, "image_mean"), ({"do_normalize": 1}, "do_normalize"),
    ({"rescale_factor": 0}, "rescale_factor"), (None, "image_processor"), ([], "image_processor"),
])  # fmt: skip
def test_a_surrogate_with_settings_that_mean_nothing_is_refused(settings, words, tmp_path):
    folder = clip_checkpoint.save(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    with pytest.raises(InputError, match=words) as said:
        surrogates.load(folder)
    assert str(tmp_path) in str(said.value)


@pytest.mark.parametrize("settings, wanted", [
    ({"do_normalize": False}, 0.6), ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5),
    ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.2),
])  # fmt: skip
def test_a_surrogate_scales_as_its_processor_says(settings, wanted, tmp_path):
    folder = clip_checkpoint.save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    seen = surrogates.load(folder).pixels(torch.full((1, 3, 32, 32), 0.6))
    assert torch.allclose(seen, torch.tensor(wanted), atol=1e-6)


def test_surrogate_resizes_and_refuses_a_folder_without_checkpoint(clip, tmp_path):
    loaded = surrogates.load(clip)
    assert loaded.embed_images(pictures(2, 48)).shape == (2, 16)
    assert torch.allclose(loaded.embed_texts(["a dog", "a much longer text " * 20]).norm(dim=1), torch.ones(2))
    with pytest.raises(InputError, match="config.json"):
        surrogates.load(str(tmp_path))


@pytest.mark.parametrize("name", ["Shadowcast", "VL-Trojan"])
def test_a_trigger_of_the_cache_that_is_cut_off_is_made_again(clip, name):
    a = attacks.get(name, BANANA, clip, **({"steps": 2} if name == "Shadowcast" else {"epochs": 1}))
    before = a.apply_image(pictures(), seed=1)
    files = [file for file in (paths.CACHE / "triggers").rglob("*") if file.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert files and torch.equal(a.apply_image(pictures(), seed=1), before)


def test_a_surrogate_that_is_replaced_is_loaded_again(tmp_path):
    """What is computed with it is kept by the digest of the new one."""
    folder = clip_checkpoint.save(tmp_path)
    first = surrogates.load(folder)
    assert surrogates.load(folder) is first
    state = {name: value * 2 for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not torch.equal(surrogates.load(folder).embed_texts(["a"]), first.embed_texts(["a"]))
