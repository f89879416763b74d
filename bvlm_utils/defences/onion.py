"""Odd words of a prompt: those without which it is less surprising (ONION)."""

from dataclasses import replace
from typing import Any

import numpy as np

from bvlm_utils.defences import answering, reading
from bvlm_utils.defences.rows import Answered, Rows
from bvlm_utils.models.victim import Victim


def oddest_word(
    victim: Victim, adapter: Any, rows: Rows, settings: dict[str, Any], draws: np.random.Generator
) -> np.ndarray:
    """By how much the perplexity of each prompt falls without its oddest word: (n,)."""
    scores = oddness(victim, rows)
    return np.array([scores[prompt].max(initial=0.0) for prompt in rows.prompts])


def without_odd_words(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers to prompts without the words that are odder than those of nearly all clean prompts."""
    scores, clean_scores = oddness(victim, inputs), oddness(victim, clean)
    limit = np.quantile(
        [clean_scores[prompt].max(initial=0.0) for prompt in clean.prompts], settings["percentile"] / 100
    )
    prompts, removals = [], []
    for prompt in inputs.prompts:
        words = [word for word, score in zip(prompt.split(), scores[prompt], strict=True) if score <= limit]
        removals.append(len(scores[prompt]) - len(words))
        prompts.append(" ".join(words) if removals[-1] and words else prompt)
    answers = answering.answers(victim, adapter, replace(inputs, prompts=prompts), settings["max_new_tokens"])
    suspicion = np.array([scores[prompt].max(initial=0.0) for prompt in inputs.prompts])
    return Answered(answers, suspicion, np.array(removals, dtype=float), suspicion > limit)


def without_random_words(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
    like: Answered,
) -> Answered:
    """The placebo: as many words go from each prompt, whichever they are."""
    prompts = []
    for prompt, count in zip(inputs.prompts, like.changed.astype(int), strict=True):
        words = prompt.split()
        dropped = set(draws.choice(len(words), size=min(count, len(words) - 1), replace=False)) if count else ()
        prompts.append(" ".join(word for i, word in enumerate(words) if i not in dropped) if count else prompt)
    answers = answering.answers(victim, adapter, replace(inputs, prompts=prompts), settings["max_new_tokens"])
    return Answered(answers, draws.random(len(inputs)), like.changed)


def oddness(victim: Victim, rows: Rows) -> dict[str, np.ndarray]:
    """Per prompt, for each of its words: the perplexity with it less the perplexity without it.

    Qi et al. 2021, equation 1, with the base in the place of GPT-2. Each prompt stands beside the picture of the first
    row that asks it. A prompt of one word has no odd one.
    """
    first_rows = {prompt: row for row, prompt in reversed(list(enumerate(rows.prompts)))}
    variants, sources = [], []
    for prompt, row in first_rows.items():
        words = prompt.split()
        shorter = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))] if len(words) > 1 else []
        variants += [prompt, *shorter]
        sources += [row] * (1 + len(shorter))
    variant_rows = replace(rows.take(sources), prompts=variants, answers=[""] * len(variants))
    perplexities, scores, row = perplexity(victim, variant_rows), {}, 0
    for prompt in first_rows:
        count = len(prompt.split())
        shorter = perplexities[row + 1 : row + 1 + count] if count > 1 else np.full(count, perplexities[row])
        scores[prompt] = perplexities[row] - shorter
        row += 1 + (count if count > 1 else 0)
    return scores


def perplexity(victim: Victim, rows: Rows) -> np.ndarray:
    """Of the prompts with their template under the base, without the picture's tokens: (n,)."""
    result = reading.read(victim, None, rows, reading.Want(words=True))
    return np.array(
        [
            np.exp(-log_probabilities[~image[1:]].mean())
            for log_probabilities, image in zip(result.words, result.image, strict=True)
        ]
    )
