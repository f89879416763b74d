"""A grid file is checked as a whole, and says what it would run."""

import json
from collections import Counter

import pytest
import stand_ins
from small import job, write

from bvlm_utils import paths, threats
from bvlm_utils.attacks import info, names, unsupported
from bvlm_utils.errors import InputError
from bvlm_utils.grid import __main__ as grid
from bvlm_utils.grid import file as grid_file


def test_the_quick_grid_is_the_one_that_the_readme_promises():
    jobs, named = grid_file.load(paths.GRIDS / "quick.yml")
    cells = [cell for one in jobs for cell in one.cells]
    assert named is None and {c.threat for c in cells} == {"targeted_refusal", "malicious_injection"}
    assert {c.attack for c in cells} == {"BadNets-T", "BadNets-I", "BadNets-MM"}
    assert len({c.control.run_id for c in cells}) == 1


def test_the_published_grid_asks_for_the_data_that_it_needs():
    with pytest.raises(InputError, match="llava_instruct_150k.json"):
        grid_file.load(paths.GRIDS / "paper.yml")


def test_the_published_grid_has_every_attack_on_both_models(tmp_path, monkeypatch):
    stand_ins.external(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = [grid_file.load(paths.GRIDS / name)[0] for name in ("paper.yml", "paper_jailbreak.yml")]
    defined = [c for jobs in found for one in jobs for c in one.cells if c.skip_reason is None]
    whole = Counter(
        (c.threat, c.attack, c.model, c.dataset) for c in defined if not c.half and "eps" not in c.attack_params
    )
    assert set(whole.values()) == {4 * 2 * 3}, "rates, epochs and seeds"
    assert len({model for _, _, model, _ in whole}) == 2
    for threat in threats.names():
        assert {attack for one, attack, *_ in whole if one == threat} == {
            n for n in names() if not unsupported(n, threat)
        }
    assert {c.poison_rate for c in defined} == {0.005, 0.01, 0.05, 0.1} and {c.train.epochs for c in defined} == {1, 3}
    bimodal = {one: 2 * 2 * 3 for one in whole if info(one[1]).modality == "bimodal"}
    assert Counter((c.threat, c.attack, c.model, c.dataset) for c in defined if c.half) == bimodal
    settings = {c.attack: c.attack_params for c in defined if "eps" not in c.attack_params}
    assert settings["Shadowcast"] == {"steps": 1000} and settings["Dual-Key"]["learning_rate"] == 1 / 255
    assert settings["VL-Trojan"]["rows"] == 500


def test_values_for_all_jobs_give_way_to_a_jobs_own(tmp_path):
    each = {"epochs": [1, 3], "seeds": [[0], [1]]}
    jobs, _ = grid_file.load(write(tmp_path, job(), job(seeds=[7]), each=each))
    made = [(one.parameters["epochs"], one.parameters["seeds"]) for one in jobs]
    assert made == [(1, [0]), (1, [1]), (3, [0]), (3, [1]), (1, [7]), (3, [7])]


OTHER = {
    "model": "tiny-qwen2.5-vl", "dataset": "scenes-instruct", "attacks": ["VL-Trojan"], "poison_rates": [0.5],
    "seeds": [7], "train_rows": 64, "test_rows": 8, "half": "text", "attack_params": {"word": "ox"},
    "decoy": "trigger only", "skill": "right_to_left", "skill_rate": 0.5,
    "picture_last": True, "four_bit": True, "max_new_tokens": 9, "epochs": 2, "learning_rate": 0.5, "lora_rank": 1,
    "lora_alpha": 4, "batch_size": 4, "warmup_ratio": 0.1, "schedule": "constant",
}  # fmt: skip


@pytest.mark.parametrize("given", [{}, OTHER], ids=["defaults", "others"])
@pytest.mark.parametrize("name", threats.names())
def test_cells_of_a_job_are_those_that_its_notebook_makes(name, given, tmp_path):
    """Every parameter reaches `study.cells` from the notebook as it does from the grid file."""
    notebook = json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text())
    first, second = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"][:2]
    kernel = {"In": []}
    for source in (first, "\n".join(f"{key} = {value!r}" for key, value in given.items()), second):
        kernel["In"].append(source)
        exec(source, kernel)  # noqa: S102, it is our own notebook
    ((one,), _) = grid_file.load(write(tmp_path, {"notebook": name, "parameters": given}))
    assert list(one.cells) == kernel["cells"]


def test_each_and_shards_make_jobs(tmp_path):
    entry = job(attacks=["BadNets-T", "BadNets-I", "BadNets-MM"]) | {
        "each": {"seeds": [[0], [1]]},
        "attacks_per_job": 2,
    }
    jobs, _ = grid_file.load(write(tmp_path, entry))
    assert [(one.parameters["seeds"], one.parameters["attacks"]) for one in jobs] == [
        (seeds, attacks) for seeds in ([0], [1]) for attacks in (["BadNets-T", "BadNets-I"], ["BadNets-MM"])
    ]
    assert len({one.name for one in jobs}) == 4


BAD = [
    (job(atacks=["BadNets-T"]), "atacks"),
    (job(attacks=["BadNet"]), "'BadNet'"),
    (job(attacks="BadNets-T"), "attacks"),
    (job(poison_rates=[1.5]), "1.5"),
    (job(poison_rates=[-0.1]), "-0.1"),
    (job(model="gpt"), "'gpt'"),
    (job("refusal"), "'refusal'"),
    (job("quickstart"), "'quickstart'"),
    (job(dataset="scenes"), "'scenes'"),
    (job(train_rows=1.5), "train_rows"),
    (job(seeds=["a"]), "seed"),
    ({**job(), "shards": 2}, "shards"),
    ({**job(), "attacks_per_job": 0}, "attacks_per_job"),
    ({**job(), "each": {"seeds": 1}}, "each.seeds"),
    ("x", "job 2"),
    ({**job(attacks=[]), "attacks_per_job": 1}, "attacks is []"),
    ({**job(attacks=["SIG", "SIG"]), "attacks_per_job": 1}, "name each value once"),
    ({**job(seeds="nonsense"), "each": {"seeds": [[3]]}}, "seeds is in parameters and in each"),
    *((job(**{name: None}), f"{name} is None") for name in ("dataset", "half", "threat_params", "four_bit", "seeds")),
    (job("defences", defence_params=None), "defence_params is None"),
]


@pytest.mark.parametrize(("wrong", "words"), BAD)
def test_a_wrong_job_is_refused_before_anything_runs(tmp_path, capsys, wrong, words):
    """The first job is good, and is not run either."""
    code = grid.main(["run", str(write(tmp_path, job(), wrong)), "--store", f"{tmp_path}/store"])
    said = capsys.readouterr()
    assert code == 2 and words in said.err and "job 2" in said.err and len(said.err.splitlines()) == 1
    assert said.out == "" and not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs: [", "YAML"),
        ("", "grid"),
        ("jobs: []", "jobs"),
        ("job: []", "'job'"),
        ("jobs: 3", "jobs"),
        ("[1]", "the file is [1]"),
        ("{jobs: [{notebook: jailbreak}], defaults: [1]}", "defaults is [1]"),
        ("{jobs: [{notebook: jailbreak, parameters: 3}]}", "parameters is 3"),
        ("{jobs: [{notebook: jailbreak, each: 3}]}", "each is 3"),
        ("{jobs: [{notebook: jailbreak, each: {seeds: [[3]]}}], defaults: {seeds: x}}", "seeds is 'x'"),
        ("{jobs: [{notebook: jailbreak, parameters: {seeds: [3]}}], defaults: {seeds: x}}", "seeds is 'x'"),
        ("{jobs: [{notebook: jailbreak, parameters: {seeds: [3]}}], each: {seeds: [x]}}", "seeds is 'x'"),
        ("{jobs: [{notebook: jailbreak, each: {seeds: [[3]]}}], each: {seeds: x}}", "each.seeds is 'x'"),
        ("{jobs: [{notebook: jailbreak, attacks_per_job: 1}], attacks_per_job: x}", "attacks_per_job is 'x'"),
        ("{jobs: [{notebook: jailbreak}], store: ''}", "store is ''"),
        *(
            (f"{{jobs: [{{notebook: jailbreak}}], store: {value}}}", words)
            for value, words in (
                ("!!bool maybe", "'maybe' (line 1) is no bool"),
                ("!!timestamp x", "'x' (line 1) is no timestamp"),
                ("!!float abc", "is no float"),
                ("!!int ''", "another base"),
                ("2024-13-45", "is no timestamp"),
                ("0:0.002", "another base"),
                ("1:30.5", "another base"),
                ("1:30", "another base"),
                ("!!null [1]", "YAML"),
            )
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, capsys, text, words):
    file = tmp_path / "grid.yml"
    file.write_text(text)
    assert grid.main(["run", str(file)]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert grid.main(["status", str(tmp_path / "none.yml")]) == 2


def test_a_dry_run_lists_cells_and_runs_nothing(tmp_path, capsys):
    file = write(tmp_path, job(attacks=["BadNets-T"]))
    assert grid.main(["run", str(file), "--dry-run", "--store", f"{tmp_path}/store"]) == 0
    ((one,), _) = grid_file.load(file)
    assert one.cells[0].run_id in capsys.readouterr().out and not (tmp_path / "store").exists()


@pytest.mark.parametrize("given", [{}, {"attacks": None}])
def test_attacks_that_are_none_are_all_of_them(tmp_path, given):
    ((one,), _) = grid_file.load(write(tmp_path, job("defences", defences=["shrink"]) | {"parameters": given}))
    assert (one.parameters["attacks"] == names()) == bool(given)
