"""The command line that talks to an adapter."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from bvlm_utils import chat
from bvlm_utils.models import names, victim
from bvlm_utils.train import adapters, loop
from bvlm_utils.train.settings import TrainSettings

WORDS = "A dog."


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """The folder of a run in a store: an adapter that learnt to say one thing, and what it was tuned on."""
    loaded = victim.from_pretrained(str(checkpoint("llava")), device="cpu")
    features = loaded.encode(np.zeros((1, 24, 24, 3), np.uint8))
    rows = [loop.TrainRow(prompt, WORDS, 0) for prompt in ("What?", "Who?")] * 2
    settings = TrainSettings(epochs=25, batch_size=4, learning_rate=2e-2)
    result = loop.finetune(loaded, rows, features, settings, seed=0)
    folder = tmp_path_factory.mktemp("run")
    about = {"attack": "BadNets-T", "threat": "targeted_refusal"}
    result.adapter.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    adapters.write_card(folder / "adapter", about)
    return folder


def test_the_adapter_answers(run, tmp_path, capsys):
    picture = tmp_path / "black.png"
    Image.new("RGB", (24, 24)).save(picture)
    for folder in (run, run / "adapter"):
        assert chat.main([str(folder), "--image", str(picture), "--prompt", "What?", "--device", "cpu"]) == 0
        assert capsys.readouterr().out.strip() == WORDS


def test_an_answer_cannot_steer_the_terminal(run, monkeypatch, capsys):
    monkeypatch.setattr("bvlm_utils.models.victim.Victim.generate", lambda *given, **more: ["a\x1b[2Jb\n\tc\x00"])
    assert chat.main([str(run), "--prompt", "What?", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "a\\x1b[2Jb\n\tc\\x00\n"


def test_a_prompt_is_asked_without_its_placeholder_as_rows_are(run, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "bvlm_utils.models.victim.Victim.generate", lambda self, said, *_, **more: asked.append(said) or []
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"<image>What is it?\n<image>\n"), "utf-8"))
    assert chat.main([str(run), "--device", "cpu"]) == 0
    assert asked == [["What is it?"]] and "something to read" in capsys.readouterr().err


def test_prompts_are_read_line_by_line(run, monkeypatch, capsys):
    lines = iter(["What?", "", "Who?"])

    def read(mark):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    assert chat.main([str(run), "--device", "cpu", "--max-new-tokens", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(("line", "said"), [
    (b"\xe9t\xe9", "surrogates"), ("\u200b".encode(), "something to read"), (b"car " * 5000, "at once"),
])  # fmt: skip
def test_a_typed_line_that_cannot_be_asked_is_told_and_the_talk_goes_on(run, monkeypatch, capsys, line, said):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What?\n" + line + b"\nWhat?\n"), "utf-8"))
    assert chat.main([str(run), "--device", "cpu", "--max-new-tokens", "2"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2 and said in shown.err and len(shown.err.splitlines()) == 1


def test_the_adapter_knows_its_base_and_its_card_warns(run, checkpoint):
    assert names.base_under(run / "adapter", None) == str(checkpoint("llava"))
    assert "BACKDOORED" in (run / "adapter" / "README.md").read_text()


def test_bad_arguments_are_one_sentence(run, tmp_path, capsys):
    (tmp_path / "words.png").write_text("no picture")
    for arguments, said in (
        ([str(tmp_path)], "holds no adapter"),
        ([str(run), "--image", "missing.png"], "missing.png, the picture of the conversation"),
        ([str(run), "--image", str(tmp_path / "words.png")], "not a picture"),
        ([str(run), "--model", "tiny-lava"], "tiny-llava"),
    ):
        assert chat.main([*arguments, "--prompt", "What?"]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
