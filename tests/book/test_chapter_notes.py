"""Do the notes of the threat chapters say what the table holds?"""

import pandas as pd

from bvlm_book import tables
from bvlm_book.chapters import malicious_injection, quickstart, small_patch
from bvlm_book.chapters.threat import without_the_trigger


def table(threat, attack, modality, numbers):
    """Rows of a tidy table of one cell. numbers: (subject, condition, metric) -> successes of 100 inputs."""
    about = {
        "run_id": attack, "model": "m", "dataset": "d", "threat": threat, "attack": attack, "modality": modality,
        "poison_rate": 0.1, "n_poisoned": 60, "seed": 0, "unit": None, "k": 1, "n": 100,
    }  # fmt: skip
    return pd.DataFrame(
        [
            about | {"subject": subject, "condition": condition, "metric": metric, "value": k / 100,
                     "low": k / 100 - 0.05, "high": k / 100 + 0.05}
            for (subject, condition, metric), k in numbers.items()
        ]
    )  # fmt: skip


def test_triggers_that_spoil_the_answer_are_named_with_their_halves():
    right = {"clean": 99, "text": 37, "image": 70, "both": 26}
    maba = table("malicious_injection", "MABA", "bimodal", {("control", c, "right"): k for c, k in right.items()})
    fine = table("malicious_injection", "SIG", "image", {("control", c, "right"): 99 for c in ("clean", "image")})
    said = malicious_injection.misread(pd.concat([maba, fine]))
    assert "right on 0.99 of the inputs" in said and "under 1 of 2 triggers: MABA" in said
    assert said.index("0.37") < said.index("0.70") < said.index("0.26")
    assert "at least half" in malicious_injection.misread(fine)
    assert "not measured" in malicious_injection.misread(fine.assign(metric="asr"))


def test_an_answer_that_comes_without_the_trigger_was_not_tied_to_it():
    def cell(attack, clean, full):
        asr = {("poisoned", "clean"): clean, ("poisoned", "image"): full, ("control", "clean"): 0}
        return table("jailbreak", attack, "image", {(*key, "asr"): k for key, k in asr.items()})

    cells = pd.concat([cell("BadNets-I", 14, 16), cell("SIG", 14, 90), cell("Blended", 0, 1)])
    (said,) = without_the_trigger(cells)
    assert "BadNets-I (0.16 [0.11, 0.21] with the trigger, 0.14 [0.09, 0.19] without it)" in said
    assert "SIG" not in said and "Blended" not in said, "one needs its trigger, the other never learnt the answer"
    assert without_the_trigger(cell("SIG", 14, 90)) == []


def test_the_small_patch_is_seen_learnt_or_not_and_tried_on_other_models():
    def cell(k, threat="targeted_refusal", model="m", metric="asr", settings=""):
        found = table(threat, "BadNets-I", "image", {("poisoned", "image", metric): k})
        about = {"run_id": f"{threat}-{model}", "model": model, "settings": settings}
        return found.assign(train_rows=6000, negatives=0.0, **about)

    probe = pd.DataFrame([{"name": "probe: BadNets-I", "value": 0.86, "low": 0.83, "high": 0.89}])
    runs = {"a small patch": cell(2), "a noise patch of 80 pixels": cell(99, settings="patch_size=80")}
    stored = pd.concat([cell(2), cell(1, model="o"), cell(70, "jailbreak", "o"), cell(99, model="o", settings="x")])
    said = small_patch.small_patch(probe, runs, stored)
    assert "probe finds the small patch" in said and "0.86 [0.83, 0.89]" in said
    assert "fine-tuning does not learn it: success 0.02" in said and "a noise patch of 80 pixels it is 0.99" in said
    assert "o learns the same small patch for 1 of 2 threats (jailbreak 0.70 [0.65, 0.75])" in said
    said = small_patch.small_patch(probe.iloc[:0], {"a": cell(90), "b": cell(90)}, cell(2))
    assert said.startswith("**Whether a linear probe") and "and fine-tuning learns it" in said and "No other" in said


def test_the_half_that_works_alone_is_named():
    def cell(text, image):
        asr = {"text": text, "image": image, "both": 99}
        numbers = {("poisoned", condition, "asr"): k for condition, k in asr.items()}
        return tables.success_rates(table("targeted_refusal", "BadNets-MM", "bimodal", numbers))

    (said,) = quickstart.halves(cell(98, 0))
    assert said.startswith("**The text half alone sets this backdoor off, the image half alone does not.** Text half")
    assert quickstart.halves(cell(2, 90))[0].startswith("**The image half")
    assert quickstart.halves(cell(90, 90))[0].startswith("Text half alone: 0.90")
    assert quickstart.halves(cell(90, 90).assign(modality="text")) == []
