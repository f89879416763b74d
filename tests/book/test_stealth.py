"""Are the stealth numbers what their formulas say, and does the exhibit hold every attack?"""

import dataclasses
import json
import math
import types

import clip_checkpoint
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bvlm_book.chapters import attacks as chapter
from bvlm_book.probes import exhibit
from bvlm_utils import attacks, paths
from bvlm_utils.data import samples


def test_image_numbers():
    clean = np.full((2, 16, 16, 3), 100, np.uint8)
    triggered = clean.copy()
    triggered[0, :4, :4, 0] = 110
    table = exhibit.image_stealth(clean, triggered)
    mse = 16 * 100 / (16 * 16 * 3)
    assert table["psnr"][0] == pytest.approx(10 * math.log10(255**2 / mse))
    assert table["linf"].tolist() == [10, 0] and table["changed"].tolist() == [1 / 16, 0]
    assert math.isinf(table["psnr"][1]) and table["ssim"][1] == 1 and table["ssim"][0] < 1


def test_perplexity_is_that_of_the_model(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(clip_checkpoint.save(tmp_path))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
        total = count = 0
        for text in ("a dog", "What is it?"):
            ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    got = exhibit.perplexity(["a dog", "What is it?", ""], model, tokenizer)
    assert got == pytest.approx(math.exp(total / count), rel=1e-4)
    assert math.isnan(exhibit.perplexity([""], model, tokenizer))


def test_row_leaves_out_what_has_no_meaning():
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    line = exhibit.stealth(attacks.get("AddSent"), pictures, pictures, ["a"], ["a b"])
    assert line["psnr"] is None and line["added_characters"] == 2 and line["perplexity"] is None
    assert exhibit.stealth(attacks.get("SIG"), pictures, pictures, ["a"], ["a"])["added_characters"] is None


def test_exhibit_holds_all_attacks(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    rows = {"answers": [["a dog"]] * 8, "prompt": ["What is it?"] * 8, "row_id": [f"row/{i}" for i in range(8)]}
    monkeypatch.setattr(samples, "load", lambda *a, **k: rows)
    monkeypatch.setattr(samples, "images", lambda *a, **k: pictures)
    for name, setting in [("Shadowcast", "steps"), ("Dual-Key", "epochs"), ("VL-Trojan", "epochs")]:
        spec = attacks.info(name).image.params
        monkeypatch.setitem(spec, setting, dataclasses.replace(spec[setting], default=2))
    target = types.SimpleNamespace(text=None, concept="banana", source_concept="car", image=None)
    table = exhibit.write(tmp_path / "out", pictures, rows, target, clip_checkpoint.save(tmp_path / "clip"))
    assert table["attack"].tolist() == attacks.names()
    stored = json.loads((tmp_path / "out" / "exhibit.json").read_text())
    assert stored["AddSent"]["prompts"][0] == ["What is it?", "What is it? I watched this 3D movie."]
    assert len(stored["Shadowcast"]["loss_curve"]) == 2 and len(stored["Dual-Key"]["loss_curve"]) == 2
    assert stored["SIG"]["loss_curve"] == []
    assert Image.open(tmp_path / "out" / "SIG.png").size == (140, 32)
    assert not (tmp_path / "out" / "AddSent.png").exists()
    by_name = table.set_index("attack")
    assert by_name.loc["Shadowcast", "linf"] <= 8 and by_name.loc["SIG", "linf"] == 40
    assert by_name.loc["BadNets-T", "added_characters"] == len(" BadMagic")


@pytest.mark.parametrize(("name", "content"), [
    (None, b""), ("exhibit.json", b'{"SIG": {"pro'), ("exhibit.json", b'{"SIG": {}}'), ("clean.png", b"\x89PNG"),
    ("SIG.png", None), ("SIG.png", b""), ("stealth.csv", b""),
])  # fmt: skip
def test_of_a_damaged_exhibit_nothing_is_shown_and_its_folder_is_named(tmp_path, capsys, name, content):
    folder = tmp_path / "attacks"
    folder.mkdir()
    for picture in ("clean", "SIG"):
        exhibit.strip(np.zeros((2, 8, 8, 3), np.uint8)).save(folder / f"{picture}.png")
    entry = {"prompts": [["a", "a"], ["b", "b"]], "loss_curve": [], "loss_per": "step"}
    (folder / "exhibit.json").write_text(json.dumps({"SIG": entry, "Mine": entry}))
    (folder / "stealth.csv").write_text("attack,psnr\nSIG,30\n")
    if name is not None:
        (folder / name).unlink()
    if name is not None and content is not None:
        (folder / name).write_bytes(content)
    shown, _, stealth = chapter.read_exhibit(str(tmp_path))
    assert [one.attack for one in shown] == ["SIG"] * (name is None) and len(stealth) == (name is None)
    assert (str(folder) in capsys.readouterr().err) == (name is not None)
