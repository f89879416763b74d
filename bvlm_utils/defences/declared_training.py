"""The rows of the defences that change what is tuned on."""

from bvlm_utils.attacks.declare import number
from bvlm_utils.defences.declare import always, declare

declare(
    name="input-diversity",
    moment="training",
    needs=("training rows",),
    source="RobustIT, arXiv 2506.05401, its first half: random crop, colour, blur and word dropout; drawn once a row "
    "here, not at each showing, and without the sparsifying of channels, whose constants are not public",
    summary="pictures cut, coloured and blurred, and words left out, each with probability p",
    version=1,
    function="diversity:diverse",
    numbers=always,  # a training in a bank
    placebo="diversity:noisy",
    params={"p": number(0.5, 0, 1)},
)
