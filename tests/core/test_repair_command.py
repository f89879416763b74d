"""The command that repairs an adapter, as somebody types it."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from test_repairs import planted
from transformers import AutoModelForImageTextToText

from bvlm_utils.defences import __main__ as command
from bvlm_utils.defences import repair_command
from bvlm_utils.errors import InputError, Remark
from bvlm_utils.models import names, victim


@pytest.fixture(scope="module")
def suspect(checkpoint, tmp_path_factory):
    """An adapter of somebody's that is on some layers only, and its folder."""
    loaded = victim.from_pretrained(str(checkpoint("llava")), device="cpu")
    names = [name for name, _ in loaded.model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    names = [name for name in names if "language" in name]
    folder = tmp_path_factory.mktemp("suspect")
    planted(loaded, names).save(folder, {"model": loaded.name})
    return folder


def test_a_repaired_adapter_has_a_card_and_loads_in_peft(suspect, checkpoint, tmp_path, capsys):
    given = [str(suspect), "--method", "restore", "--set", "share=1", "rows=4", "--clean-rows", "4", "--rows", "3"]
    out = tmp_path / "out"
    triggers = ["--attacks", "BadNets-T", "--word", "xyzzy"]
    assert command.main(["repair", *given, *triggers, "--out", str(out)]) == 0
    said, text = capsys.readouterr().out, (out / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert set(lines) <= set(said.splitlines()) and sum("trigger changes" in line for line in lines) == 2
    assert any(line.startswith("| word 'xyzzy': ") for line in lines)
    settings = json.loads(text.partition("```json\n")[2].partition("```")[0])
    assert settings["settings"] == {"by": "weights", "share": 1, "rows": 4} and settings["method"] == "restore"
    base = AutoModelForImageTextToText.from_pretrained(checkpoint("llava"))
    loaded = PeftModel.from_pretrained(base, out)
    assert all(value.abs().max() == 0 for name, value in loaded.named_parameters() if "lora_B" in name)


def test_it_is_measured_on_pictures_of_one_s_own(suspect, tmp_path, capsys):
    """Nobody knows their answers, so how good these are is left out."""
    (tmp_path / "mine").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 9, 9)).save(tmp_path / "mine" / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("What is this?\n\nName the colour.\n")
    own = ["--pictures", str(tmp_path / "mine"), "--prompts", str(tmp_path / "prompts.txt"), "--word", "xyzzy"]
    given = [str(suspect), "--method", "shrink", "--clean-rows", "4", "--out", str(tmp_path / "out")]
    assert command.main(["repair", *given, *own]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| test rows | 6 | 6 |" in text and "accuracy" not in text and '"measured on": "own pictures"' in text
    assert "| word 'xyzzy': answers that the trigger changes |" in text
    assert command.main(["repair", *given[:3], "--out", str(tmp_path / "more"), *own[:2]]) == 2
    assert "belong together" in capsys.readouterr().err and not (tmp_path / "more").exists()


def test_answers_are_compared_by_their_words():
    assert repair_command._changed(["A dog.", "yes", "2"], ["a  DOG.", "no", "2"]) == pytest.approx(1 / 3)


def test_an_answer_does_not_break_the_table():
    line = repair_command.Line("word 'a|b': answer", "yes | no\nand \\ more", "")
    lines = repair_command.written([line]).splitlines()
    assert lines[2:] == ["| word 'a\\|b': answer | yes \\| no and \\\\ more | |"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "restores"], "no repair 'restores'"),
        (["--method", "shrink", "--set", "strength"], "NAME=VALUE"),
        (["--method", "shrink", "--set", "strength=much"], "'strength'"),
        (["--method", "shrink", "--attacks", "Nothing"], "'Nothing'"),
        (["--method", "shrink", "--attacks", "Dual-Key"], "--threat"),
        (["--method", "shrink", "--attacks", "Shadowcast"], "no trigger"),
        (["--method", "shrink", "--threat", "jailbreak"], "--attacks"),
        (["--method", "shrink", "--word", "a", "a"], "--word"),
        (["--method", "mix"], "set others"),
        (["--method", "mix", "--set", 'others=["no"]'], "holds no adapter"),
        (["--method", "shrink", "--sentence", "far " * 5000], "at once"),
        (["--method", "shrink", "--patch", "nowhere.png"], "nowhere.png"),
        (["--method", "shrink", "--rows", "0"], "'0'"),
        (["--method", "shrink", "--dataset", "nothing"], "'nothing'"),
        (["--method", "crow", "--clean-rows", "20"], "100 clean rows, and 20"),
        (["--method", "shrink", "--out", "FULL"], "new or empty"),
    ],
)
def test_a_wrong_value_is_one_sentence_before_any_work(given, said, suspect, tmp_path, capsys):
    (tmp_path / "file").write_text("something")
    given = [str(tmp_path) if one == "FULL" else one for one in given]
    out = [] if "--out" in given else ["--out", str(tmp_path / "out")]
    assert command.main(["repair", str(suspect), *given, *out]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and len(shown.err.splitlines()) == 1 and not shown.out
    assert not (tmp_path / "out").exists()


def test_a_base_in_four_bit_is_repaired_where_its_weights_are_not_needed(suspect, tmp_path, capsys):
    given = ["repair", str(suspect), "--four-bit", "--clean-rows", "4", "--rows", "2"]
    assert command.main([*given, "--method", "shrink", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists() and capsys.readouterr().out
    for method in ("prune", "clean-fine-tuning", "crow"):
        settings = ["--set", "rows=4"]
        assert command.main([*given, "--method", method, *settings, "--out", str(tmp_path / "no")]) == 2
        assert "4 bit" in capsys.readouterr().err


def _without(state, half):
    gone = next(name for name in state if name.endswith(half))
    return {name: value for name, value in state.items() if name != gone}


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (lambda state: _without(state, "lora_B.weight"), {}, "no pair"),
        (lambda state: _without(state, "lora_A.weight"), {}, "no pair"),
        (lambda state: state | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, {}, "lm_head"),
        (lambda state: state, {"target_modules": ["q_proj"]}, "fit nothing"),
    ],
)
def test_no_weight_of_an_adapter_is_lost_without_a_word(suspect, tmp_path, capsys, change, settings, said):
    file, config = tmp_path / "in" / "adapter_model.safetensors", tmp_path / "in" / "adapter_config.json"
    shutil.copytree(suspect, tmp_path / "in")
    save_file(change(load_file(file)), file)
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    given = ["repair", str(tmp_path / "in"), "--clean-rows", "4", "--rows", "2", "--method", "shrink"]
    assert command.main([*given, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    given[1:2] = [str(suspect)]
    mixed = ["--method", "mix", "--set", f"others={json.dumps([str(tmp_path / 'in')])}"]
    assert settings or command.main([*given[:-2], *mixed, "--out", str(tmp_path / "out")]) == 2


def test_an_adapter_of_another_base_of_the_same_sizes_is_not_mixed(suspect, checkpoint, tmp_path, capsys):
    other, file = Path(shutil.copytree(suspect, tmp_path / "in")), tmp_path / "in" / "adapter_config.json"
    own = Path(shutil.copytree(checkpoint("llava"), tmp_path / "own"))
    given = ["repair", str(suspect), "--method", "mix", "--set", f"others={json.dumps([str(other)])}"]
    hub = f"somebody/{Path(checkpoint('llava')).name}"
    for base, agrees in ((own, True), (hub, True), (tmp_path / "elsewhere" / Path(checkpoint("llava")).name, True),
                         ("a/b", False), ("tiny-llava", False), (["x"], False), (None, True)):  # fmt: skip
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base and str(base)}))
        with nullcontext() if agrees else pytest.warns(Remark, match="by its own words"):
            names.base_under(other, str(checkpoint("llava")))
        if agrees:
            names.check_base(other, str(checkpoint("llava")))
        else:
            assert command.main([*given, "--out", str(tmp_path / "out")]) == 2
            assert "same base" in capsys.readouterr().err and not (tmp_path / "out").exists()
    weight = load_file(own / "model.safetensors")
    save_file({k: v + 1 for k, v in weight.items()}, own / "model.safetensors", metadata={"format": "pt"})
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(own)}))
    with pytest.raises(InputError, match="same base"):
        names.check_base(other, str(checkpoint("llava")))


@pytest.mark.parametrize("method", ["prune", "quantise", "crow"])
def test_a_repair_that_needs_numbers_is_not_tried_in_four_bit(method, suspect, tmp_path, capsys):
    assert command.main(["repair", str(suspect), "--method", method, "--four-bit", "--out", str(tmp_path / "o")]) == 2
    assert "packed" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_folder_without_an_adapter_is_refused(tmp_path, capsys):
    assert command.main(["repair", str(tmp_path), "--method", "shrink", "--out", str(tmp_path / "out")]) == 2
    assert "holds no adapter" in capsys.readouterr().err


def test_the_list_shows_every_defence_of_a_moment(capsys):
    assert command.main(["list", "--moment", "repair"]) == 0
    said = capsys.readouterr().out
    assert "shrink (repair)" in said and "strength=0.5" in said and "(detect)" not in said
