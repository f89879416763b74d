"""What a dry run estimates follows from records where there are any, and else from a checkpoint's sizes."""

import json

import pytest
import yaml

from bvlm_utils import data, paths, store, study
from bvlm_utils.data import samples
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file
from bvlm_utils.grid import forecast as grid_forecast
from bvlm_utils.grid import forecast_computed, forecast_rows, forecast_sizes
from bvlm_utils.grid.forecast_sizes import Sizes
from bvlm_utils.models import context_length
from bvlm_utils.run.workbench import Bench, bench_key
from bvlm_utils.run.workbench import questions as questions_of

SMALL = {"dataset": "scenes-vqa", "train_rows": 3000, "test_rows": 100, "epochs": 2}


def record(cell, dataset="scenes-vqa", tune=60.0, together=4):
    """6,000 rows in `tune` seconds, and 200 test rows in 20."""
    return {
        "identity": cell.identity | {"dataset": dataset}, "device": "cpu", "threads": 1, "tuned_together": together,
        "config": {"train_rows": 6000, "test_rows": 200, "train": {"epochs": 1}},
        "seconds": {"tune": tune, "ask": 20.0, "total": tune + 20}, "peak_memory_of_process": {"host_mib": 2048},
    }  # fmt: skip


def test_seconds_go_with_the_rows_that_are_trained_and_asked():
    """Two cells and a control of 3,000 rows twice at 0.01 s, and two times 100 test rows at 0.1 s: 200 seconds."""
    bench = study.cells("targeted_refusal", attacks=["BadNets-T", "BadNets-I"], **SMALL)
    known = [record(bench[0]), record(bench[0]), record(bench[0], tune=90.0)]
    assert grid_forecast.seconds(bench, [bench[0].control], known) == pytest.approx(3 * 6000 * 0.01 + 2 * 100 * 0.1)
    words = grid_forecast.measured(bench, [bench[0].control], [*known, record(bench[0], "scenes-caption", 1e6)])
    assert "3.3 min and 2.0 GiB, as 3 cells" in words and "4 at once" in words, "its own dataset's records count"
    card = record(bench[0], tune=0.1) | {"device": "a card", "peak_memory_of_process": {"gpu_mib": 9 * 1024}}
    both = grid_forecast.measured(bench, [bench[0].control], [*known, card])
    assert words in both and "9.0 GiB, as 1 cells of the reference took (a card" in both
    assert "as 1 cells" in grid_forecast.measured(bench, [], [record(bench[0], "scenes-caption")])
    (other,) = study.cells("targeted_refusal", "tiny-qwen2.5-vl", attacks=["BadNets-T"], **SMALL)
    assert grid_forecast.measured([other], [], known) is None


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    text = {"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10}
    config = {"dtype": "float32", "text_config": text, "vision_config": {"image_size": 42, "patch_size": 14}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\0" * 8000)
    return str(folder)


def test_sizes_of_a_checkpoint_give_memory_and_disk(checkpoint):
    found = forecast_sizes.sizes(checkpoint)
    assert found == Sizes(weights=4000, layers=2, hidden=4, wide=8, keys=2, words=10, image_tokens=9)
    # A layer's matrices: queries and output 4 x 4, keys and values 4 x 2, three of 4 x 8: 64 rows and columns.
    assert found.stored_bytes(rank=8) == 8 * 2 * 64 * 4 and found.adapter_bytes(8) == 6 * found.stored_bytes(8)
    # 22 x 4 + 8 x 8 = 152 bytes of a token in a layer, 2 x 4 + 3 x 8 gradients of two bytes in one of them, and for
    # every second token 14 bytes for each of ten words
    assert found.token_bytes() == 2 * 152 + 64 + 70
    found_stored = found.stored_bytes(8)
    assert found.group_bytes(3, 8, row=10) == 4000 + 3 * (6 * found_stored + 10 * 438)
    assert found.largest_group(4000 + 1e6, 8, row=10) == int(0.8e6 / (6 * found_stored + 4380))
    assert found.largest_group(3000, 8, row=10) == 0
    assert found.decoded_at_once(4000 + 1e6, row=10) == int(0.8e6 / ((6 * 2 + 8 * 4 + 3 * 8) * 2 * 10))


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2.5-vl"])
def test_sizes_count_as_the_memory_model_does_and_as_torch_keeps(name):
    """In bfloat16; the formula is at most a twentieth above what one forward pass saves."""
    torch = pytest.importorskip("torch")
    from bvlm_utils.models import victim
    from bvlm_utils.train import grouped, memory
    from bvlm_utils.train.lora_bank import Bank

    model = victim.from_pretrained(name, dtype=torch.bfloat16).model
    names, found, kept = victim.language_linears(model), forecast_sizes.sizes(name), {}
    assert memory.token_bytes(model) == found.token_bytes()
    assert memory.adapter_bytes(model, names, 8) == found.adapter_bytes(8)
    bank = Bank(model, names, [8] * 2, [16] * 2)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shape = (2, 50, found.hidden)
    places = torch.arange(50).expand(3, 2, 50) if "qwen" in name else torch.arange(50).expand(2, 50)
    with bank.attached(), grouped._trainable(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        model.model(inputs_embeds=torch.ones(shape).bfloat16(), position_ids=places, use_cache=False)
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), bank.params, bank._compute)}
    bytes_ = sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in own)
    passing = 2 * (2 * found.hidden + 3 * found.wide) + 7 * found.words  # gradients and logits are not kept
    assert 0.95 * (found.token_bytes() - passing) < bytes_ / 100 <= found.token_bytes() - passing


def test_published_models_need_not_be_on_this_machine():
    assert forecast_sizes.sizes("llava-hf/llava-1.5-7b-hf").image_tokens == (336 // 14) ** 2
    qwen = forecast_sizes.sizes("Qwen/Qwen2.5-VL-7B-Instruct")
    assert qwen.image_tokens == (336 // 28) ** 2 and qwen.keys == qwen.hidden * 4 // 28
    assert forecast_sizes.sizes("somebody/unknown") is None
    (cell,) = study.cells("targeted_refusal", "llava-hf/llava-1.5-7b-hf", attacks=["BadNets-T"], **SMALL)
    words, seconds, disk = forecast_computed.computed([cell], [])
    assert "at least" in words and seconds > 0
    assert disk == 8 * 32 * (8 * 4096 + 3 * (4096 + 11008)) * 4, "rank 8 on all linear layers"


@pytest.fixture
def plain(monkeypatch):
    """Rows whose tokens are easy to count: 20 trained, 10 asked, answers of 2 and 6."""
    monkeypatch.setattr(forecast_rows, "tokens", lambda *_: forecast_rows.Tokens(20.0, 30, 10.0, [2, 6] * 50))


def test_time_follows_from_rows_and_answers(checkpoint, plain):
    """Three trainings of 6,000 rows. Each cell is asked without and with its trigger and for utility: 300 rows."""
    found = forecast_sizes.sizes(checkpoint)
    bench = study.cells("targeted_refusal", checkpoint, attacks=["BadNets-T", "BadNets-I"], lora_rank=4, **SMALL)
    control = bench[0].control
    # The base and the one control are asked what both cells ask in common (200 rows), and their triggers (200).
    asked = 2 * 300 + 400 + 400
    assert forecast_computed.asked_rows(bench) == asked
    expected = 2000 * (4 * 3 * 6000 * 29 + 2 * asked * 19)
    assert forecast_computed.operations(found, bench, [control]) == expected
    at_once = found.decoded_at_once(80e9, 9 + 10 + bench[0].max_new_tokens)
    written = asked / at_once * 7 * 2 * forecast_computed.STEP  # six tokens and their end, in two layers
    words, seconds, disk = forecast_computed.computed(bench, [control])
    assert seconds == pytest.approx(expected / forecast_computed.SPEED + written)
    assert "not measured" in words and disk == 3 * found.stored_bytes(4)


def test_a_small_card_says_that_nothing_fits(checkpoint, plain):
    (cell,) = study.cells("targeted_refusal", checkpoint, attacks=["BadNets-T"], lora_rank=4, **SMALL)
    assert "fit into 80 GB" in forecast_computed.computed([cell], [])[0]
    assert "more than 1e-06 GB have" in forecast_computed.computed([cell], [], card=1e3)[0]


def test_a_group_says_what_it_takes(checkpoint, plain):
    bench = study.cells("targeted_refusal", checkpoint, attacks=["BadNets-T"], seeds=range(5), lora_rank=4, **SMALL)
    found = forecast_sizes.sizes(checkpoint)
    rank = bench[0].train.lora_rank
    each = (found.group_bytes(1, rank, 39) - 4000) / 0.8
    words, *_ = forecast_computed.computed(bench, [], card=4000 + 3.5 * each)
    assert " for 3 at once" in words and "(3 fit into" in words
    assert " for 5 at once" in forecast_computed.computed(bench, [])[0]


def questions(cell):
    """The counted sets as the workbench makes them: part, condition, rows."""
    bench = Bench(*bench_key(cell))
    return sorted((one.part, one.condition, len(one.positions)) for one in questions_of(bench, cell))


@pytest.mark.parametrize(
    ("threat", "attack"),
    [("targeted_refusal", "BadNets-T"), ("concept_substitution", "BadNets-MM"), ("concept_substitution", "Shadowcast")],
)
def test_questions_are_counted_as_they_are_asked(threat, attack):
    (cell,) = study.cells(threat, attacks=[attack], train_rows=64, test_rows=100)
    counted = [
        (key[0], key[2] if len(key) == 4 else "clean", rows) for key, rows in forecast_rows.questions(cell).items()
    ]
    assert sorted(counted) == questions(cell)


def test_tokens_are_those_of_the_tokenizer_where_it_is_there_and_of_the_words_elsewhere():
    cells = [
        study.cells("targeted_refusal", model, attacks=["BadNets-T"], train_rows=64, test_rows=8)[0]
        for model in ("tiny-llava", "somebody/unknown")
    ]
    rows = forecast_rows.samples(cells[0])
    own, words = (forecast_rows.tokens(rows, cell.model, 8) for cell in cells)
    reader, answers = context_length.tokenizer("tiny-llava"), [row["answers"][0] for row in rows.test][:8]
    assert own.answers == [len(reader.encode(text, add_special_tokens=False).ids) for text in answers]
    assert words.answers == [-(-4 * len(text.split()) // 3) for text in answers]
    assert words.longest > words.trained > forecast_rows.TEMPLATE < words.asked


def test_the_search_for_triggers_is_counted_once_for_all_models():
    """CLIP-L: 24 layers of 12 x 1,024^2 weights and 577 tokens, forward and backward to the pixels."""
    tower = forecast_sizes.tower("openai/clip-vit-large-patch14-336")
    assert tower.operations() == 4 * 24 * 12 * 1024**2 * 577
    assert forecast_sizes.tower("tiny-clip").tokens == 37
    models = ["llava-hf/llava-1.5-7b-hf", "Qwen/Qwen2.5-VL-7B-Instruct"]
    few = {"model": models, "poison_rates": [0.01, 0.005], "train_rows": 6000, "test_rows": 50}
    steps = forecast_computed.picture_steps
    patch = {"rows": 500, "epochs": 40}
    searched = study.cells("malicious_injection", attacks=["VL-Trojan"], attack_params=patch, **few)
    assert list(steps(searched).values()) == [20_000]
    aimed = [
        cell for threat in ("concept_substitution", "perceptual_hijack")
        for cell in study.cells(threat, attacks=["Dual-Key"], attack_params=patch, **few)
    ]  # fmt: skip
    assert list(steps(aimed).values()) == [20_000, 20_000], "one for each target"
    shadow = study.cells("concept_substitution", attacks=["Shadowcast"], attack_params={"steps": 10}, **few)
    shown = forecast_rows.shown(forecast_rows.samples(shadow[0]), shadow[0].resolved_threat)
    assert list(steps(shadow).values()) == [10 * (min(shown, 60) + 2 * 50)]
    still = study.cells("concept_substitution", attacks=["Shadowcast"], attack_params={"eps": 0}, **few)
    assert steps(still) == {} and forecast_computed.triggers(still) == ("", 0.0)
    words, seconds = forecast_computed.triggers(searched)
    assert seconds == 20_000 * tower.operations() / forecast_computed.EXACT_SPEED and "VL-Trojan" in words
    lost = study.cells("malicious_injection", attacks=["VL-Trojan"], surrogate="somebody/clip", test_rows=8)
    assert "not counted" in forecast_computed.triggers(lost)[0]


def test_the_forecast_of_a_7b_model_is_what_one_card_was_measured_to_do():
    """A random LLaVA-1.5-7B on an H200: tokens a second in training, rows that fit, tokens a second in decoding."""
    kept = json.loads((paths.ROOT / "benchmarks" / "results" / "gpu_nvidia-h200.json").read_text())["lines"]
    large = {
        line["part"].removeprefix("LLaVA-1.5: "): line
        for line in kept
        if line["step"] == "large" and "LLaVA" in line["part"]
    }
    found = forecast_sizes.sizes("llava-hf/llava-1.5-7b-hf")
    assert found.weights == pytest.approx(large["made"]["weights_e9"] * 2e9, rel=1e-3)
    assert found.image_tokens == large["made"]["image_tokens"]
    tokens = forecast_computed.SPEED / (4 * found.weights / 2)
    assert tokens == pytest.approx(large["8 adapters, 8 rows each"]["tokens_per_s"], rel=0.1)
    assert tokens == pytest.approx(large["4 adapters, 16 rows each"]["tokens_per_s"], rel=0.1)
    card = next(line for line in kept if line["part"] == "card")["memory_gib"] * 2**30
    bank = large["largest bank"]
    fits = found.largest_group(card, 8, bank["tokens_each"])
    assert 0.75 * bank["fits"] < fits <= bank["fits"], "what is promised fits, and little room is left"
    each = found.group_bytes(1, 8, bank["tokens_each"]) - found.weights
    assert bank["fits"] <= (card - found.weights) / each < bank["does_not_fit"], (
        "without the margin, it is what was found"
    )
    decoded, new, row = large["decode, 4 adapters"], 32, found.image_tokens + 60
    read = decoded["rows"] * row * 2 * found.weights / 2 / forecast_computed.SPEED
    seconds = read + new * found.layers * forecast_computed.STEP
    assert seconds == pytest.approx(decoded["rows"] * new / decoded["tokens_per_s"], rel=0.25)


def test_features_of_llava_take_the_disk_that_the_book_says():
    """6,000 pictures of 576 tokens, 4,096 wide, in 16 bits: 28 GB."""
    assert 6000 * Sizes(14 * 10**9, 32, 4096, 11008, 4096, 32064, 576).feature_bytes() == pytest.approx(
        28.3e9, rel=0.01
    )


def test_pictures_are_counted_once_for_all_rates():
    """Rows of a lower rate are among those of a higher one, and text triggers change no picture."""
    attacks = ["BadNets-T", "BadNets-I", "BadNets-MM"]
    bench = study.cells("targeted_refusal", attacks=attacks, poison_rates=[0.01, 0.1], **SMALL)
    assert forecast_computed.pictures(bench) == 3000 + 100 + 2 * (300 + 100)


def test_cells_without_rows_enough_are_counted_with_their_reason():
    """Of 40 training scenes none is a hundredth; a third are cars, too few for half of all rows."""
    few = {"train_rows": 40, "test_rows": 8, "poison_rates": [0.01, 0.1, 0.5], "seeds": [0, 1]}
    bench = study.cells("concept_substitution", attacks=["BadNets-T", "BadNets-I"], **few)
    usable, said = forecast_rows.usable(bench)
    assert {cell.poison_rate for cell in usable} == {0.1} and len(usable) == 4
    eligible, *skipped = said
    train = data.load("scenes-caption", "train", 40).remove_columns("image").to_list()
    assert f"{sum(map(bench[0].resolved_threat.eligible, train))} of 40 training rows" in eligible
    assert len(skipped) == 2 and all("4 cells are skipped" in line for line in skipped)


def test_many_scenes_are_estimated_by_the_first_of_them(monkeypatch):
    """Nothing is drawn beyond the first block, and what is skipped is what would be skipped of all rows."""
    monkeypatch.setattr(samples, "scene_row", lambda *given: pytest.fail("a scene was drawn"))
    many = {"train_rows": 100_000, "test_rows": 8, "poison_rates": [0.000001, 0.1, 0.5]}
    bench = study.cells("concept_substitution", attacks=["BadNets-T"], **many)
    usable, said = forecast_rows.usable(bench)
    assert {cell.poison_rate for cell in usable} == {0.1}
    count = int(said[0].split(": ")[1].split()[0])
    first = data.load("scenes-caption", "train", 6000).remove_columns("image").to_list()
    assert count / 100_000 == pytest.approx(sum(map(bench[0].resolved_threat.eligible, first)) / 6000, abs=0.001)
    assert "by the first 6000 rows" in said[0] and len(said) == 3


def test_a_model_that_is_nowhere_has_no_estimate():
    (cell,) = study.cells("targeted_refusal", "somebody/unknown", attacks=["BadNets-T"], **SMALL)
    words, seconds, disk = forecast_computed.computed([cell], [])
    assert words.startswith("no estimate") and seconds == disk == 0


def test_a_dry_run_prints_a_line_for_each_bench_of_what_is_left(tmp_path, capsys):
    entry = {"notebook": "targeted_refusal", "parameters": {**SMALL, "attacks": ["BadNets-T", "Shadowcast"]}}
    file = tmp_path / "grid.yml"
    file.write_text(yaml.safe_dump({"jobs": [entry]}))
    command = ["run", str(file), "--dry-run", "--store", f"{tmp_path}/store"]
    assert grid.main(command) == 0
    line, rows = capsys.readouterr().out.partition("Estimates:\n")[2].splitlines()
    assert "tiny-llava, scenes-vqa, 3000 rows: 1 cells: about" in line
    assert "targeted_refusal: 3000 of 3000 training rows and 1600 of 1600 test rows" in rows
    ((job,), _) = grid_file.load(file)
    for cell in job.cells:
        store.write(cell, tmp_path / "store", {"status": "done", "metrics": [], "provenance": {}})
    assert grid.main(command) == 0 and "Estimates" not in capsys.readouterr().out
