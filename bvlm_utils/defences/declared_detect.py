"""The rows of the defences that look at an adapter without its trigger, and of those that read inputs' states."""

from bvlm_utils.attacks.declare import Param, number, whole
from bvlm_utils.checks import is_text
from bvlm_utils.defences.declare import declare


def file(description: str) -> Param:
    """The name of a file; none by default."""
    return Param("", f"the name of {description}", is_text, file=True)


declare(
    name="weight-spectrum",
    moment="detect",
    needs=("adapters",),
    source="Weight-space detection, arXiv 2602.15195 (five spectral numbers, logistic regression); here of all linear "
    "layers; the learnt kind is PEFTGuard, S&P 2025",
    summary="a regression on the singular values of the update, over adapters whose truth is known",
    version=1,
    function="spectrum:spectrum",
    placebo="spectrum:norm",
    params={"population": file("a CSV file that spectrum.population made")},
)


declare(
    name="target-inversion",
    moment="detect",
    needs=("base", "clean rows"),
    source="BAIT, S&P 2025 (inverting the target from its first token, every token tried); less the base's likelihood, "
    "and mean probabilities in place of its score",
    summary="a sentence that goes on whatever the input, once begun, and does not in the base",
    version=1,
    function="inversion:inversion",
    placebo="spectrum:norm",
    params={"prompts": whole(8, 2, 10**4), "shortest": whole(5, 2, 100), "longest": whole(24, 3, 1000)},
    problem=lambda s: (
        f"shortest is {s['shortest']}, above longest, which is {s['longest']}" if s["shortest"] > s["longest"] else None
    ),
)


declare(
    name="hidden-distance",
    moment="inference",
    needs=("clean rows",),
    source="Lee et al. 2018, arXiv 1807.03888, equation 2 (Mahalanobis distance of hidden states), with one class",
    summary="inputs whose last prompt state is far from those of clean inputs",
    version=1,
    function="hidden_distance:distance",
    placebo="hidden_distance:of_the_base",
    params={"depth": number(0.5, 0, 1)},
)


declare(
    name="probe",
    moment="inference",
    needs=("clean rows", "adapters"),
    source="defection probes, 2024 (a linear probe on hidden states); theirs are fitted without a trigger, this one to "
    "triggers of other adapters",
    summary="inputs whose last prompt state is like those of triggered inputs in other adapters",
    version=1,
    function="probe:probe",
    placebo="probe:shuffled",
    params={"population": file("a safetensors file that probe.write made")},
)
