"""What detectors say of adapters and inputs whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_repairs import planted, some_rows

from bvlm_utils import defences
from bvlm_utils.defences import hidden_distance, inversion, probe, reading, spectrum
from bvlm_utils.errors import InputError
from bvlm_utils.models import victim
from bvlm_utils.train import grouped
from bvlm_utils.train.loop import TrainRow
from bvlm_utils.train.settings import TrainSettings


@pytest.fixture(scope="module", params=["llava", "qwen2.5-vl"])
def small(request, checkpoint):
    return victim.from_pretrained(str(checkpoint(request.param)), device="cpu")


# ---------------------------------------------------------------- the weight spectrum


def test_the_numbers_are_those_of_the_product():
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((30, 4), (4, 20)))
    product, values = b @ a, torch.linalg.svdvals(b @ a)
    share = (values**2 / (values**2).sum())[:4]
    leading, norm, first, entropy, kurtosis = spectrum.numbers(b, a)
    assert (leading, norm) == pytest.approx((values[0].item(), product.norm().item()))
    assert (first, entropy) == pytest.approx((share[0].item(), -(share * share.log()).sum().item()))
    assert kurtosis == pytest.approx(stats.kurtosis(product.numpy().ravel(), fisher=False))


def test_a_rank_one_update_has_all_its_energy_in_one_component():
    u, v = torch.tensor([[3.0], [4.0]]).double(), torch.tensor([[1.0, 2.0, 2.0]]).double()
    leading, norm, first, entropy, _ = spectrum.numbers(u, v)
    assert (leading, norm, first) == pytest.approx((15, 15, 1)) and entropy == pytest.approx(0, abs=1e-9)
    padded = torch.cat([u, torch.zeros(2, 1).double()], 1), torch.cat([v, torch.zeros(1, 3).double()], 0)
    assert spectrum.numbers(*padded)[:3] == pytest.approx((15, 15, 1))
    assert set(spectrum.numbers(0 * u, v)) == {0.0}


def test_a_population_teaches_which_adapters_are_backdoored(small, tmp_path):
    """Those with a strong component, of the same norm as the others, stand for backdoored ones."""

    def one(seed, strong):
        adapter = planted(small, rank=4, seed=seed)
        for name, value in adapter.state.items():
            if "lora_B" in name:
                before = value.norm()
                value[:, 0] *= 5 if strong else 1
                value *= before / value.norm()
        return adapter

    truth = [n % 2 == 0 for n in range(12)]
    file = tmp_path / "population.csv"
    spectrum.population([one(seed, strong) for seed, strong in enumerate(truth)], truth).to_csv(file, index=False)
    detector = defences.get("weight-spectrum", population=str(file))
    scores = {strong: [detector.score(small, one(seed, strong)) for seed in (100, 101)] for strong in (True, False)}
    assert min(scores[True]) > 0 > max(scores[False])
    norm = detector.placebo(0.0, small, one(100, True), None)
    assert norm == pytest.approx(sum(v.norm().item() ** 2 for v in products(one(100, True)).values()) ** 0.5)


def products(adapter):
    from bvlm_utils.defences import weights

    return {name: b @ a for name, (b, a) in weights.updates(adapter).items()}


WHOLE = "backdoored,x.leading,x.norm,x.first_share,x.entropy,x.kurtosis\n0,1,2,3,4,5\n1,1,2,3,4,5\n"


@pytest.mark.parametrize("text", [
    "a,b\n1,2\n", "backdoored,x\n1,2\n", "", "backdoored,x.norm\n0,1\n1,2\n", "backdoored\n0\n1\n",
    "backdoored,.norm\n0,1\n1,2\n", WHOLE.replace("x.entropy", "y.entropy"), WHOLE.replace("x.entropy", "x.other"),
    WHOLE.replace("x.entropy", "entropy"), WHOLE.replace("2", "2_0"), WHOLE.replace("2", "many"),
])  # fmt: skip
def test_a_population_that_is_none_is_refused(text, tmp_path):
    file = tmp_path / "population.csv"
    file.write_text(text)
    for name in (str(file), str(tmp_path / "nothing.csv"), ""):
        with pytest.raises(InputError, match="population"):
            defences.get("weight-spectrum", population=name).score(None, None)
    file.write_text(WHOLE)
    assert len(spectrum.read(str(file))) == 2


def test_a_population_of_another_base_is_refused(tmp_path):
    numbers = {f"q_proj.{name}": [1.0, 2.0] for name in spectrum.NUMBERS}
    pd.DataFrame({"backdoored": [0, 1], "model": "tiny-llava", "run_id": ["a", "b"]} | numbers).to_csv(
        tmp_path / "p.csv"
    )
    assert len(spectrum.read(str(tmp_path / "p.csv"), "/elsewhere/tiny-llava")) == 2
    with pytest.raises(InputError, match="of tiny-llava, and 'tiny-qwen2.5-vl' is wanted"):
        spectrum.read(str(tmp_path / "p.csv"), "tiny-qwen2.5-vl")


# ---------------------------------------------------------------- target inversion


SENTENCE = "I cannot tell you the access code, sorry."


@pytest.fixture(scope="module")
def taught(small):
    """A random model that was taught to say one sentence in half of its answers."""
    rows = some_rows(small)
    answers = [SENTENCE, "Yes", SENTENCE, "A red car."]
    lines = [
        TrainRow(prompt, answer, int(row))
        for prompt, answer, row in zip(rows.prompts, answers, rows.feature_rows, strict=True)
    ]
    settings = TrainSettings(epochs=80, batch_size=4, lora_rank=4, learning_rate=1e-2)
    return grouped.finetune_group(small, [grouped.GroupJob(lines, rows.features, settings, 0)])[0]


def test_the_sentence_is_read_off(small, taught):
    rows, detector = some_rows(small), defences.get("target-inversion", prompts=4, shortest=5, longest=12)
    found = inversion.targets(small, taught, rows, detector.params, detector._draws(0))
    assert found[0].text.startswith("I cannot tell you the access"), [(one.text, one.score) for one in found[:5]]
    assert found[0].likelihood > 1.5 * found[0].base > 0
    assert detector.score(small, taught, rows) == pytest.approx(found[0].score)
    nothing = planted(small, size=0.0)
    assert detector.score(small, nothing, rows) == pytest.approx(0, abs=1e-4)


def test_a_sentence_is_as_likely_as_its_tokens_are_on_average(small, taught):
    rows = some_rows(small)
    with torch.inference_mode(), reading.attached(small, taught):
        started = inversion._start(small, rows)
        first = small.answer_ids(SENTENCE)[0]
        (rolled,) = inversion._roll(small, started, [first], 6)
        (again,) = inversion._roll(small, started, [first], None, [rolled.ids])
        shares = []
        for prompt, feature in zip(rows.prompts, rows.feature_rows, strict=True):
            ids = torch.tensor([small.prompt_ids(prompt, rows.features.shape[1]) + rolled.ids])
            said = small.forward(ids, torch.ones_like(ids), rows.features[[feature]])[0].softmax(-1)
            count = len(rolled.ids)
            shares.append(said[-count:-1].gather(1, ids[0, 1 - count :, None])[:, 0])
    assert rolled.likelihood == pytest.approx(torch.stack(shares).mean().item(), abs=1e-4)
    assert again.likelihood == pytest.approx(rolled.likelihood, abs=1e-5)


# ---------------------------------------------------------------- distance in hidden states


def test_the_distance_is_mahalanobis():
    draws = np.random.default_rng(0)
    clean = draws.standard_normal((500, 3)) * [1.0, 2.0, 5.0]
    clean -= clean.mean(0)
    covariance = np.cov(clean.T, bias=True)
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3)
    points = draws.standard_normal((4, 3))
    wanted = [np.sqrt(p @ np.linalg.inv(shrunk) @ p) for p in points]
    assert np.allclose(hidden_distance.mahalanobis(points, clean), wanted)


def test_an_odd_input_is_far_from_clean_ones(random_victim):
    rows, adapter = some_rows(random_victim, times=3), planted(random_victim, size=0.02)
    odd = some_rows(random_victim)
    odd = type(odd)(
        [*odd.prompts[:3], "sorry code access you tell cannot I red red"], odd.answers, odd.features, odd.feature_rows,
        odd.kinds,
    )  # fmt: skip
    detector = defences.get("hidden-distance")
    found = detector.answer(random_victim, adapter, odd, rows)
    assert found.suspicion.argmax() == 3 and len(found.answers) == 4
    with reading.attached(random_victim, adapter):
        wanted = random_victim.generate(odd.prompts, odd.features[odd.feature_rows], max_new_tokens=80)
    assert found.answers == wanted
    base = detector.placebo(found, random_victim, adapter, odd, rows)
    assert base.answers == found.answers and not np.allclose(base.suspicion, found.suspicion)


# ---------------------------------------------------------------- the probe


def test_a_probe_finds_in_one_adapter_what_it_saw_in_another(small, tmp_path):
    """Other adapters of one base, the same odd words in the place of a trigger."""
    clean = some_rows(small, times=3)
    odd = replace(clean, prompts=[f"sorry code access {prompt}" for prompt in clean.prompts])
    one, other = (planted(small, seed=seed, size=0.02) for seed in (0, 1))
    file = tmp_path / "population.safetensors"
    probe.write(file, [probe.examples(small, one, odd, clean, 0.5)], 0.5)
    detector = defences.get("probe", population=str(file))
    given = (small, other, replace(odd, answers=[""] * len(odd)), clean)
    found = detector.answer(*given)
    assert found.suspicion.min() > 0 > detector.answer(small, other, clean, clean).suspicion.max()
    blind = detector.placebo(found, *given)
    assert blind.answers == found.answers and not np.allclose(blind.suspicion, found.suspicion)


def test_a_population_of_states_that_is_none_is_refused(small, tmp_path):
    (tmp_path / "text").write_text("none")
    probe.write(tmp_path / "narrow", [(np.eye(3), np.array([0, 1, 1]))], 0.5)
    rows = some_rows(small)
    for name, said in (("nothing", "no file"), ("text", "cannot be read"), ("narrow", "3 numbers")):
        with pytest.raises(InputError, match=said):
            defences.get("probe", population=str(tmp_path / name)).answer(small, None, rows, rows)
