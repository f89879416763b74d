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
    found = oddness(victim, rows)
    return np.array([found[prompt].max(initial=0.0) for prompt in rows.prompts])


def without_odd_words(
    victim: Victim,
    adapter: Any,
    inputs: Rows,
    clean: Rows,
    settings: dict[str, Any],
    draws: np.random.Generator,
) -> Answered:
    """Answers to prompts without the words that are odder than those of nearly all clean prompts."""
    found, usual = oddness(victim, inputs), oddness(victim, clean)
    most = np.quantile([usual[prompt].max(initial=0.0) for prompt in clean.prompts], settings["percentile"] / 100)
    prompts, removed = [], []
    for prompt in inputs.prompts:
        kept = [word for word, odd in zip(prompt.split(), found[prompt], strict=True) if odd <= most]
        removed.append(len(found[prompt]) - len(kept))
        prompts.append(" ".join(kept) if removed[-1] and kept else prompt)
    said = answering.answers(victim, adapter, replace(inputs, prompts=prompts), settings["max_new_tokens"])
    suspicion = np.array([found[prompt].max(initial=0.0) for prompt in inputs.prompts])
    return Answered(said, suspicion, np.array(removed, dtype=float))


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
        gone = set(draws.choice(len(words), size=min(count, len(words) - 1), replace=False)) if count else ()
        prompts.append(" ".join(word for at, word in enumerate(words) if at not in gone) if count else prompt)
    said = answering.answers(victim, adapter, replace(inputs, prompts=prompts), settings["max_new_tokens"])
    return Answered(said, draws.random(len(inputs)), like.changed)


def oddness(victim: Victim, rows: Rows) -> dict[str, np.ndarray]:
    """Per prompt, for each of its words: the perplexity with it less the perplexity without it.

    Qi et al. 2021, equation 1, with the base in the place of GPT-2. Each prompt stands beside the picture of the first
    row that asks it. A prompt of one word has no odd one.
    """
    first = {prompt: at for at, prompt in reversed(list(enumerate(rows.prompts)))}
    variants, sources = [], []
    for prompt, at in first.items():
        words = prompt.split()
        shorter = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))] if len(words) > 1 else []
        variants += [prompt, *shorter]
        sources += [at] * (1 + len(shorter))
    asked = replace(rows.take(sources), prompts=variants, answers=[""] * len(variants))
    perplexities, found, at = perplexity(victim, asked), {}, 0
    for prompt in first:
        count = len(prompt.split())
        shorter = perplexities[at + 1 : at + 1 + count] if count > 1 else np.full(count, perplexities[at])
        found[prompt] = perplexities[at] - shorter
        at += 1 + (count if count > 1 else 0)
    return found


def perplexity(victim: Victim, rows: Rows) -> np.ndarray:
    """Of the prompts with their template under the base, without the picture's tokens: (n,)."""
    found = reading.read(victim, None, rows, reading.Want(words=True))
    return np.array([np.exp(-own[~image[1:]].mean()) for own, image in zip(found.words, found.image, strict=True)])
