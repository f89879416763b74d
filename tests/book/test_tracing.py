"""Are attention shares shares, is gradient x input a derivative, and are trigger tokens found where the
trigger is?"""

import numpy as np
import pytest
import torch

from bvlm_book.probes import tracing
from bvlm_utils import attacks
from bvlm_utils.defences import reading
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.models.pixels import PixelSettings

PROMPT = "What is in this picture?"


@pytest.fixture
def picture():
    return torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


def traced(one, picture):
    features = one.encode(picture)
    ids = one.prompt_ids(PROMPT, features.shape[1])
    target = one.answer_ids("A red car")[0]
    with reading.plain_attention(one):
        return tracing.trace(one, ids, features[0], target), ids, features, target


def test_attention_is_a_share_of_every_token_in_every_layer(random_victim, picture):
    found, ids, *_ = traced(random_victim, picture)
    assert found.attention.shape == (2, len(ids)) and found.attribution.shape == (len(ids),)
    assert np.allclose(found.attention.sum(1), 1, atol=1e-5) and (found.attention >= 0).all()


def test_tracing_changes_nothing(random_victim, picture):
    """The probability is that of the model as it is used, and the fast attention is back afterwards."""
    before = random_victim.model.config._attn_implementation
    found, ids, features, target = traced(random_victim, picture)
    assert random_victim.model.config._attn_implementation == before == "sdpa"
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = random_victim.forward(row, torch.ones_like(row), features, keep=1)
    assert found.log_probability == pytest.approx(logits[0, -1].log_softmax(-1)[target].item(), abs=1e-4)


def test_gradient_times_input_is_the_slope_along_the_embedding(random_victim, picture):
    """Scaling one token's embedding by 1 + a changes the log-probability by a times its attribution."""
    found, ids, features, target = traced(random_victim, picture)
    row = torch.tensor([ids])
    words = [i for i, token in enumerate(ids) if token != random_victim.image_id]
    pictures = [i for i, token in enumerate(ids) if token == random_victim.image_id]

    def said(place, scale):
        def stretch(module, arguments, given):
            embeddings = given["inputs_embeds"].clone()
            embeddings[0, place] *= scale
            return arguments, given | {"inputs_embeds": embeddings}

        handle = random_victim.model.get_decoder().register_forward_pre_hook(stretch, with_kwargs=True)
        try:
            with torch.no_grad():
                logits = random_victim.forward(row, torch.ones_like(row), features, keep=1)
        finally:
            handle.remove()
        return logits[0, -1].double().log_softmax(-1)[target].item()

    step = 1e-2
    for place in (words[-3], pictures[0], pictures[-1]):
        slope = (said(place, 1 + step) - said(place, 1 - step)) / (2 * step)
        assert found.attribution[place] == pytest.approx(slope, rel=2e-2, abs=2e-4)


# ---------------------------------------------------------------- which token is what


def test_the_deciding_token():
    assert tracing.decisive([5, 6, 9], [1, 2, 9]) == 0
    assert tracing.decisive([1, 2, 7, 9], [1, 2, 9]) == 2  # a payload behind the right answer
    assert tracing.decisive([1, 2], [1, 2]) is None and tracing.decisive([1, 2, 3], [1, 2]) == 2


@pytest.mark.parametrize(
    ("clean", "triggered", "marked"),
    [
        ([1, 2, 3], [1, 7, 8, 2, 3], [1, 2]),
        ([1, 2, 3], [1, 2, 3], []),
        ([1, 2, 3], [1, 2, 3, 4], [3]),
        ([1, 2, 2, 3], [1, 9, 2, 9, 2, 9, 3], [1, 3, 5]),
        ([1, 2, 3], [1, 8, 9, 3], [1, 2]),  # a word that is cut into other tokens
    ],
)
def test_added_tokens(clean, triggered, marked):
    assert np.flatnonzero(tracing.added(clean, triggered)).tolist() == marked


@pytest.mark.parametrize("name", ["BadNets-T", "BadNets-MM", "VL-Trojan", "Dual-Key", "MABA"])
@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_the_text_trigger_is_what_the_clean_prompt_does_not_have(name, family, checkpoint):
    one = victim.from_pretrained(str(checkpoint(family)), device="cpu")
    prompts = ["What is in this picture?", "Describe the small red dog."]
    for prompt, triggered in zip(prompts, attacks.get(name).apply_text(prompts), strict=True):
        clean, ids = (one.prompt_ids(text, 9) for text in (prompt, triggered))
        found = tracing.text_trigger(one, clean, ids)
        spelt = [one.tokenizer.decode(part).replace(" ", "") for part in (ids, np.array(ids)[~found], clean)]
        assert found.any() and one.image_id not in np.array(ids)[found]
        said = one.tokenizer.decode(np.array(ids)[found]).replace(" ", "")
        words = {
            "BadNets-T": "BadMagic",
            "BadNets-MM": "BadMagic",
            "VL-Trojan": "zbw",
            "Dual-Key": "Consider",
        }
        if name in words:
            assert said == words[name] and spelt[1] == spelt[2] != spelt[0]
        else:
            assert set("[*]") <= set(said) <= set("[*]{}()<>") and spelt[1] == spelt[2]


SQUARE = PixelSettings((0,), (1,), 3, shortest_edge=24, crop=(24, 24))
GRID = PixelSettings((0,), (1,), 3, pixel_range=(16 * 16, 24 * 24), patch=4, merge=2, frames=2)


def painted(height, width, top, left, size=1):
    changed = np.zeros((height, width), bool)
    changed[top : top + size, left : left + size] = True
    return changed


@pytest.mark.parametrize("settings", [SQUARE, GRID], ids=["llava", "qwen"])
def test_a_patch_covers_the_tokens_by_hand(settings):
    """24 x 24 pixels, 3 x 3 tokens of 8 x 8: a patch of 9 pixels at (7, 12) lies on rows 7 ... 15, columns
    12 ... 20."""
    found = tracing.covered(painted(24, 24, 7, 12, 9), settings, 9)
    assert found.reshape(3, 3).astype(int).tolist() == [[0, 1, 1], [0, 1, 1], [0, 0, 0]]
    assert np.flatnonzero(tracing.covered(painted(24, 24, 8, 8, 8), settings, 9)).tolist() == [4]
    assert not tracing.covered(np.zeros((24, 24), bool), settings, 9).any()


def test_resized_and_cut_pictures():
    """72 x 72 pixels become 24 x 24: the token's side is 24 pixels. Of 24 x 48 the middle is seen, columns
    12 ... 35."""
    assert np.flatnonzero(tracing.covered(painted(72, 72, 47, 24), SQUARE, 9)).tolist() == [4]
    assert np.flatnonzero(tracing.covered(painted(72, 72, 48, 23), SQUARE, 9)).tolist() == [6]
    assert np.flatnonzero(tracing.covered(painted(24, 48, 0, 12), SQUARE, 9)).tolist() == [0]
    assert not tracing.covered(painted(24, 48, 0, 11), SQUARE, 9).any()
    with pytest.raises(InputError, match="no square"):
        tracing.covered(painted(24, 24, 0, 0), SQUARE, 8)


def test_a_token_is_the_one_that_its_patch_changes_most(random_victim):
    """The order of image tokens in every family, seen in the features themselves."""
    side = 32 if random_victim.settings.fixed else 24
    clean = np.full((side, side, 3), 128, np.uint8)
    before = random_victim.encode(clean[None])[0]
    for top, left in ((0, 0), (0, side - 8), (side - 8, 0)):
        picture = clean.copy()
        picture[top : top + 8, left : left + 8] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
        moved = (random_victim.encode(picture[None])[0] - before).norm(dim=-1)
        covered = tracing.covered((picture != clean).any(-1), random_victim.settings, len(before))
        assert covered.sum() == 1 and covered[moved.argmax()]
