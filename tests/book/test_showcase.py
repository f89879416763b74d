"""What the store keeps of triggers and responses is put on the page as it is."""

import numpy as np
from PIL import Image

from bvlm_book import examples
from bvlm_book.chapters import attacks, quickstart


def test_marks_what_the_trigger_added():
    assert examples.marked("What is left?", "What BadMagic is left?") == "What <mark>BadMagic</mark> is left?"
    assert examples.marked("a < b", "a < b I watched") == "a &lt; b <mark>I watched</mark>"
    assert examples.marked("same", "same") == "same"
    assert examples.marked("Name it.", "Name it BadMagic.") == "Name it <mark>BadMagic</mark>."
    assert examples.marked("a red car", "a [red] car") == "a <mark>[</mark>red<mark>]</mark> car"


def test_a_strip_is_split_into_its_pictures(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    white = np.full((8, 4, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([pictures[0], white, pictures[1], white, pictures[2]], axis=1)).save(
        tmp_path / "a.png"
    )
    assert np.array_equal(attacks.split_strip((tmp_path / "a.png").read_bytes(), gap=4), pictures)
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(tmp_path / "b.png")
    assert np.array_equal(attacks.split_strip((tmp_path / "b.png").read_bytes()), pictures)


def test_controls_ask_and_show_the_three_answers():
    asked = []

    def ask(row, prompt, text, image):
        asked.append((row, prompt, text, image))
        return quickstart.Reply(Image.new("RGB", (8, 8)), f"{prompt} (as asked)", {"base": "a <cat>", "poisoned": "no"})

    box = quickstart.controls(["one?", "two?"], "text", ask)
    view, asking = box.children
    picture, question, text, image, button, answers = asking.children
    assert image.disabled and not text.disabled and bytes(view.value).startswith(b"\x89PNG")
    picture.value, text.value = 1, True
    button.click()
    assert asked == [(0, "one?", False, False), (1, "two?", True, False)]
    assert "a &lt;cat&gt;" in answers.value and "two? (as asked)" in answers.value
