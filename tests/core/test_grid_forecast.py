"""What a dry run estimates follows from records where there are any, and else from a checkpoint's sizes."""

import json

import pytest
import yaml

from bvlm_utils import data, paths, store, study
from bvlm_utils.data import samples
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file
from bvlm_utils.grid import forecast as grid_forecast
from bvlm_utils.grid.forecast import Sizes

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
    config = {"dtype": "float32", "text_config": text, "vision_config": {"image_size": 42, "patch_size": 14}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\0" * 8000)
    return str(folder)


def test_sizes_of_a_checkpoint_give_time_memory_and_disk(checkpoint):
    found = grid_forecast.sizes(checkpoint)
    assert found == Sizes(weights=4000, layers=2, hidden=4, wide=8, image_tokens=9) and found.row == 89
    # 2 layers: 7 linears with 11 x 4 + 3 x 8 = 68 rows and columns; 4 x 44 + 8 x 10 = 256 bytes a token
    assert found.adapter_bytes(rank=8) == 8 * 2 * 68 * 24 + 89 * 2 * 256
    bench = study.cells("targeted_refusal", checkpoint, attacks=["BadNets-T", "BadNets-I"], lora_rank=4, **SMALL)
    trained, asked = 3 * 6000 * 89, 2 * 5 * 100 * 89
    assert grid_forecast.operations(found, bench, [bench[0].control]) == 2000 * (4 * trained + 2 * asked)
    words, seconds, disk = grid_forecast.computed(bench, [bench[0].control])
    assert "not measured" in words and "GB of disk" in words
    assert disk == 3 * found.stored_bytes(4) == 3 * 4 * 2 * 68 * 4
    # 0.8 of 80 GB hold all rows at once, whose keys and values are 2 x 2 x 4 x 2 x (89 + 80) bytes each
    at_once = (64e9 - 4000) // (32 * 169)
    written = 2 * 5 * 100 / at_once * 64 * 2 * grid_forecast.STEP
    assert seconds == pytest.approx(
        grid_forecast.operations(found, bench, [bench[0].control]) / grid_forecast.SPEED + written
    )


def test_a_small_card_says_that_nothing_fits(checkpoint):
    (cell,) = study.cells("targeted_refusal", checkpoint, attacks=["BadNets-T"], lora_rank=4, **SMALL)
    assert "fit into 80 GB" in grid_forecast.computed([cell], [])[0]
    assert "more than 1e-06 GB have" in grid_forecast.computed([cell], [], card=1e3)[0]


def test_the_forecast_of_a_7b_model_is_what_one_card_was_measured_to_do():
    """A random LLaVA-1.5-7B on an H200: tokens a second in training, rows that fit, tokens a second in decoding."""
    kept = json.loads((paths.ROOT / "benchmarks" / "results" / "gpu_nvidia-h200.json").read_text())["lines"]
    large = {
        line["part"].removeprefix("LLaVA-1.5: "): line
        for line in kept
        if line["step"] == "large" and "LLaVA" in line["part"]
    }
    found = Sizes(int(large["made"]["weights_e9"] * 2e9), 32, 4096, 11008, large["made"]["image_tokens"])
    tokens = grid_forecast.SPEED / (4 * found.weights / 2)
    assert tokens == pytest.approx(large["8 adapters, 8 rows each"]["tokens_per_s"], rel=0.1)
    assert tokens == pytest.approx(large["4 adapters, 16 rows each"]["tokens_per_s"], rel=0.1)
    card = next(line for line in kept if line["part"] == "card")["memory_gib"] * 2**30
    fits = (card * grid_forecast.USABLE - found.weights) / found.adapter_bytes(8)
    bank = large["largest bank"]
    assert 0.4 * bank["fits"] < fits < bank["does_not_fit"], "what is promised fits"
    decoded = large["decode, 4 adapters"]
    read = decoded["rows"] * found.row * 2 * found.weights / 2 / grid_forecast.SPEED
    new = 32
    seconds = read + new * found.layers * grid_forecast.STEP
    assert seconds == pytest.approx(decoded["rows"] * new / decoded["tokens_per_s"], rel=0.25)


def test_features_of_llava_take_the_disk_that_the_book_says():
    """6,000 pictures of 576 tokens, 4,096 wide, in 16 bits: 28 GB."""
    assert 6000 * Sizes(14 * 10**9, 32, 4096, 11008, 576).feature_bytes() == pytest.approx(28.3e9, rel=0.01)


def test_pictures_are_counted_once_for_all_rates():
    """Rows of a lower rate are among those of a higher one, and text triggers change no picture."""
    attacks = ["BadNets-T", "BadNets-I", "BadNets-MM"]
    bench = study.cells("targeted_refusal", attacks=attacks, poison_rates=[0.01, 0.1], **SMALL)
    assert grid_forecast.pictures(bench) == 3000 + 100 + 2 * (300 + 100)


def test_cells_without_rows_enough_are_counted_with_their_reason():
    """Of 40 training scenes none is a hundredth; a third are cars, too few for half of all rows."""
    few = {"train_rows": 40, "test_rows": 8, "poison_rates": [0.01, 0.1, 0.5], "seeds": [0, 1]}
    bench = study.cells("concept_substitution", attacks=["BadNets-T", "BadNets-I"], **few)
    usable, said = grid_forecast.rows(bench)
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
    usable, said = grid_forecast.rows(bench)
    assert {cell.poison_rate for cell in usable} == {0.1}
    count = int(said[0].split(": ")[1].split()[0])
    first = data.load("scenes-caption", "train", 6000).remove_columns("image").to_list()
    assert count / 100_000 == pytest.approx(sum(map(bench[0].resolved_threat.eligible, first)) / 6000, abs=0.001)
    assert "by the first 6000 rows" in said[0] and len(said) == 3


def test_a_model_that_is_nowhere_has_no_estimate():
    (cell,) = study.cells("targeted_refusal", "somebody/unknown", attacks=["BadNets-T"], **SMALL)
    words, seconds, disk = grid_forecast.computed([cell], [])
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
