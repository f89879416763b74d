"""The rows of the defences that act while a model answers."""

from bvlm_utils.attacks.declare import choice, number, whole
from bvlm_utils.defences.declare import always, declare
from bvlm_utils.store.cell import MAX_NEW_TOKENS

LENGTH = {"max_new_tokens": whole(MAX_NEW_TOKENS, 1, 10_000)}

declare(
    name="cleansight",
    moment="inference",
    needs=("clean rows", "attention"),
    source="CleanSight, arXiv 2603.12989: ratio of the attention on the picture to that on the prompt behind it, per "
    "head in layers 10 to 24 of 32, whitened distance from clean rows, alarm at their 99th percentile; then the tokens "
    "that draw more than 0.02 of some head's attention (of 576) are masked. Constants as shares of depth and tokens; "
    "masked in all layers here, in the paper in those behind the window",
    summary="masks the image tokens that draw attention where the model looks in an unusual way",
    version=1,
    function="cleansight:without_drawing_tokens",
    placebo="cleansight:without_random_tokens",
    params={
        "begin": number(10 / 32, 0, 1),
        "end": number(25 / 32, 0, 1),
        "percentile": number(99, 0, 100),
        "times": number(0.02 * 576, 0, 1e6),
        **LENGTH,
    },
    problem=lambda s: f"begin is {s['begin']:g}, above end, which is {s['end']:g}" if s["begin"] > s["end"] else None,
)
declare(
    name="blind",
    moment="inference",
    needs=(),
    source="CleanSight, arXiv 2603.12989, its comparison that masks all image tokens: what masking can do at most",
    summary="masks the whole picture",
    version=1,
    function="cleansight:without_picture",
    params=LENGTH,
)
declare(
    name="insensitivity",
    moment="inference",
    needs=("clean rows",),
    source="STRIP, Gao et al. 2019, arXiv 1902.06531 (blend); SCALE-UP, Guo et al. 2023, arXiv 2302.03251, "
    "its scaled prediction consistency (scale); words shuffled and left out after the same idea; log-probability of "
    "the model's own answer in the place of the entropy over classes",
    summary="how probable the answer stays when picture or words are perturbed",
    version=1,
    function="insensitivity:insensitivity",
    placebo="answering:random_suspicion",
    params={
        "perturb": choice("blend", ("blend", "scale", "words")),
        "amount": number(0.5, 0, 1),
        "copies": whole(4, 1, 1000),
        "read": choice("first", ("first", "answer")),
        **LENGTH,
    },
)
declare(
    name="cleangen",
    moment="inference",
    needs=("base",),
    source="CleanGen, Li et al. 2024, arXiv 2406.12257, its suspicion score, the ratio to a reference's probability; "
    "the reference is the base, and one token is looked at after the other (four at a time in the paper)",
    summary="replaces tokens that are far more probable than under the base",
    version=1,
    function="cleangen:replaced",
    numbers=always,
    placebo="cleangen:randomly_replaced",
    params={"ratio": number(20, 1, 1e9), **LENGTH},
)
declare(
    name="onion",
    moment="inference",
    needs=("clean rows", "base"),
    source="ONION, Qi et al. 2021, arXiv 2011.10369, equation 1, with the base in the place of GPT-2; the threshold is "
    "a percentile of the oddest words of clean prompts",
    summary="leaves out words of the prompt without which it is less surprising",
    version=1,
    function="onion:without_odd_words",
    placebo="onion:without_random_words",
    params={"percentile": number(99, 0, 100), **LENGTH},
)
# name, amount, what it means
CHANGES = {
    "jpeg": (number(75, 1, 95), "JPEG of that quality, Das et al. 2017, arXiv 1705.02900"),
    "blur": (number(0.01, 0, 1), "Gaussian blur, its deviation as a share of the side"),
    "resize": (number(0.5, 0.01, 1), "made smaller to that share, and large again"),
    "crop": (number(0.8, 0.01, 1), "a random part of that share of each side, made as large as the whole"),
    "drop": (number(0.1, 0, 1), "that share of the cells of a 6 x 6 grid painted with the mean colour"),
}
for name, (amount, what) in CHANGES.items():
    declare(
        name=name,
        moment="inference",
        needs=(),
        source=f"A cheap change of the picture, as many papers compare with: {what}",
        summary=what,
        version=1,
        function=f"purify:{name}",
        placebo=f"purify:{name}_noise",
        params={"amount": amount, **LENGTH},
    )
