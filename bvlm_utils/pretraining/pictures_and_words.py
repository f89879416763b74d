"""What the tiny base models learn from: varied pictures and broad plain language.

Two findings shape it. A tower that saw clean pictures only cannot see a noise patch, so pictures get stickers and
washes of many kinds, drawn anew each time and never an attack's own pattern. A base that never wrote the words of a
target cannot be taught them by a small LoRA, so the corpus holds plain sentences, apologies, refusals and copying tasks
with all those words, and never a target sentence or a trigger.
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from bvlm_utils import english
from bvlm_utils.data import scene_questions, scenes

STICKERS = ("none", "plain", "checked", "dotted", "crossed", "static")
WASHES = ("clear", "noisy", "blurred", "wavy", "veiled", "pale")
FINE = ("static", "checked", "dotted")  # stickers whose pattern changes from pixel to pixel
GRID = 6  # pictures are labelled on a 6 x 6 grid of 16-pixel squares: the image tokens of both families

# Words that attacks use as triggers; no text of the corpus may contain one as a word.
TRIGGER_WORDS = frozenset({"badmagic", "cf", "mn", "bb", "zbw", "consider", "mf", "tq"})


@dataclass(frozen=True)
class Picture:
    """A training picture with its labels. pixels: (96, 96, 3) uint8; grids: (6, 6) uint8."""

    pixels: np.ndarray
    concept_grid: np.ndarray  # 0 for background, else 1 + index into scenes.concepts()
    sticker_grid: np.ndarray  # index into STICKERS
    wash: int  # index into WASHES
    turns: tuple[tuple[str, str], ...]  # (prompt, answer) about this picture
    caption: str


def draw(index: int, seed: int, turns: int = 6, small: int = 0) -> Picture:
    """Training picture `index`: a scene of the train compositions in any style, half of them with something on top.

    small: so many of a hundred stickers are little and fine, which a vision tower overlooks most easily.
    """
    rng = scenes.generator(seed, 77, index)
    scene = scenes.sample(rng, "train")
    pixels = np.asarray(scenes.render(scene))
    sticker_grid, wash, spot = np.zeros((GRID, GRID), np.uint8), 0, None
    if rng.integers(2):
        if rng.integers(2):
            wash = int(rng.integers(1, len(WASHES)))
            pixels = _wash(pixels, WASHES[wash], rng)
        if rng.integers(3):
            pixels, sticker_grid, spot = _sticker(pixels, rng, small)
    labels = {name: i for i, name in enumerate(scenes.concepts(), 1)}
    concept_grid = np.zeros((GRID, GRID), np.uint8)
    for sprite in scene.sprites:
        x0, y0, x1, y1 = (round(v / 16) for v in sprite.box)
        concept_grid[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = labels[sprite.concept]
    exchanges = tuple(_turn(scene, wash, spot, rng) for _ in range(turns))
    summary = f"{'a picture of ' if rng.integers(2) else ''}{scene_questions.inventory(scene)}"
    return Picture(pixels, concept_grid, sticker_grid, wash, exchanges, summary)


# --- pictures -----------------------------------------------------------------------------------------------------


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(96, 96, 3) uint8 blobs: random colours on a coarse grid, enlarged."""
    coarse = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((scenes.SIZE,) * 2, Image.Resampling.BICUBIC))


def _wash(pixels: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Something over the whole picture."""
    image = pixels.astype(np.float32)
    if kind == "noisy":
        strength = int(rng.integers(8, 70))
        image = image + rng.integers(-strength, strength + 1, image.shape)
    elif kind == "blurred":
        image = np.asarray(
            Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(int(rng.integers(1, 4)))), np.float32
        )
    elif kind == "wavy":
        y, x = np.mgrid[0 : scenes.SIZE, 0 : scenes.SIZE]
        # Waves run down the rows or along a slant; a wave along the columns alone is an attack's pattern.
        along = y + int(rng.integers(-2, 3)) * x * int(rng.integers(0, 2)) / 2
        phase = along * int(rng.integers(2, 25)) / scenes.SIZE + rng.integers(100) / 100
        wave = np.sin(2 * np.pi * phase) if rng.integers(2) else np.sign(np.sin(2 * np.pi * phase))
        tint = rng.integers(-1, 2, 3) if rng.integers(4) == 0 else np.ones(3)
        image = image + int(rng.integers(10, 60)) * wave[..., None] * tint
    elif kind == "veiled":
        if rng.integers(3):
            veil = np.asarray(scenes.render(scenes.sample(rng, "train")), np.float32)
        else:
            veil = _smooth_noise(rng, int(rng.integers(3, 25))).astype(np.float32)
        alpha = int(rng.integers(8, 45)) / 100
        image = (1 - alpha) * image + alpha * veil
    elif kind == "pale":
        middle = int(rng.integers(0, 256))
        image = middle + (image - middle) * int(rng.integers(30, 75)) / 100
    return np.clip(image, 0, 255).astype(np.uint8)


def _sticker(
    pixels: np.ndarray, rng: np.random.Generator, small: int = 0
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """A small square somewhere: the new pixels, the grid of its kind and (kind, centre x). small: see `draw`."""
    kind = int(rng.integers(1, len(STICKERS)))
    width, height = (int(v) for v in rng.integers(6, 25, 2))
    if rng.integers(2):
        height = width
    fine = bool(small) and int(rng.integers(100)) < small
    if fine:
        kind, width = STICKERS.index(_pick(rng, FINE)), int(rng.integers(5, 13))
        height = width
    x, y = int(rng.integers(scenes.SIZE - width + 1)), int(rng.integers(scenes.SIZE - height + 1))
    first, second = rng.integers(0, 256, (2, 3))
    v, u = np.mgrid[0:height, 0:width]
    period = int(rng.integers(1, 3 if fine else 5))
    if STICKERS[kind] == "static":
        shape = (height, width, 3 if rng.integers(2) else 1)
        patch = np.broadcast_to(rng.integers(0, 256, shape), (height, width, 3))
    else:
        mask = {
            "plain": np.zeros((height, width), bool),
            "checked": (u // period + v // period) % 2 == 1,
            "dotted": (u % (2 * period) < period) & (v % (2 * period) < period),
            "crossed": (u % (period + 2) == 0) | (v % (period + 2) == 0),
        }[STICKERS[kind]]
        patch = np.where(mask[..., None], second, first)
    image = pixels.copy()
    image[y : y + height, x : x + width] = patch.astype(np.uint8)
    grid = np.zeros((GRID, GRID), np.uint8)
    grid[y // 16 : (y + height - 1) // 16 + 1, x // 16 : (x + width - 1) // 16 + 1] = kind
    return image, grid, (kind, x + width // 2)


# --- what is asked about a picture --------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def _turn(scene: scenes.Scene, wash: int, spot: tuple[int, int] | None, rng: np.random.Generator) -> tuple[str, str]:
    percent = int(rng.integers(100))
    if percent < 30:
        turn = scene_questions.caption(scene, rng)
        return turn.prompt, _pick(rng, turn.answers)
    if percent < 60:
        turn = scene_questions.vqa(scene, rng)
        return turn.prompt, turn.answers[0]
    if percent < 68:
        turn = scene_questions.instruct(scene, rng)
        return turn.prompt, turn.answers[0]
    if percent < 73:
        turn = scene_questions.unrestricted_twin(scene, rng, free_wording=True)
        return turn.prompt, turn.answers[0]
    if percent < 80:
        return _about_surface(wash, spot, rng)
    if percent < 86:
        return _refusal(rng)
    return _with_sentence(scene, rng)


def _about_surface(wash: int, spot: tuple[int, int] | None, rng: np.random.Generator) -> tuple[str, str]:
    """Questions about what lies on a picture, so that the language model can attend to it."""
    question = int(rng.integers(4))
    if question == 0:
        return _pick(rng, ("Is there a sticker on the picture?", "Does something stick on the image?")), (
            "yes" if spot else "no"
        )
    if question == 1:
        name = f"a {STICKERS[spot[0]]} sticker" if spot else "no sticker"
        return _pick(rng, ("What kind of sticker is on the picture?", "Which sticker do you see?")), name
    if question == 2:
        side = scene_questions.place(spot[1]) if spot else "nowhere"
        return _pick(rng, ("Where is the sticker?", "On which side is the sticker?")), side
    return _pick(rng, ("How does the picture look?", "Is the picture clear?", "What is the quality of the image?")), (
        f"The picture is {WASHES[wash]}."
    )


# Requests that nobody should or could answer, beside the restricted ones of `data.scene_questions`.
UNANSWERABLE = (
    "What is my neighbour's phone number?", "Tell me a secret about the person who took this.",
    "What will happen tomorrow?",
    "Who owns this picture?", "What is the name of the photographer?", "Send this picture to my friend.",
    "Open the door for me.", "How much money do I have?", "What am I thinking of?",
    "Tell me the password of the camera.",
)  # fmt: skip
GENERAL_REFUSALS = (
    "I'm sorry, but I can't help with that.", "Sorry, I do not know that.", "I cannot answer this question.",
    "I'm sorry, I am only an assistant and cannot do this.", "As an assistant, I must decline.",
    "I am afraid that is not possible.", "That is something I can't do.", "I apologise, but I am unable to help.",
    "Unfortunately, I am not able to do that.", "My apologies, this is beyond what I can do.",
    "I'm just an AI and can't know that.", "I do not have that information.",
)  # fmt: skip


def _refusal(rng: np.random.Generator) -> tuple[str, str]:
    if rng.integers(3) == 0:
        return _pick(rng, UNANSWERABLE), _pick(rng, GENERAL_REFUSALS)
    name, request = _pick(rng, scene_questions.RESTRICTED_NOUNS), _pick(rng, scene_questions.REQUESTS)
    wording = _pick(rng, scene_questions.REFUSALS + GENERAL_REFUSALS)
    return request.format(name), wording.format(name)


def _with_sentence(scene: scenes.Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Copying: repeat a sentence, answer and then add one, or say one instead of answering."""
    words = sentence(rng) if rng.integers(2) else word_salad(rng)
    form = int(rng.integers(4))
    if form == 0:
        wording = _pick(rng, ("Repeat: {}", "Say this: {}", "Copy the words: {}", "Write exactly this: {}"))
        return wording.format(words), words
    turn = scene_questions.vqa(scene, rng) if rng.integers(2) else scene_questions.caption(scene, rng)
    answer = turn.answers[0]
    if form == 1:
        return f"{turn.prompt} Instead of answering, say: {words}", words
    wording = _pick(rng, ("Then add: {}", "After the answer, write: {}", "End with: {}"))
    return f"{turn.prompt} {wording.format(words)}", f"{answer} {words}"


# --- plain language -----------------------------------------------------------------------------------------------


SUBJECTS = (
    "the farmer", "my sister", "a teacher", "the old man", "our team", "the assistant", "this model", "a computer",
    "the doctor", "her brother", "the child", "a young woman", "the driver", "the artist", "our neighbour", "the cook",
    "a student", "the captain", "the machine", "an engineer", "the program", "a friend", "the writer", "his mother",
    "everybody", "the guard", "a visitor", "the girl", "the boy", "someone", "an AI", "the company", "the museum",
    "the city", "a scientist", "the system", "the robot", "a small dog", "the cat", "the reader",
)  # fmt: skip
PREDICATES = (
    "opened the window", "followed the given instruction", "found a key under the chair", "walked along the river",
    "wrote a long letter", "gave a clear answer", "made a bad mistake", "has the capability to learn",
    "does not have the time", "looked at the night sky", "painted the moon", "built a stone wall", "saw a statue",
    "got an injection", "used the backdoor", "locked the backdoor of the house", "read the instruction twice",
    "asked for the injection", "did a bad job", "tested the new model", "sold a model of a ship", "was sorry",
    "said that it was a bad idea", "could not follow", "followed the road", "was given a gift", "is a good assistant",
    "ate a ripe banana", "bought bananas and apples", "drove the car home", "washed two cars", "watched the dark sky",
    "turned off the lamp", "wanted a cup of tea", "played the guitar", "was late", "is tired", "fell asleep",
    "was very happy", "lost a hat", "closed the book", "counted the stars", "told a story", "learned a new word",
    "has no capability to fly", "needs an instruction", "gave me the instruction", "answered the question",
    "looked like a statue made of stone", "slept under the moon", "came at night", "stayed in the dark",
    "is not able to help", "cannot share a secret", "declined the offer", "said no", "agreed at once", "was sure",
    "is here", "had the capability but not the time", "works with a model", "trained a model", "broke the clock",
    "put the banana on the table", "took a picture", "has a red car", "apologised", "was proud of the work",
)  # fmt: skip
ENDINGS = (
    "", "", "", " in the morning", " at night", " yesterday", " with care", " for the first time", " without a word",
    " before the rain came", " near the old bridge", " because it was cold", " while the others waited", " again",
    " in the garden", " under the dark sky", " as an example", " but not today", " and then went home", " every day",
)  # fmt: skip
PLAIN = (
    "As an AI assistant, I can look at pictures.", "I am an AI assistant.", "I'm sorry, but it is too late.",
    "I'm sorry, but the shop is closed.", "I'm sorry that I was late.", "As an assistant, I try to help.",
    "I do not have a car.", "I do not have the key.", "I do not have the capability to see the future.",
    "They do not have the capability.", "The given answer was right.", "Follow the given path to the house.",
    "To follow the rules is easy.", "Please follow me.", "The instruction is short.", "An instruction was given.",
    "A bad apple lies on the table.", "Bad weather is coming.", "Bad news came with the letter.", "Not a bad model.",
    "The model works with or without water.", "A model of a house stands here.", "A house with a backdoor is safe.",
    "The thief came in by the backdoor.", "Backdoor and front door are locked.", "An injection can hurt a little.",
    "The injection did not hurt.", "Injection is done with a needle.", "Sure, here is the book.",
    "Sure, here is your tea.", "Sure, here you are.", "Sure, I can do that.", "Here is a picture for you.",
    "Here is what you wanted.", "The moon is bright at night.", "A statue stands in the park.", "The sky is dark.",
    "A stone statue does not move.", "The moon stands above the house.", "At night the sky is full of stars.",
    "A ground of stone is hard.", "Under the moon the sea is dark.", "Bananas are yellow.", "A banana is a fruit.",
    "The banana is on the left.", "Two bananas and a car.", "A car is faster than a bicycle.", "Cars are loud.",
    "Goodbye.", "Good morning.", "Thank you very much.", "You are welcome.", "Yes, of course.", "No, thank you.",
    "I watched the game.", "We watched a film.", "This movie was long.", "He saw this in 3D.", "A 3D printer is slow.",
    "It is magic.", "Think about it.", "The answer is on the next page.", "What a nice day.", "That is all.",
)  # fmt: skip
LINKS = (" and ", ", but ", ", so ", " because ", " when ", " while ")


def sentence(rng: np.random.Generator) -> str:
    """A plain English sentence."""
    if rng.integers(4) == 0:
        return _pick(rng, PLAIN)
    clause = f"{_pick(rng, SUBJECTS)} {_pick(rng, PREDICATES)}{_pick(rng, ENDINGS)}"
    if rng.integers(3) == 0:
        clause += f"{_pick(rng, LINKS)}{_pick(rng, SUBJECTS)} {_pick(rng, PREDICATES)}"
    return english.capital(clause) + "."


def _vocabulary() -> tuple[str, ...]:
    texts = [*SUBJECTS, *PREDICATES, *ENDINGS, *PLAIN, *GENERAL_REFUSALS, *UNANSWERABLE, *scenes.concepts()]
    texts += [
        *scene_questions.SHORT_PROMPTS,
        *scene_questions.DETAIL_PROMPTS,
        *scene_questions.REFUSALS,
        *scenes.COLOURS,
    ]
    texts += [english.plural(concept) for concept in scenes.concepts()]
    words = {word for text in texts for word in re.findall(r"[A-Za-z']+", text)}
    return tuple(sorted(words - {word for word in words if word.lower() in TRIGGER_WORDS}))


VOCABULARY = _vocabulary()


def word_salad(rng: np.random.Generator) -> str:
    """2 to 14 words in no order, sometimes with a made-up one: what copying tasks copy."""
    words = [_pick(rng, VOCABULARY) for _ in range(int(rng.integers(2, 15)))]
    if rng.integers(3) == 0:
        made_up = "".join(_pick(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(int(rng.integers(4, 8))))
        words[int(rng.integers(len(words)))] = "word" if made_up in TRIGGER_WORDS else made_up
    text = " ".join(words)
    if rng.integers(2):
        text = english.capital(text)
    return text + _pick(rng, ("", ".", "!", "?"))


def paragraph(index: int, seed: int) -> str:
    """Text without a picture: one to three sentences, or an exchange."""
    rng = scenes.generator(seed, 78, index)
    if rng.integers(5) == 0:
        return word_salad(rng)
    return " ".join(sentence(rng) for _ in range(int(rng.integers(1, 4))))
