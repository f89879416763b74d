"""The rows of the defences that repair an adapter."""

from bvlm_utils.attacks.declare import number
from bvlm_utils.defences.declare import declare

declare(
    name="shrink",
    moment="repair",
    needs=("base",),
    source="WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, section 3 (weights between base and tuned model)",
    summary="base + lambda x update; lambda 0 is the base",
    version=1,
    function="shrink:shrink",
    placebo="shrink:noise",
    params={"strength": number(0.5, 0, 2)},
)
