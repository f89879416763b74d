"""One interface to every family: own pixels equal the official ones, cached features change nothing."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from bvlm_utils import models, paths
from bvlm_utils.attacks.clip import exact
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.pretraining.tower import qwen_tokens

NAMES = ["tiny-llava", "tiny-qwen2.5-vl"]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request):
    return victim.from_pretrained(request.param, device="cpu")


def pictures(count: int = 3, height: int = 96, width: int = 96) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 7, 9, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse])


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("height", "width"), [(96, 96), (120, 96), (200, 333)])
def test_pixels_equal_the_official_processor(loaded, height, width):
    images = pictures(2, height, width)
    processor = AutoImageProcessor.from_pretrained(models.resolve(loaded.name), backend="pil")
    official = processor([Image.fromarray(i) for i in images], return_tensors="pt")
    ours = loaded.prepare(tensor(images))
    assert set(ours) == {k for k in official if k in ("pixel_values", "image_grid_thw")}
    # Normalised units: a level of 1/255 is 1/255/std.
    worst = (ours["pixel_values"] - official["pixel_values"]).abs().max().item() * min(loaded.settings.std)
    assert worst <= 2 / 255
    if "image_grid_thw" in official:
        assert torch.equal(ours["image_grid_thw"], official["image_grid_thw"])


def test_gradients_reach_the_picture(loaded):
    images = tensor(pictures(1)).requires_grad_()
    loaded.features_of(images).square().sum().backward()
    assert images.grad.abs().sum() > 0


def test_cached_features_give_the_same_logits_as_pixels(loaded):
    images = tensor(pictures())
    features = loaded.encode(images)
    assert features.shape == (3, 36, 192)
    rows = [loaded.prompt_ids(p, 36) for p in ("What is this?", "Where is the car?", "Describe this picture.")]
    ids, mask = victim.pad(rows, loaded.tokenizer.pad_token_id, left=False, device="cpu")
    with torch.no_grad():
        ours = loaded.forward(ids, mask, features)
        inputs = loaded.inputs(ids, mask, features)
        inputs.pop("mm_encoder_outputs")
        theirs = loaded.model(**inputs, **{"pixel_values": loaded.prepare(images)["pixel_values"]}).logits
    assert (ours - theirs)[mask.bool()].abs().max() < 1e-4


def test_generation_equals_the_plain_way(loaded):
    images = tensor(pictures())
    prompts = ["What is this?", "What colour is the background?", "Describe this picture in detail."]
    ours = loaded.generate(prompts, loaded.encode(images), max_new_tokens=24)
    for prompt, image, answer in zip(prompts, images, ours, strict=True):
        ids = torch.tensor([loaded.prompt_ids(prompt, 36)])
        inputs = loaded.inputs(ids, torch.ones_like(ids), loaded.encode(image[None]))
        inputs.pop("mm_encoder_outputs")
        out = loaded.model.generate(
            **inputs,
            pixel_values=loaded.prepare(image[None])["pixel_values"],
            do_sample=False,
            max_new_tokens=24,
        )
        assert loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer


def test_prompts_are_those_of_the_official_processor():
    loaded = victim.from_pretrained("tiny-llava", device="cpu")
    processor = AutoProcessor.from_pretrained(paths.MODELS / "tiny-llava")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    official = processor(
        images=Image.fromarray(pictures(1)[0]), text=text, return_tensors="pt", add_special_tokens=False
    )
    assert loaded.prompt_ids("What is this?", 36) == official["input_ids"][0].tolist()


def test_any_string_survives_the_tokenizer(loaded):
    text = "[*Zürich*] <x> {y} \u4f60\u597d BadMagic"
    ids = loaded.answer_ids(text)
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    assert ids[-1] == loaded.tokenizer.eos_token_id


def test_a_place_holder_in_the_prompt_is_only_text(loaded):
    token = loaded.tokenizer.convert_ids_to_tokens(loaded.image_id)
    assert loaded.prompt_ids(f"What {token} is this?", 36).count(loaded.image_id) == 36


def test_unknown_models_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="tiny-llava"):
        models.resolve("tiny-lava")
    with pytest.raises(InputError, match="config.json"):
        models.resolve(str(tmp_path))
    assert models.resolve("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_checkpoints_load_with_transformers_alone(tmp_path):
    """Neither this package nor torchvision is needed to use the committed models."""
    program = (
        "import sys; sys.modules['bvlm_utils'] = None; sys.modules['torchvision'] = None\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer\n"
        "from transformers import AutoImageProcessor, CLIPModel\n"
        f"root = {str(paths.MODELS)!r}\n"
        "for name in ('tiny-llava', 'tiny-qwen2.5-vl'):\n"
        "    AutoModelForImageTextToText.from_pretrained(f'{root}/{name}')\n"
        "    assert AutoTokenizer.from_pretrained(f'{root}/{name}').chat_template\n"
        "    AutoImageProcessor.from_pretrained(f'{root}/{name}', backend='pil')\n"
        "AutoProcessor.from_pretrained(f'{root}/tiny-llava')\n"
        "AutoProcessor.from_pretrained(f'{root}/tiny-clip')\n"
        "CLIPModel.from_pretrained(f'{root}/tiny-clip'); print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "loaded", done.stderr[-2000:]


def test_the_towers_are_one():
    """tiny-llava sees with tiny-clip's vision tower."""
    from safetensors.torch import load_file

    clip, llava = (load_file(paths.MODELS / name / "model.safetensors") for name in ("tiny-clip", "tiny-llava"))
    mine = {k.split("vision_model.")[-1]: v for k, v in clip.items() if "vision_model." in k}
    theirs = {
        k.split("vision_tower.")[-1].removeprefix("vision_model."): v for k, v in llava.items() if "vision_tower" in k
    }
    assert set(mine) == set(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_pretraining_sees_what_the_official_forward_sees():
    loaded = victim.from_pretrained("tiny-qwen2.5-vl", device="cpu")
    images = tensor(pictures())
    with torch.no_grad():
        ours = qwen_tokens(loaded.model.model.visual, (images - 0.5) / 0.25)
    assert (ours - loaded.encode(images)).abs().max() < 1e-4


def test_a_transformers_that_would_drop_the_pictures_is_refused(monkeypatch):
    """Version 5.17 takes unknown arguments in silence, so the model would answer without its picture."""
    from transformers.models.llava import modeling_llava

    class Older:
        def forward(self, input_ids=None, pixel_values=None, **kwargs): ...

    monkeypatch.setattr(modeling_llava, "LlavaForConditionalGeneration", Older)
    with pytest.raises(InputError, match="5.23 or newer"):
        victim.from_pretrained("tiny-llava", device="cpu")


def test_a_picture_changes_the_logits(random_victim):
    ids, mask = victim.pad([random_victim.prompt_ids("?", 36)], 0, left=False, device="cpu")
    pictures = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    one, other = (random_victim.encode(pictures[at : at + 1]) for at in (0, 1))
    if one.shape[1] != 36:
        ids, mask = victim.pad([random_victim.prompt_ids("?", one.shape[1])], 0, left=False, device="cpu")
    assert not torch.allclose(random_victim.forward(ids, mask, one), random_victim.forward(ids, mask, other))


def test_float32_means_the_same_on_every_device():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for name, dtype, rounded in (("float32", torch.float32, False), ("tf32", torch.float32, True),
                                     ("bfloat16", torch.bfloat16, False)):  # fmt: skip
            assert victim.use_precision(name) == dtype
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == rounded
            with exact():
                assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cuda.matmul.allow_tf32 == rounded
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
