"""A notebook's parameters are what was set last; one that it does not have is refused; everything else passes."""

import pytest

from bvlm_utils import parameters
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
