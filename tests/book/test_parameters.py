"""A notebook's parameters are what was set last; one that it does not have is refused; everything else passes."""

import json

import pytest

from bvlm_utils import parameters, paths
from bvlm_utils.errors import InputError

CELL = 'model: str = "tiny-llava"  # which one\npoison_rates: list = [0.1]\nstore: str = None\n'
INJECTED = "# Parameters\nmodel = 'x'\npoison_rates = [0.5]\nstore = 'local'\n"


def kernel(*cells):
    """The namespace of a kernel in which these cells were run, one after the other."""
    space = {"In": [""]}
    for source in cells:
        space["In"].append(source)
        exec(source, space)  # noqa: S102
    return space


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no parameter 'poison_rate'; its parameters are: model, poison_rates"):
        parameters.check(["", CELL, "# Parameters\nmodel = 'x'\npoison_rate = 0.5\n", "import this"])


@pytest.mark.parametrize(
    "inputs",
    [
        ["", CELL, "# Parameters\npoison_rates = [0.5]\n"],
        ["", CELL, "x = 1"],
        ["", "!ls", CELL, "# Parameters\nmodel = 'x'\n"],
        ["", "# Parameters\nmodel = 'x'\n", CELL],
        ["", CELL, "# Parameters\nmoddel = 'x'\n", "# Parameters\nmodel = 'x'\n"],  # mended by hand
        [""],
    ],
)
def test_known_ones_pass(inputs):
    parameters.check(inputs)


@pytest.mark.parametrize(("line", "right"), [
    ("attacks = None", True), ("dataset = None", False), ("store = None", True), ("defence_params = None", False),
])  # fmt: skip
def test_none_is_what_a_notebook_says_of_it(line, right):
    cell = 'dataset: str = "x"\nattacks: list = ["SIG"]\ndefence_params: dict = {}\nstore: str = None\n'
    if right:
        assert parameters.check(["", cell, f"# Parameters\n{line}\n"])
    else:
        with pytest.raises(InputError, match=f"{line.split()[0]} is None; it must be a t"):
            parameters.check(["", cell, f"# Parameters\n{line}\n"])


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([CELL], {"model": "tiny-llava", "poison_rates": [0.1]}),
        ([CELL, INJECTED], {"model": "x", "poison_rates": [0.5]}),
        ([CELL, "# Parameters\nmodel = 'x'\n"], {"model": "x", "poison_rates": [0.1]}),
        ([CELL, INJECTED, CELL], {"model": "tiny-llava", "poison_rates": [0.1]}),
        ([CELL, CELL.replace("0.1", "0.2")], {"model": "tiny-llava", "poison_rates": [0.2]}),
        ([CELL, CELL + "epochs: int = 3\n"], {"model": "tiny-llava", "poison_rates": [0.1], "epochs": 3}),
        ([CELL, "model = 'y'"], {"model": "y", "poison_rates": [0.1]}),
        ([CELL, "poison_rates: list = [10**-n for n in (1, 2)]"], {"model": "tiny-llava", "poison_rates": [0.1, 0.01]}),
        ([CELL, "lines: int = 3\nother = 4"], {"model": "tiny-llava", "poison_rates": [0.1]}),
    ],
)
def test_what_was_set_last_is_given_and_the_store_is_left_out(cells, wanted):
    assert parameters.given(kernel(*cells)) == wanted


def test_nothing_is_given_before_the_parameters_are_set():
    with pytest.raises(InputError, match="run its first code cell"):
        parameters.given(kernel("import ast"))
    with pytest.raises(InputError, match="run its first code cell"):
        parameters.given(kernel(CELL, "del model"))
    with pytest.raises(InputError, match="no parameter 'rate'"):
        parameters.given(kernel(CELL, "# Parameters\nrate = 0.5\n"))


# ---------------------------------------------------------------- bad values, in every notebook

CELLS = {"model": "gpt", "dataset": "scenes", "attacks": ["BadNet"], "poison_rates": [2], "seeds": [-1],
         "train_rows": 0, "test_rows": "x", "negatives": -1, "half": "left", "attack_params": {"wrd": 1},
         "threat_params": {"no": 1}, "surrogate": "gpt", "picture_last": 1, "four_bit": "yes", "dtype": "float8",
         "epochs": 0, "learning_rate": "2e-4", "lora_rank": 0, "batch_size": 0.5, "max_new_tokens": 0}  # fmt: skip
READERS = ("attacks", "audit", "claims", "cost", "crossfire", "dose", "lasting", "leaderboard", "modality")
BAD = [
    *(("targeted_refusal", name, value) for name, value in CELLS.items()),
    *(("jailbreak", name, value) for name, value in {"seeds": None, "attacks": "SIG", "model": 3}.items()),
    *((page, "store", value) for page in (*READERS, "small_patch", "quickstart") for value in ("..", "a\0b", 3)),
    *((page, "stor", "x") for page in (*READERS, "small_patch", "quickstart", "models", "reproduce")),
    ("claims", "models", None), ("claims", "models", [3]), ("cost", "measured", 3), ("cost", "measured", "a\0b"),
    ("crossfire", "most", "x"), ("models", "models", ["gpt"]), ("models", "models", [3]),
    ("reproduce", "yours", ".."), ("reproduce", "reference", 3), ("leaderboard", "downloads", 3),
    ("quickstart", "threat", "x"), ("quickstart", "poison_rate", "0.1"), ("quickstart", "seed", -1),
    ("small_patch", "large_patch", 10**6), ("small_patch", "model", "gpt"),
]  # fmt: skip


def run(name, given, monkeypatch):
    """The code of a notebook in this process, with the parameters as papermill gives them."""
    monkeypatch.chdir(paths.NOTEBOOKS)
    space = {"In": [""], "__name__": "__main__"}
    for cell in json.loads((paths.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            sources = ["".join(cell["source"])]
            if "parameters" in cell["metadata"].get("tags", []):
                sources.append("# Parameters\n" + "".join(f"{key} = {value!r}\n" for key, value in given.items()))
            for source in sources:
                space["In"].append(source)
                exec(source, space)  # noqa: S102


@pytest.mark.parametrize(("name", "key", "value"), BAD)
def test_a_bad_value_is_one_sentence_in_every_notebook(name, key, value, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BVLM_STORE", str(tmp_path / "nothing"))
    with pytest.raises(InputError) as error:
        run(name, {key: value}, monkeypatch)
    said = str(error.value)
    assert len(said.splitlines()) == 1 and len(said) < 1500 and not (tmp_path / "nothing").exists()
    known = value[0] if isinstance(value, list) else next(iter(value)) if isinstance(value, dict) else value
    assert str(known).replace("\0", "\\x00") in said or key in said


def test_a_kernel_shows_the_sentence_and_no_code():
    from IPython.core.interactiveshell import InteractiveShell

    shown = []
    shell = InteractiveShell()
    shell._showtraceback = lambda kind, value, lines: shown.extend(lines)
    shell.run_cell("from bvlm_utils.errors import InputError\nraise InputError('x is 3; it must be 4.')")
    assert shown == ["InputError: x is 3; it must be 4."]
