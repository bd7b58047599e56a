"""The distribution that a sampler draws from, in NumPy and float64, written token by token."""

import dataclasses

import numpy as np


def compute_distribution(logits, sampler, seen_tokens=()):
    """Returns the probabilities of one row of logits, after the tokens `seen_tokens`."""
    scores = np.asarray(logits, "float64").copy()
    for token in set(seen_tokens):
        factor = sampler.repetition_penalty
        scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
    if sampler.temperature == 0:
        return np.eye(len(scores))[int(np.argmax(scores))]
    scores = scores / sampler.temperature
    if sampler.top_k is not None:
        keep_best(scores, sampler.top_k)
    if sampler.top_p is not None:
        shares = softmax(scores)
        total, number = 0.0, 0
        for share in np.sort(shares)[::-1]:
            if total >= sampler.top_p and number:
                break
            total, number = total + share, number + 1
        keep_best(scores, number)
    if sampler.min_p is not None:
        shares = softmax(scores)
        scores[shares < sampler.min_p * shares.max()] = -np.inf
    return softmax(scores)


def keep_best(scores, number):
    bound = np.sort(scores)[::-1][min(number, len(scores)) - 1]
    scores[scores < bound] = -np.inf


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def compute_chi_squared(counts, probabilities):
    """Returns the statistic of counts against probabilities, and its degrees of freedom."""
    expected = probabilities * counts.sum()
    is_possible = probabilities > 0
    assert not counts[~is_possible].any()
    statistic = ((counts - expected)[is_possible] ** 2 / expected[is_possible]).sum()
    return statistic, int(is_possible.sum()) - 1


def bound_chi_squared(degrees, deviations=4.5):
    """Returns what the statistic is above in about 3 of a million fair trials (Wilson-Hilferty)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + deviations * spread**0.5) ** 3


def compute_row_distribution(logits, sampling, prompt, answer):
    """Returns the probabilities of the token that follows a prompt and the answer so far."""
    scores = np.asarray(logits, "float64").copy()
    for token in {*prompt, *answer}:
        factor = sampling.repetition_penalty
        scores[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
    for token in set(answer):
        scores[token] -= sampling.presence_penalty
        scores[token] -= sampling.frequency_penalty * answer.count(token)
    for token, bias in (sampling.logit_bias or {}).items():
        scores[token] += bias
    return compute_distribution(scores, dataclasses.replace(sampling, repetition_penalty=1.0))


def is_token_of(probabilities, uniform, token, tolerance=1e-4):
    """Returns True if a number in [0, 1) falls on a token's share, or next to it."""
    ends = np.cumsum(probabilities)
    start = ends[token] - probabilities[token]
    is_inside = start - tolerance <= uniform <= ends[token] + tolerance
    return bool(probabilities[token] > 0 and is_inside)
