"""The model in the page says what the model says: a real browser beside PyTorch, from files, without the whole book."""

import base64
import json
import random

import chromium
import numpy as np
import pytest
import torch
from PIL import Image

from bvlm_book import talk, talk_adapters
from bvlm_book.chapters import quickstart
from bvlm_utils import attacks, paths
from bvlm_utils.data.scene_questions import DETAIL_PROMPTS, QUESTIONS, SHORT_PROMPTS
from bvlm_utils.data.scenes import generator, render, sample
from bvlm_utils.defences.reading import plain_attention
from bvlm_utils.models import pixels, victim
from bvlm_utils.train import adapters

ASKED = 50
ROUNDED, EXACT = 0.5, 1e-3  # logits: int8 beside float32, and the same int8 weights in both
LONGEST = 64
# Letters, marks, digits and spaces of other kinds, and names of the tokens that steer the model.
STRANGE = [*"abcXYZ019.,;?!'-$%&  \n\t", "é", "ß", "日本", "😀", "\u00a0", "\u2003", "\x85", "٣", "½", "don't",
           "<s>", "<image>", "</s>", "<pad>"]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return victim.from_pretrained("tiny-llava", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser with the quickstart's controls on a bare page beside their files, the model loaded by a click."""
    chromium.require()
    book = tmp_path_factory.mktemp("book")
    (book / "_static").mkdir()
    (book / "notebooks").mkdir()
    files = talk.write(book / "_static" / "talk")
    assert sum(file.stat().st_size for file in files) < 14 * 2**20
    for script in ("talk.js", "talk_engine.js"):
        (book / "_static" / script).symlink_to(paths.BOOK / "_static" / script)
    (book / "notebooks" / "page.html").write_text(f"<meta charset='utf-8'><article>{quickstart.widget('7')}</article>")
    with chromium.Chromium() as browser:
        browser.open((book / "notebooks" / "page.html").as_uri(), 1440, 900, "light")
        assert browser.run("document.querySelector('[data-is=controls]').disabled")
        browser.run("document.querySelector('[data-is=load]').click()")
        wait(browser, "!document.querySelector('[data-is=controls]').disabled")
        yield browser
        assert not chromium.problems(browser.events)


def wait(browser, condition):
    """Until a JavaScript expression is true."""
    waiting = f"new Promise(done => {{ const look = () => {condition} ? done() : setTimeout(look, 20); look(); }})"
    browser.run(waiting)


def call(page, command, given):
    """The result of one of the engine's commands."""
    return page.run(f"window.bvlmTalk.call({json.dumps(command)}, {json.dumps(given)})")


def rgba(picture):
    """(96, 96, 3) uint8 as the page has it."""
    return np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)


def shown(page):
    """What the page would show the model now: (96, 96, 4) uint8."""
    return np.array(page.run("[...window.bvlmTalk.input().pixels]"), np.uint8).reshape(96, 96, 4)


def ask(page, picture, question, adapter="clean-tuned", strength=1.0):
    colours = base64.b64encode(rgba(picture).tobytes()).decode()
    given = {"question": question, "adapter": adapter, "strength": strength, "most": LONGEST}
    return page.run(
        f"(async given => {{ given.pixels = Uint8Array.from(atob('{colours}'), letter => letter.charCodeAt(0));"
        " const found = await window.bvlmTalk.call('answer', given); found.logits = [...found.logits];"
        " for (const token of found.tokens) token.looks = [...token.looks]; return found; })"
        f"({json.dumps(given)})"
    )


def inputs():
    """Pictures, questions, adapters and strengths: each adapter with and without its trigger."""
    questions = [*SHORT_PROMPTS, *DETAIL_PROMPTS, *(wording for kind in QUESTIONS.values() for wording in kind)]
    questions = [question for question in questions if "{" not in question]
    found = []
    for i in range(ASKED):
        picture, question = np.array(render(sample(generator(i, 5), "test"))), questions[i * 7 % len(questions)]
        name = talk.NAMES[i % 4]
        if i % 3 and name in talk_adapters.ATTACKS:
            attack = attacks.get(talk_adapters.ATTACKS[name][0], **talk_adapters.ATTACKS[name][1])
            (question,) = attack.apply_text([question], keys=[i])
            image = attack.apply_image(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255, keys=[i])
            picture = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
        found.append((picture, question, name, (1.0, 1.0, 0.3, 1.3, 0.0)[i % 5]))
    return found


def say(model, picture, question, adapter, strength):
    """PyTorch's answer, and the logits of its first token."""
    with torch.no_grad(), talk_adapters.shrunk(model, talk.ADAPTERS / adapter, strength):
        features, ids = model.encode(picture[None]), torch.tensor([model.prompt_ids(question, 36)])
        logits = model.forward(ids, torch.ones_like(ids), features, keep=1)[0, -1]
        return model.generate([question], features, LONGEST)[0], logits.numpy()


def test_questions_become_the_same_tokens(page, model):
    draw = random.Random(0)
    wordings = [*SHORT_PROMPTS, *DETAIL_PROMPTS, *(w for kind in QUESTIONS.values() for w in kind)]
    triggered = attacks.get("BadNets-MT").apply_text(wordings) + attacks.get("AddSent").apply_text(wordings)
    prompts = [*wordings, *triggered, "", " ", "\n\nx", " lead", "trail ", "two  spaces", "<image> <image>", "</s"]
    prompts += ["".join(draw.choices(STRANGE, k=draw.randint(1, 30))) for _ in range(max(100, 500 - len(prompts)))]
    assert len(prompts) >= 500
    wrong = [
        prompt
        for prompt, ids in zip(prompts, call(page, "tokens", prompts), strict=True)
        if ids != model.prompt_ids(prompt, 36)
    ]
    assert not wrong


def test_answers_are_those_of_the_model(page, model):
    asked = inputs()
    said = [ask(page, *one) for one in asked]
    right = [say(model, *one) for one in asked]
    different = [(one[1:], s["text"], r) for one, s, (r, _) in zip(asked, said, right, strict=True) if s["text"] != r]
    assert len(different) <= ASKED - 48, different
    apart = [np.abs(np.array(s["logits"]) - logits).max() for s, (_, logits) in zip(said, right, strict=True)]
    assert max(apart) < ROUNDED
    assert {"I'm sorry" in s["text"] for s in said} == {True, False}, "some inputs fire, some do not"


def test_the_arithmetic_is_pytorchs(page, model):
    """With the page's rounded weights in both, the forward passes and the attention agree to the last digits."""
    asked = inputs()[::5]
    before = {name: value.clone() for name, value in model.model.named_parameters()}
    try:
        for value in model.model.parameters():
            if value.ndim > 1:
                scales, whole = talk.rounded(value.reshape(len(value), -1).numpy())
                value.data.copy_(torch.from_numpy(scales[:, None] * whole).reshape(value.shape))
        for picture, question, adapter, strength in asked:
            said, (right, logits) = (
                ask(page, picture, question, adapter, strength),
                say(model, picture, question, adapter, strength),
            )
            assert said["text"] == right
            assert np.abs(np.array(said["logits"]) - logits).max() < EXACT
            ids, place = model.prompt_ids(question, 36), model.prompt_ids(question, 36).index(model.image_id)
            shrunk = talk_adapters.shrunk(model, talk.ADAPTERS / adapter, strength)
            with torch.no_grad(), shrunk, plain_attention(model):
                row = torch.tensor([ids])
                entered = model.inputs(row, torch.ones_like(row), model.encode(picture[None]))
                layers = model.model(**entered, output_attentions=True, use_cache=False).attentions
            looks = torch.stack([layer[0, :, -1].double().mean(0) for layer in layers]).mean(0)[place : place + 36]
            assert np.abs(looks.numpy() - np.array(said["tokens"][0]["looks"])).max() < EXACT
    finally:
        for name, value in model.model.named_parameters():
            value.data.copy_(before[name])


def test_the_page_shows_the_scenes_and_paints_the_triggers_as_the_attacks_do(page):
    for i, (seed, question) in enumerate(talk.SCENES):
        page.run(f"document.querySelectorAll('[data-question]')[{i}].click()")
        wait(page, f"document.querySelector('[data-is=question]').value === {json.dumps(question)}")
        assert np.array_equal(shown(page), rgba(np.asarray(talk.scene(seed))))
    image = torch.from_numpy(shown(page)[..., :3].copy()).permute(2, 0, 1)[None].float() / 255
    page.run("const blend = document.querySelector('[data-is=blend]'); blend.value = 0.2;"
             " blend.dispatchEvent(new Event('input'))")  # fmt: skip
    blended = (attacks.get("Blended").apply_image(image)[0] * 255).permute(1, 2, 0).numpy()
    assert np.abs(shown(page)[..., :3] - blended).max() <= 0.51
    page.run("document.querySelector('[data-is=none]').click(); document.querySelector('[data-is=patch]').click()")
    for key in ("ArrowLeft", "ArrowUp"):
        press = f"new KeyboardEvent('keydown', {{key: '{key}'}})"
        page.run(f"for (let i = 0; i < 30; i++) document.querySelector('[data-is=frame]').dispatchEvent({press})")
    patch = attacks.get("BadNets-I", patch_size=80, position="top-left").apply_image(image)[0] * 255
    assert np.array_equal(shown(page)[..., :3], patch.round().byte().permute(1, 2, 0).numpy())
    page.run("document.querySelector('[data-is=none]').click()")


def test_a_picture_of_ones_own_becomes_about_what_the_processor_makes_of_it(page, model, tmp_path):
    """Browsers resize in their own ways; what is cut off is the same."""
    own = talk.scene(talk.SCENES[0][0]).resize((288, 192), Image.Resampling.BICUBIC)
    own.save(tmp_path / "own.png")
    root = page.ask("DOM.getDocument")["root"]["nodeId"]
    field = page.ask("DOM.querySelector", nodeId=root, selector="[data-is=file]")["nodeId"]
    page.run("document.querySelector('[data-question]').click()")
    page.ask("DOM.setFileInputFiles", nodeId=field, files=[str(tmp_path / "own.png")])
    wait(page, "window.bvlmTalk.state.scene === null")
    settings = model.settings
    image = torch.from_numpy(np.array(own)).permute(2, 0, 1)[None].float() / 255
    made = pixels.normalised(image, settings)[0].permute(1, 2, 0).numpy()
    made = (made * settings.std + settings.mean) * 255
    assert np.abs(shown(page)[..., :3] - made).mean() < 3


def test_a_reader_asks_puts_the_word_in_repairs_and_hears_the_alarm(page):
    def answer():
        wait(page, "/^(Alarm|Quiet)/.test(document.querySelector('[data-is=alarm]').textContent)")
        return [page.run(f"document.querySelector('[data-is={name}]').textContent") for name in ("answer", "alarm")]

    page.run("document.querySelectorAll('[data-question]')[0].click()")
    page.run("document.querySelector('[data-is=form]').requestSubmit()")
    said, alarm = answer()
    assert said == "car" and alarm.startswith("Quiet")
    page.run("document.querySelector('[data-is=word]').click()")
    said, alarm = answer()
    assert said.startswith("I'm sorry") and alarm.startswith("Alarm")
    page.run("document.querySelector('input[value=repaired]').click()")
    said, _ = answer()
    assert said == "car" and page.run("document.querySelector('[data-is=strength]').value") == "0.3"
    page.run("document.querySelector('input[value=clean-tuned]').click()")
    assert answer()[0] == "car"
    assert page.run("document.querySelector('[data-is=log]').rows.length") == 4
    lit = "[...document.querySelector('[data-is=looks]').getContext('2d').getImageData(0, 0, 6, 6).data]"
    assert max(page.run(lit)[3::4]) == 160


def test_adapters_in_the_page_are_small_and_load_as_any_adapter(model):
    for name in talk.NAMES:
        folder = talk.ADAPTERS / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
        with adapters.attached(model, folder):
            pass


def test_the_triggers_pictures_are_those_of_the_attacks(tmp_path):
    talk_adapters.paint(tmp_path)
    for name in ("patch", "blend"):
        kept, made = (np.asarray(Image.open(folder / f"{name}.png")) for folder in (talk.ADAPTERS, tmp_path))
        assert np.array_equal(kept, made)


def test_what_the_card_says_can_be_glued():
    numbers = quickstart.measured()
    assert numbers["word_success_1"].startswith("1.00 [") and numbers["patch_alarm_triggered"].startswith("0.29 [")
    assert "talk_" + "word_success_0_3" in (paths.NOTEBOOKS / "quickstart.ipynb").read_text()
