"""The rows of the defences that change what is tuned on."""

from bvlm_utils.attacks.declare import choice, number
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
declare(
    name="filter",
    moment="training",
    needs=("training rows", "adapters"),
    source="Tran et al. 2018, arXiv 1811.00636, algorithm 1: drop the highest scores, and train again; the share "
    "is its 1.5 times the share of poison. Scores of defences that search rows; those of the truth are an oracle",
    summary="drops the most suspicious rows before training",
    version=1,
    function="filtered:without_suspicious",
    scored_by="by",
    numbers=always,  # a training in a bank
    placebo="filtered:without_random",
    params={
        "by": choice("base-likelihood", ("base-likelihood", "spectral-signatures", "activation-clustering", "truth")),
        "share": number(0.15, 0, 0.99),
    },
)
