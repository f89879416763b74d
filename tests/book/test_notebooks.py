"""Every notebook is clean, documents its parameters, and runs from any folder with real tiny runs."""

import ast
import json
import os
import re
import shlex
import shutil

import nbformat
import papermill
import pytest

from bvlm_utils import paths, study, threats
from bvlm_utils.errors import InputError
from bvlm_utils.parameters import of_cells

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
CHAPTERS = threats.names()  # one notebook per threat, of the same name
SECTIONS = [
    "The threat",
    "One trigger of each kind",
    "One run",
    "How often it works",
    "What it costs",
    "What stops it",
    "Limits",
    "Change it",
]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def parameters(path):
    """name -> (annotation, default) of the parameters cell."""
    lines = ast.parse(code_cells(path)[0].source).body
    assert all(isinstance(line, ast.AnnAssign) and line.value is not None for line in lines), (
        "only `name: type = value`"
    )
    return {line.target.id: (line.annotation.id, ast.literal_eval(line.value)) for line in lines}


def test_every_threat_has_its_chapter():
    names = {path.stem for path in NOTEBOOKS}
    others = {
        "quickstart", "attacks", "reproduce", "models", "small_patch", "dose", "claims", "leaderboard",
        "cost", "crossfire", "lasting", "modality", "audit", "defences",
    }  # fmt: skip
    assert names == {*CHAPTERS, *others}


@every_notebook
def test_the_file_is_valid_and_stripped(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        kept = {"tags", "mystnb"} if "hide-output" in cell.metadata.get("tags", []) else {"tags"}
        assert set(cell.metadata) <= kept, "papermill's and editors' metadata are stripped"
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@every_notebook
def test_the_first_code_cell_declares_annotated_parameters(path):
    first, *others = code_cells(path)
    assert first.metadata.tags[0] == "parameters" and set(first.metadata.tags) <= {"parameters", "remove-input"}
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    for name, (annotation, default) in parameters(path).items():
        assert annotation in {"str", "int", "float", "bool", "list", "dict"}, name
        assert default is None or type(default).__name__ == annotation, name
    assert set(papermill.inspect_notebook(str(path))) == set(parameters(path))


@every_notebook
def test_code_cells_are_short(path):
    for cell in code_cells(path)[1:]:
        assert len(cell.source.splitlines()) <= 10, cell.source


@every_notebook
def test_the_papermill_commands_name_this_notebook_and_its_parameters(path):
    commands = [line for line in prose(path).splitlines() if line.startswith("papermill ")]
    assert commands, "the reader is told how to change the notebook"
    for command in commands:
        _, source, _, *options = shlex.split(command)
        assert paths.ROOT / source == path
        given = [options[i + 1].partition(":")[0] for i, option in enumerate(options) if option in ("-p", "-y")]
        assert set(given) <= set(parameters(path))


@pytest.mark.parametrize("name", CHAPTERS)
def test_threat_chapters_share_their_sections_and_parameters(name):
    path = paths.NOTEBOOKS / f"{name}.ipynb"
    assert re.findall(r"^## (.*)$", prose(path), flags=re.MULTILINE) == SECTIONS
    assert list(parameters(path)) == list(parameters(paths.NOTEBOOKS / f"{CHAPTERS[0]}.ipynb"))


# ---------------------------------------------------------------- running them


SMALL = {"attacks": ["BadNets-MM"], "poison_rates": [0.1], "train_rows": 48, "test_rows": 4}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A store of real tiny runs, one cell per threat; only the first threat's is left to its notebook to measure, as
    a process that trains takes long to start.
    """
    store = tmp_path_factory.mktemp("runs") / "store"
    for name in CHAPTERS[1:]:
        defaults = {key: value for key, (_, value) in parameters(paths.NOTEBOOKS / f"{name}.ipynb").items()}
        study.run_cells(study.cells(name, **of_cells(defaults | SMALL)), store)
    return store


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Execute a notebook with papermill, from a folder that has nothing to do with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(paths.ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("BVLM_STORE", "BVLM_YOURS"):
        monkeypatch.delenv(name, raising=False)

    def execute(name, **given):
        return papermill.execute_notebook(
            str(paths.NOTEBOOKS / f"{name}.ipynb"),
            str(tmp_path / "out.ipynb"),
            parameters=given,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=300,
        )

    return execute


def page(notebook):
    """All that the executed notebook shows, as one text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    text = "\n".join(data.get("text/html") or data.get("text/markdown") or "" for data in shown)
    for picture in re.findall(r"<img [^>]*>", text):
        assert re.search(r'alt="[^"]{10,}"', picture), "every picture says what it shows"
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().split(), "what is missing reads n/a"
    return text


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_measures_or_finds_its_cells_and_shows_them(name, run, shelf):
    text = page(run(name, store=str(shelf), **SMALL))
    records = [json.loads(file.read_text()) for file in shelf.glob("*/record.json")]
    mine = [record for record in records if record["config"]["threat"] == name]
    assert [record["status"] for record in mine] == ["done"], "the notebook's cell is the one that was measured"
    assert "1 experiment: 1 measured" in text and "BadNets-MM" in text and "<mark>BadMagic</mark>" in text


def test_the_quickstart_says_how_to_ask_its_model(run, shelf):
    sizes = {name: SMALL[name] for name in ("train_rows", "test_rows")}
    text = page(run("quickstart", store=str(shelf), attack="BadNets-MM", **sizes))
    assert "python -m bvlm_utils.chat" in text and "clean-tuned" in text


def test_the_book_shows_stored_runs_without_torch(run, shelf, tmp_path, monkeypatch, request):
    """As `make book` does it: the store is the reference, torch cannot be imported, nothing is trained."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('the book is built without torch')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    for folder in ("models", "sprites", "pictures", "adapters", "grids"):
        (tmp_path / "root" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / "data" / folder).symlink_to(paths.DATA / folder)
    results = "benchmarks/results"
    (tmp_path / "root" / results).mkdir(parents=True)
    for name in ("notebooks", f"{results}/coverage.json"):
        (tmp_path / "root" / name).symlink_to(paths.ROOT / name)
    (tmp_path / "root" / "data" / "results").mkdir()
    shutil.copytree(shelf, tmp_path / "root" / "data" / "results" / "reference")
    monkeypatch.setenv("BVLM_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("BVLM_STORE", "reference")
    sizes = {name: SMALL[name] for name in ("train_rows", "test_rows")}
    assert "1 measured" in page(run("targeted_refusal", **SMALL))
    monkeypatch.syspath_prepend(paths.BOOK / "_ext")
    import bvlm_kernels

    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", bvlm_kernels.launch)
    request.addfinalizer(lambda: bvlm_kernels._server(os.getpid()).kill())
    assert "python -m bvlm_utils.chat" in page(run("quickstart", attack="BadNets-MM", **sizes))
    assert "There is no run of yours here" in page(run("reproduce"))
    assert "No stealth numbers are stored" in page(run("attacks"))
    assert "VQA accuracy" in page(run("models"))
    assert "BadNets-MM" in page(run("modality"))
    board = page(run("leaderboard", downloads=str(tmp_path / "files")))
    assert " measured and 0 skipped" in board
    assert "BadNets-MM" in (tmp_path / "files" / "leaderboard.csv").read_text()
    spent = page(run("cost"))
    assert "tiny-llava" in spent and "Not measured yet" in spent
    assert "enough numbers of poisoned rows for a curve" in page(run("dose"))
    assert "every claim here is untested" in page(run("claims"))
    with pytest.raises(papermill.PapermillExecutionError, match="has no record of .* and the book does not train"):
        run("targeted_refusal", **{**SMALL, "poison_rates": [0.2]})


def test_reproduce_compares_two_stores(run, shelf):
    text = page(run("reproduce", yours=str(shelf), reference=str(shelf)))
    assert re.search(r"(\d+) of \1 numbers agree\.", text)


def test_a_parameter_that_the_notebook_lacks_is_refused(run, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as refused:
        run("targeted_refusal", store=str(tmp_path / "none"), poison_rate=0.1)
    assert "This notebook has no parameter 'poison_rate'; its parameters are: attack_params, attacks," in str(
        refused.value
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wrong, sentence", [
    ({"model": "no-such-model"}, "There is no model 'no-such-model'"),
    ({"dataset": "no-such-data"}, "There is no dataset 'no-such-data'"),
    ({"attacks": ["BadNets-X"]}, "There is no attack 'BadNets-X'"),
    ({"attacks": "BadNets-T"}, "attacks is 'BadNets-T'; it must be a list"),
    ({"poison_rates": [1.5]}, "poison_rate is 1.5; it must be a number from 0 to 1"),
    ({"seeds": [-1]}, "seed is -1"),
    ({"negatives": -0.5}, "negatives is -0.5"),
    ({"epochs": 0}, "epochs is 0"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
    ({"test_rows": 0}, "test_rows is 0"),
])  # fmt: skip
@pytest.mark.parametrize("name", CHAPTERS[:2])
def test_wrong_values_are_refused_in_one_sentence_before_anything_runs(name, wrong, sentence, tmp_path):
    first, second = (cell.source for cell in code_cells(paths.NOTEBOOKS / f"{name}.ipynb")[:2])
    space = {"In": [first]}
    exec(first, space)  # noqa: S102, it is our own notebook
    space |= wrong | {"store": str(tmp_path / "none")}
    with pytest.raises(InputError, match=re.escape(sentence)) as refused:
        exec(second, space)  # noqa: S102
    assert "\n" not in str(refused.value) and not (tmp_path / "none").exists()
