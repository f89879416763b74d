"""The rows of the defences that search training rows for poison."""

from bvlm_utils.attacks.declare import choice, number, whole
from bvlm_utils.defences.declare import always, declare

RANDOM = "answering:shuffled_scores"
# Where states are read: free parameters, fixed on the development cells. At the answer, states hold its words, so that
# a clean-tuned model's tell poisoned rows as well; only at the prompt does success speak of a backdoor that was learnt.
STATES = {
    "depth": number(0.5, 0, 1),
    "position": choice("prompt", ("prompt", "answer")),
    "groups": choice("kind", ("kind", "all")),
}

declare(
    name="spectral-signatures",
    moment="data",
    needs=("training rows", "adapters"),
    source="Tran et al. 2018, arXiv 1811.00636, section 3 and algorithm 1; states of the last prompt token or of the "
    "answer's last, grouped by question kind in the place of class labels",
    summary="projection of a row's state on the top singular vector of its group",
    version=1,
    function="spectral:signatures",
    placebo=RANDOM,
    params=STATES,
)
declare(
    name="activation-clustering",
    moment="data",
    needs=("training rows", "adapters"),
    source="Chen et al. 2018, arXiv 1811.03728, algorithm 1: ten components, two clusters; principal in the place of "
    "independent components, and grouped by question kind in the place of class labels",
    summary="nearness to the smaller of two clusters of states",
    version=1,
    function="spectral:clusters",
    at_all="spectral:largest_silhouette",
    flags_above=0.0,  # the smaller cluster
    placebo=RANDOM,
    params=STATES,
)
declare(
    name="base-likelihood",
    moment="data",
    needs=("training rows", "base"),
    source="BYORn, ICML 2026, with the base as the judge: mean negative log-probability of the answer",
    summary="how little the base expects the answer",
    version=1,
    function="likelihood:base_loss",
    placebo=RANDOM,
)
declare(
    name="early-loss",
    moment="data",
    needs=("training rows", "base"),
    source="Anti-Backdoor Learning, Li et al. 2021, arXiv 2110.11571, its isolation: rows whose loss falls first; "
    "without the gradient ascent that holds the others' loss up",
    summary="how well the answer is learnt after a few steps",
    version=1,
    function="likelihood:early_loss",
    numbers=always,
    placebo=RANDOM,
    params={"steps": whole(20, 1, 10_000), "learning_rate": number(5e-4, 1e-8, 1)},
)
declare(
    name="attention-collapse",
    moment="data",
    needs=("training rows", "adapters", "attention"),
    source="BYE, arXiv 2505.16916: attention entropy of the answer's first token over image tokens; layers by the "
    "paper's criterion |m1 - m2| / sqrt(s1^2 + s2^2) >= 2.0, not by that of its code; read where that token is written",
    summary="how much the attention on the picture is drawn together",
    version=1,
    function="bye:collapse",
    at_all="bye:most_bimodal",
    placebo=RANDOM,
    params={"criterion": number(2.0, 0, 100), "side": choice("low", ("low", "either"))},
)
declare(
    name="onion-rows",
    moment="data",
    needs=("training rows", "base"),
    source="ONION, Qi et al. 2021, arXiv 2011.10369, equation 1, with the base in the place of GPT-2",
    summary="how much the perplexity of the prompt falls without its oddest word",
    version=1,
    function="onion:oddest_word",
    placebo=RANDOM,
)
