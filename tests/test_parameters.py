"""A parameter that a notebook does not have is refused; everything else passes."""

import pytest

from bvlm_utils import parameters
from bvlm_utils.errors import InputError

CELL = 'model: str = "tiny-llava"  # which one\npoison_rates: list = [0.1]\n'


def test_an_unknown_parameter_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no parameter 'poison_rate'; its parameters are: model, poison_rates"):
        parameters.check(["", CELL, "# Parameters\nmodel = 'x'\npoison_rate = 0.5\n", "import this"])


@pytest.mark.parametrize(
    "inputs",
    [
        ["", CELL, "# Parameters\npoison_rates = [0.5]\n"],
        ["", CELL, "x = 1"],
        ["", "!ls", CELL, "# Parameters\nmodel = 'x'\n"],
        [""],
    ],
)
def test_known_ones_pass(inputs):
    parameters.check(inputs)
