"""The rows of the defences that repair an adapter."""

from collections.abc import Mapping
from typing import Any

from bvlm_utils.attacks.declare import Param, choice, number, whole
from bvlm_utils.checks import is_text
from bvlm_utils.defences.declare import always, declare

NOISE = "weights:noise"  # a random update of the size of the change
# Rows, steps and rate of a tuning on clean rows; 2e-3 is the rate of the study's own training.
TUNING = {"rows": whole(100, 1, 10**6), "learning_rate": number(2e-3, 1e-9, 1)}


def tuning(steps: int) -> Mapping[str, Any]:
    """The parameters of a tuning on clean rows, with a default number of steps; 0 is none."""
    return TUNING | {"steps": whole(steps, 0, 10**6)}


def folders() -> Param:
    """Folders with adapters; none by default."""
    wants = "a list of folders with adapters"
    return Param([], wants, lambda v: isinstance(v, list | tuple) and all(is_text(folder) for folder in v), file=True)


declare(
    name="oracle",
    moment="repair",
    needs=("base",),
    source="none: the upper bound of what a repair can remove, and the lower bound of what it can keep",
    summary="the base: the update is dropped",
    version=1,
    function="shrink:oracle",
)


declare(
    name="shrink",
    moment="repair",
    needs=("base",),
    source="WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, section 3 (weights between base and tuned model)",
    summary="base + lambda x update; lambda 0 is the base",
    version=1,
    function="shrink:shrink",
    placebo=NOISE,
    params={"strength": number(0.5, 0, 2)},
)


declare(
    name="truncate",
    moment="repair",
    needs=("base",),
    source="the best approximation of lower rank, Eckart and Young 1936, and its complement; no paper's recipe",
    summary="the leading singular components of each layer's update are dropped, or kept alone",
    version=1,
    function="truncate:truncate",
    placebo="truncate:at_random",
    params={"components": whole(1, 1, 10**4), "keep": choice("rest", ("rest", "top"))},
)


declare(
    name="mix",
    moment="repair",
    needs=("base", "adapters"),
    source="Arora et al. 2024, arXiv 2402.19334, weight averaging with other models of the same base; here adapters",
    summary="the mean of the update and those of other adapters",
    version=1,
    function="mix:mix",
    placebo="mix:with_random",
    params={"others": folders()},
)


declare(
    name="clean-fine-tuning",
    moment="repair",
    needs=("base", "clean rows"),
    source="the baseline of every paper, for example Liu et al. 2018, arXiv 1805.12185, section 4; LoRA only, here",
    summary="the adapter is tuned on with clean rows",
    version=1,
    function="tune:clean_fine_tuning",
    numbers=lambda settings: settings["steps"] > 0,
    counted=lambda settings: settings["steps"] > 0,
    many="tune:many",
    placebo=NOISE,
    params=tuning(200),
)


declare(
    name="prune",
    moment="repair",
    needs=("base", "clean rows"),
    source="Wanda, Sun et al. 2023, arXiv 2306.11695, equation 1, and its baseline, magnitude; per row of each layer",
    summary="half of the merged weights become zero",
    version=1,
    function="prune:prune",
    numbers=always,
    counted=lambda settings: settings["by"] == "wanda" or settings["steps"] > 0,
    placebo=NOISE,
    params={"by": choice("wanda", ("wanda", "magnitude")), "share": number(0.5, 0, 1), **tuning(0)},
)


declare(
    name="fine-prune",
    moment="repair",
    needs=("base", "clean rows"),
    source="Fine-Pruning, Liu et al. 2018, arXiv 1805.12185, section 4; there neurons are pruned, here weights",
    summary="half of the merged weights become zero, and the rest is tuned on clean rows",
    version=1,
    function="prune:prune",
    numbers=always,
    counted=lambda settings: settings["by"] == "wanda" or settings["steps"] > 0,
    placebo=NOISE,
    params={"by": choice("wanda", ("wanda", "magnitude")), "share": number(0.5, 0, 1), **tuning(200)},
)


declare(
    name="quantise",
    moment="repair",
    needs=("base",),
    source="round to nearest, symmetric, per row; the INT4 baseline of RACER, arXiv 2608.24354",
    summary="the merged weights are rounded to 8 or 4 bits, and tuned on clean rows if there are steps",
    version=1,
    function="quantise:quantise",
    numbers=always,
    counted=lambda settings: settings["steps"] > 0,
    placebo=NOISE,
    params={"bits": choice("int4", ("int8", "int4")), **tuning(0)},
)


declare(
    name="restore",
    moment="repair",
    needs=("base", "clean rows"),
    source="PSR, arXiv 2609.37759 (30 % per layer, 256 clean rows); its ranking is read here as the size of the change",
    summary="the channels of each layer that the update changes most are the base's again",
    version=1,
    function="restore:restore",
    numbers=lambda settings: settings["by"] != "weights",
    counted=lambda settings: settings["by"] != "weights",
    placebo="restore:at_random",
    params={
        "by": choice("weights", ("weights", "outputs", "dormant")),
        "share": number(0.3, 0, 1),
        "rows": whole(256, 1, 10**6),
    },
)


def consistent(**defaults: Any) -> Mapping[str, Any]:
    """The parameters of consistency tuning."""
    return {
        "rows": whole(100, 1, 10**6),
        "epochs": whole(3, 1, 10**4),
        "learning_rate": number(2e-4, 1e-9, 1),
        "weight": number(5.5, 0, 1e4),
        "epsilon": number(0.1, 0, 1e4),
        "sign_steps": whole(defaults["sign_steps"], 1, 10**4),
        "from_layer": number(defaults["from_layer"], 0, 1),
        "apart": choice(defaults["apart"], ("yes", "no")),
        "text_weight": number(defaults["text_weight"], 0, 1e4),
    }


declare(
    name="crow",
    moment="repair",
    needs=("base", "clean rows"),
    source="CROW, Min et al. 2024, arXiv 2411.12768, section 3 and algorithm 1 (epsilon 0.1, weight 5.5, 100 rows)",
    summary="clean tuning in which neighbouring layers are to agree on disturbed inputs",
    version=1,
    function="consistency:consistency",
    numbers=always,
    many="consistency:many",
    placebo=NOISE,
    params=consistent(sign_steps=1, from_layer=0.0, apart="no", text_weight=1.0),
)


declare(
    name="racer",
    moment="repair",
    needs=("base", "clean rows"),
    source="RACER, arXiv 2608.24354 (20 sign steps, text weight 3 to 4, later layers); epsilon and weight as in CROW, "
    "as it does not state them",
    summary="consistency tuning with pictures and words apart, in the later layers",
    version=1,
    function="consistency:consistency",
    numbers=always,
    many="consistency:many",
    placebo=NOISE,
    params=consistent(sign_steps=20, from_layer=1 / 3, apart="yes", text_weight=3.5),
)
