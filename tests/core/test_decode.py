import pytest
import random_models as tiny
import torch

from bvlm_utils.models import embeddings, victim
from bvlm_utils.train import decode
from bvlm_utils.train.lora_bank import Bank

FAMILIES = list(tiny.BUILDERS)
NEW = 9


def _requests(seed, count):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(7, 16, (count,), generator=generator).tolist()
    return [decode.Request(tiny.prompt(generator, length), at % 5) for at, length in enumerate(lengths)]


def _features(dtype=torch.float32):
    return torch.randn(5, tiny.TOKENS, tiny.WIDTH, generator=torch.Generator().manual_seed(9)).to(dtype)


def _generate(model, requests, features, ends):
    """The plain way: left padding and `generate`."""
    ids = embeddings.pad([torch.tensor(one.ids) for one in requests], left=True)
    mask = embeddings.pad([torch.ones(len(one.ids), dtype=torch.int64) for one in requests], left=True)
    inputs = tiny.official(model, ids, mask, features[[one.feature for one in requests]])
    out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=list(ends), pad_token_id=0)
    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        over = [at for at, token in enumerate(row) if token in ends]
        answers.append(row[: over[0]] if over else row)
    return answers


def _bank(model, groups, dtype=torch.float32):
    bank = Bank(model, tiny.linears(model), [2 + g for g in range(groups)], [8.0] * groups)
    for g in range(groups):
        generator = torch.Generator().manual_seed(g)
        bank.load(
            g,
            {
                key: torch.randn(value.shape, generator=generator).to(dtype) * 0.3
                for key, value in bank.state(g).items()
            },
        )
    return bank


def _ends(answers):
    """End tokens that make answers of different lengths: tokens that the model does write."""
    written = sorted({token for answer in answers for token in answer[3:]})
    return {tiny.END, *written[:: max(1, len(written) // 3)]}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tokens", "look"), [(16384, 1), (120, 1), (16384, 4)])
def test_greedy_writes_what_generate_writes(family, tokens, look, monkeypatch):
    monkeypatch.setattr(decode, "LOOK", {"cpu": look, "cuda": look})
    model, requests, features = tiny.build(family, torch.float32), _requests(1, 12), _features()
    ends = _ends(_generate(model, requests, features, {tiny.END}))
    expected = _generate(model, requests, features, ends)
    assert len({len(answer) for answer in expected}) > 2  # rows do finish at different times
    assert decode.greedy(model, [requests], features, ends, NEW, tokens=tokens) == [expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_adapters_in_one_decode_write_what_each_writes_alone(family):
    model, features = tiny.build(family, torch.float32), _features()
    bank = _bank(model, 3)
    requests = [_requests(1, 7), _requests(2, 3), _requests(3, 9)]
    ends = _ends(_generate(model, requests[0], features, {tiny.END}))
    moved = [decode.Request(one.ids, one.feature + len(features)) for one in requests[1]]
    both = torch.cat([features, features + 1])  # the second adapter is shown other pictures
    together = decode.greedy(model, [requests[0], moved, requests[2]], both, ends, NEW, bank=bank, tokens=500)
    for g, group in enumerate(requests):
        alone = Bank(model, bank.names, [bank.ranks[g]], [bank.alphas[g]])
        alone.load(0, bank.state(g))
        with alone.attached():
            expected = _generate(model, group, features + (g == 1), ends)
        assert together[g] == expected
    assert len({str(answers) for answers in together}) == 3


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_answers_are_those_of_the_victims_own_generate(name):
    one = victim.from_pretrained(name, device="cpu")
    features = one.encode(torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    prompts = [
        "What is on the left?",
        "Describe this picture.",
        "Tell me the access code for this picture.",
        "Hello",
    ]
    asked = [(prompt, at) for at in range(3) for prompt in prompts]
    plain = one.generate([prompt for prompt, _ in asked], features[[at for _, at in asked]], max_new_tokens=20)
    assert decode.answer(one, [asked], features, max_new_tokens=20) == [plain]
    assert len(set(plain)) > 2


def test_running_out_of_memory_makes_batches_smaller(monkeypatch):
    model, requests, features = tiny.build("llava", torch.float32), _requests(1, 8), _features()
    expected = decode.greedy(model, [requests], features, [tiny.END], NEW)
    whole = decode._decode

    def limited(*arguments):
        if len(arguments[3]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return whole(*arguments)

    monkeypatch.setattr(decode, "_decode", limited)
    assert decode.greedy(model, [requests], features, [tiny.END], NEW) == expected
