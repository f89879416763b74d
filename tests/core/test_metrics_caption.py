"""CIDEr against a score computed by hand and against COCO's own code."""

import math
import subprocess
import sys

import numpy as np
import pytest

from bvlm_utils.errors import InputError
from bvlm_utils.score.utility import cider, words


def test_a_score_computed_by_hand():
    # No n-gram is shared between the two rows, so every weight is log 2 and cancels. Row 0 has 2 of 4 words
    # (cosine 2 / (sqrt 2 * sqrt 4)) and 1 of 3 bigrams (1 / (1 * sqrt 3)), nothing longer; COCO's code counts
    # lengths in bigrams, 1 and 3, for the penalty exp(-2**2 / (2 * 6**2)). Row 1 is its reference.
    scores = cider(["a b", "w x y z"], [["a b c d"], ["w x y z"]])
    by_hand = 10 * (1 / math.sqrt(2) + 1 / math.sqrt(3)) / 4 * math.exp(-4 / 72)
    assert scores == pytest.approx([by_hand, 10.0], abs=1e-12)


def test_the_same_as_the_evaluation_code_of_coco():
    # Values of pycocoevalcap 1.2 (CiderScorer, n=4, sigma=6) on the same words.
    responses = [
        "A car and a dog on a green field.",
        "Two cats sit near the old red house.",
        "A man rides a horse, on the beach!",
    ]
    references = [
        ["a car and a dog on green grass", "a dog next to a car", "there is a car with a dog in a field"],
        ["two cats sitting near a house", "a pair of cats by the old red house"],
        [
            "a person riding a horse along the beach",
            "a man rides a horse on the beach",
            "a man on a horse by the sea",
        ],
    ]
    scores = cider(responses, references)
    assert scores == pytest.approx([3.330284899860962, 2.8825821260403734, 4.701976088593031], abs=1e-9)
    assert scores.mean() == pytest.approx(3.638281038164789, abs=1e-9)
    swapped = cider(responses[::-1], references[::-1])
    assert np.array_equal(swapped, scores[::-1])


def test_an_empty_response_scores_zero():
    assert cider(["", "w x"], [["a b"], ["w x"]])[0] == 0


def test_words_are_small_and_without_punctuation():
    assert words("A man\u2019s left-hand glove, DON'T touch -- it!") == [
        "a", "man's", "left-hand", "glove", "don't", "touch", "it",
    ]  # fmt: skip
    assert words(" . ") == []


def test_errors_say_what_is_wrong():
    with pytest.raises(InputError, match="2 responses and 1 sets"):
        cider(["a", "b"], [["a"]])
    with pytest.raises(InputError, match="needs two captions or more.*got 1"):
        cider(["a"], [["a"]])
    with pytest.raises(InputError, match="Row 1 has no list of reference captions"):
        cider(["a", "b"], [["a"], []])
    with pytest.raises(InputError, match="Row 0 has no list"):
        cider(["a", "b"], ["a", ["b"]])


def test_importing_the_module_does_not_import_torch():
    code = "import sys, bvlm_utils.score.utility; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
