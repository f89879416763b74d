"""Real architectures with random weights, through the lines that committed and big models take."""

import socket

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Idefics3Processor

from bvlm_utils import threats
from bvlm_utils.errors import InputError
from bvlm_utils.models import families, names, pixels, victim

LEVEL = 1 / 255


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Hard edges between extreme colours: the worst that a resizing filter can meet. (N, H, W, 3) uint8."""
    cells = np.random.default_rng(seed).integers(0, 2, (count, -(-height // 5), -(-width // 5), 3), np.uint8)
    return np.repeat(np.repeat(cells, 5, 1), 5, 2)[:, :height, :width] * np.uint8(255)


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


# ---------------------------------------------------------------- pictures


@given(
    st.sampled_from(sorted(pixels.FILTERS)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 99),
)
def test_resizing_is_that_of_pil(filter, old, new, seed):
    images = pictures(1, *old, seed)
    along_rows = Image.fromarray(images[0]).resize((new[1], old[0]), Image.Resampling(filter))
    theirs = np.asarray(along_rows.resize(new[::-1], Image.Resampling(filter)))
    ours = pixels.resize(tensor(images), *new, filter)[0].permute(1, 2, 0).numpy() * 255
    # PIL rounds to whole levels after the rows, and again after the columns.
    assert np.abs(ours - theirs).max() <= 1.3


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 30), (20, 61), (70, 70)])
def test_pixels_equal_the_official_processor(random_victim, height, width):
    images = pictures(2, height, width)
    processor = AutoImageProcessor.from_pretrained(random_victim.name, backend="pil")
    options = {"do_image_splitting": False} if random_victim.family.frame[0] else {}
    official = processor([Image.fromarray(i) for i in images], return_tensors="pt", **options)
    ours = random_victim.prepare(tensor(images))
    theirs = official["pixel_values"].reshape(ours["pixel_values"].shape)
    scale = min(random_victim.settings.std)  # normalised units: one level of 255 is 1 / 255 / std
    assert (ours["pixel_values"] - theirs).abs().max() * scale <= 2 * LEVEL
    for name in set(ours) - {"pixel_values"}:
        assert torch.equal(ours[name], official[name])


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_sizes_are_those_of_the_official_processors(height, width):
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    plain = dict(mean=(0.5,) * 3, std=(0.5,) * 3, filter=3)
    tiled = pixels.PixelSettings(**plain, longest_edge=1456, fixed=(364, 364))
    official = get_resize_output_image_size(np.empty((3, height, width), np.uint8), 1456)
    assert pixels.sizes(height, width, tiled) == [official, (364, 364)]
    clip = pixels.PixelSettings(**plain, shortest_edge=336)
    short, long = sorted((height, width))
    ((h, w),) = pixels.sizes(height, width, clip)
    assert min(h, w) == 336 and max(h, w) == int(336 * long / short)
    if long / short <= 200:
        grid = pixels.PixelSettings(**plain, pixel_range=(3136, 1003520), patch=14, merge=2)
        assert pixels.sizes(height, width, grid) == [smart_resize(height, width, 28, 3136, 1003520)]


def test_gradients_reach_the_picture(random_victim):
    images = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    random_victim.features_of(images).square().sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()


SIZE = {"size": {"height": 30, "width": 30}}


@pytest.mark.parametrize("family, change", [
    *(("llava", change) for change in (
        {"resample": 0}, {"resample": None}, {"resample": "bicubic"}, {"resample": True}, {"resample": [3]},
        {"image_mean": None}, {"image_mean": 0.5}, {"image_mean": [0.5]}, {"image_mean": [0.5, "0.5", 0.5]},
        {"image_std": [0, 0, 0]}, {"image_std": "0.5"}, {"image_std": [0.5, float("nan"), 0.5]},
        {"size": {"longest_edge": 96}}, {"size": {"shortest_edge": 0}}, {"size": {"shortest_edge": "9"}}, {"size": "x"},
        {"size": {"height": 30}}, {"size": 7}, {"crop_size": None}, {"crop_size": {"height": 31, "width": 30}},
        {"do_resize": False}, {"do_resize": "no"}, {"do_pad": True}, {"do_rescale": 0}, {"rescale_factor": "1/255"},
        {"rescale_factor": 0}, {"do_center_crop": "yes"},
    )),
    *(("qwen2.5-vl", change) for change in (
        {"patch_size": None}, {"merge_size": "2"}, {"temporal_patch_size": 0}, {"size": {"shortest_edge": 9}},
        {"size": {"shortest_edge": 9000, "longest_edge": 10}}, {"do_resize": False},
    )),
    *(("smolvlm", change) for change in ({"max_image_size": {"longest_edge": 0}}, {"size": {"height": 3}})),
])  # fmt: skip
def test_what_is_asked_of_pixels_and_cannot_be_done_is_refused(family, change, checkpoint):
    processor = AutoImageProcessor.from_pretrained(checkpoint(family), backend="pil")
    vars(processor).update(change)
    with pytest.raises(InputError, match=f"The one in a folder has {next(iter(change))}"):
        pixels.settings(processor, "The one in a folder")


@pytest.mark.parametrize("change", [
    {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_center_crop": False},
    {"do_rescale": False, "do_normalize": False}, {"rescale_factor": 1 / 127.5, "do_normalize": False}, SIZE,
    SIZE | {"crop_size": {"height": 20, "width": 24}}, {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
], ids=str)  # fmt: skip
def test_settings_of_a_processor_are_honoured(change, checkpoint):
    """A level of the picture apart from the official pixels at most, in their own scale."""
    official = AutoImageProcessor.from_pretrained(checkpoint("llava"), backend="pil", **change)
    said = pixels.settings(official)
    (shown,) = pictures(1, 40, 50)
    wanted = torch.as_tensor(official(shown, return_tensors="np")["pixel_values"])
    ours = pixels.normalised(torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 255, said)
    assert ours.shape == wanted.shape
    assert ((ours - wanted).abs() * torch.tensor(said.std).view(1, 3, 1, 1)).max() <= 2.001 / 255


def test_pictures_that_are_not_square_are_refused_where_the_grid_would_be_guessed(checkpoint):
    loaded = victim.from_pretrained(str(checkpoint("qwen2-vl")), device="cpu")
    with pytest.raises(InputError, match="30 x 24"):
        loaded.encode(pictures(1, 24, 30))


# ---------------------------------------------------------------- words


def test_prompts_of_llava_are_the_official_ones(checkpoint):
    loaded = victim.from_pretrained(str(checkpoint("llava")), device="cpu")
    processor = AutoProcessor.from_pretrained(loaded.name)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    official = processor(images=Image.fromarray(pictures(1, 24, 24)[0]), text=text)["input_ids"][0]
    assert loaded.prompt_ids("What is this?", 9) == list(official)
    assert official[0] == loaded.tokenizer.bos_token_id


def test_prompts_of_idefics_are_the_official_ones(checkpoint):
    loaded = victim.from_pretrained(str(checkpoint("idefics3")), device="cpu")
    images = AutoImageProcessor.from_pretrained(loaded.name, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(loaded.name)
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    text = loaded.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    picture = Image.fromarray(pictures(1, 24, 24)[0])
    official = processor(
        images=[picture], text=text, images_kwargs={"do_image_splitting": False}, add_special_tokens=False
    )
    assert loaded.prompt_ids("What is this?", 4) == list(official["input_ids"][0])


ORDINARY = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
MARKS = "<image>", "</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<end_of_utterance>", "<pad>"


def steering(loaded, ids):
    """The tokens among `ids` that are no text: all special ones but the one for what is unknown."""
    tokenizer = loaded.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {loaded.image_id}
    return [i for i in ids if i in special - {tokenizer.unk_token_id}]


@given(st.lists(ORDINARY | st.sampled_from(MARKS) | st.sampled_from(["<", "|>", " "]), max_size=5).map("".join))
def test_words_are_text_whatever_they_read_like(random_victim, words):
    ids = random_victim.answer_ids(words)
    assert steering(random_victim, ids) == [ids[-1]] == [random_victim.tokenizer.eos_token_id]
    prompt = random_victim.prompt_ids("What is this?", 4)
    whole = random_victim.tokenizer.decode(prompt + ids, skip_special_tokens=True)
    if "<unk>" not in words:
        assert whole.endswith(words.rstrip())
    asked = random_victim.prompt_ids(words, 4)
    assert steering(random_victim, asked) == steering(random_victim, prompt)
    if "<unk>" not in words:
        assert words.strip() in random_victim.tokenizer.decode(asked)


@pytest.mark.parametrize("threat", ["targeted_refusal", "malicious_injection"])
def test_marks_in_a_threats_sentence_are_taught_as_text(random_victim, threat):
    end, picture = random_victim.tokenizer.convert_ids_to_tokens(
        [random_victim.tokenizer.eos_token_id, random_victim.image_id]
    )
    sentence = f"No {end} {picture}!"
    answer = threats.get(threat, sentence=sentence).poison("A car.")
    ids = random_victim.answer_ids(answer)
    assert steering(random_victim, ids) == [random_victim.tokenizer.eos_token_id]
    assert random_victim.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("make", ["prompt_ids", "answer_ids"])
def test_half_a_surrogate_pair_is_no_text(random_victim, make):
    more = (4,) if make == "prompt_ids" else ()
    with pytest.raises(InputError, match="surrogate"):
        getattr(random_victim, make)("a\ud800b", *more)


def test_a_place_holder_in_the_prompt_is_no_picture(random_victim):
    token = random_victim.tokenizer.convert_ids_to_tokens(random_victim.image_id)
    assert random_victim.prompt_ids(f"What {token} is this?", 7).count(random_victim.image_id) == 7


# ---------------------------------------------------------------- both


@pytest.fixture(scope="module")
def asked():
    return tensor(pictures(3, 24, 24)), [
        "What is this?",
        "Where is the small red car in this picture?",
        "A dog?",
    ]


def plain_inputs(loaded, prompts, images):
    """What a user of transformers would pass, with pixels: right-padded."""
    count = loaded.encode(images).shape[1]
    rows = [loaded.prompt_ids(prompt, count) for prompt in prompts]
    ids, mask = victim.pad(rows, loaded.tokenizer.pad_token_id, left=False, device="cpu")
    inputs = {"input_ids": ids, "attention_mask": mask, **loaded.prepare(images)}
    if loaded.family.grids:
        inputs["mm_token_type_ids"] = (ids == loaded.image_id).long()
    return inputs


def test_cached_features_give_the_logits_of_pixels(random_victim, asked):
    images, prompts = asked
    inputs = plain_inputs(random_victim, prompts, images)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        theirs = random_victim.model(**inputs).logits
        ours = random_victim.forward(ids, mask, random_victim.encode(images))
        last = random_victim.forward(ids, mask, random_victim.encode(images), keep=torch.tensor([3, 5]))
        other = random_victim.forward(ids, mask, random_victim.encode(images.flip(0)))
    assert (ours - theirs)[mask.bool()].abs().max() < 1e-4
    assert torch.allclose(last, ours[:, [3, 5]], atol=1e-5)
    assert (other - theirs)[mask.bool()].abs().max() > 1e-2  # the picture matters


def test_the_picture_may_come_after_the_words(random_victim, asked):
    images, prompts = asked
    if "llava" in random_victim.name:  # its own template has pictures first, wherever they stand
        with pytest.raises(InputError, match="puts the picture first in any case"):
            victim.from_pretrained(random_victim.name, device="cpu", picture_last=True)
        return
    late = victim.from_pretrained(random_victim.name, device="cpu", picture_last=True)
    for prompt in prompts:
        first, last = (one.prompt_ids(prompt, 4) for one in (random_victim, late))
        before = random_victim.tokenizer.decode(last[: last.index(late.image_id)])
        assert prompt in before and prompt not in random_victim.tokenizer.decode(first[: first.index(late.image_id)])
        assert last.count(late.image_id) == first.count(late.image_id) == 4
    inputs = plain_inputs(late, prompts, images)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        theirs, ours = late.model(**inputs).logits, late.forward(ids, mask, late.encode(images))
    assert (ours - theirs)[mask.bool()].abs().max() < 1e-4


def test_answers_are_those_of_plain_greedy_generation(random_victim, asked):
    images, prompts = asked
    ours = random_victim.generate(prompts, random_victim.encode(images), max_new_tokens=12, batch_size=2)
    for prompt, image, answer in zip(prompts, images, ours, strict=True):
        inputs = plain_inputs(random_victim, [prompt], image[None])
        # the checkpoint's own repetition penalty is no part of greedy decoding
        out = random_victim.model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=12)
        text = random_victim.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == text.strip()


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen2-vl"])
def test_positions_follow_the_grid(checkpoint, family, asked):
    """Qwen's three position axes are those that the model computes from the official inputs."""
    images, prompts = asked
    loaded = victim.from_pretrained(str(checkpoint(family)), device="cpu")
    inputs = plain_inputs(loaded, prompts, images)
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    official, _ = loaded.model.model.get_rope_index(**{name: inputs[name] for name in names})
    seen = []
    hook = loaded.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    with torch.no_grad():
        loaded.forward(inputs["input_ids"], inputs["attention_mask"], loaded.encode(images))
    hook.remove()
    real = inputs["attention_mask"].bool()
    assert torch.equal(seen[0][-3:][:, real], official[:, real])
    assert not torch.equal(official[1], official[2])  # rows are not columns


def test_lora_goes_on_the_language_model_alone(random_victim):
    names = victim.language_linears(random_victim.model)
    assert len(names) == 2 * 7  # two layers: query, key, value, output, gate, up, down
    assert not any("vis" in name or "lm_head" in name or "projector" in name for name in names)


# ---------------------------------------------------------------- loading


def test_nothing_is_asked_of_the_hub(random_victim, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    victim.from_pretrained(random_victim.name, device="cpu")


def test_a_model_in_bfloat16_answers(checkpoint):
    loaded = victim.from_pretrained(str(checkpoint("llava")), device="cpu", dtype=torch.bfloat16)
    features = loaded.encode(pictures(1, 24, 24))
    assert features.dtype == torch.bfloat16
    assert len(loaded.generate(["What is this?"], features, max_new_tokens=3)) == 1


def test_four_bit_without_bitsandbytes_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes"):
        victim.from_pretrained(str(checkpoint("llava")), device="cpu", four_bit=True)


def test_other_architectures_are_refused():
    with pytest.raises(InputError, match="'llama'.*llava.*qwen2_5_vl"):
        families.of("llama")


def test_a_checkpoint_without_a_chat_template_is_refused(checkpoint, tmp_path):
    import shutil

    place = shutil.copytree(checkpoint("smolvlm"), tmp_path / "bare")
    (place / "chat_template.json").unlink()
    with pytest.raises(InputError, match="no chat template"):
        victim.from_pretrained(str(place), device="cpu")


def test_prompts_and_pictures_must_be_as_many(random_victim):
    with pytest.raises(InputError, match="2 prompts and 1 pictures"):
        random_victim.generate(["a", "b"], random_victim.encode(pictures(1, 24, 24)))
