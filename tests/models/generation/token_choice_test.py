import numpy as np
import pytest
from keras import ops

from keras_deepseek.models.generation.sampler import GREEDY, Sampler
from keras_deepseek.models.generation.token_choice import (
    adjust,
    choose,
    draw,
    draw_by_weight,
    log_probabilities,
)
from tests.oracles.sampling import (
    bound_chi_squared,
    compute_chi_squared,
    compute_distribution,
    softmax,
)

SAMPLERS = {
    "all": Sampler(),
    "cold": Sampler(0.4),
    "top_k": Sampler(1.3, top_k=5),
    "top_k of more than there are": Sampler(top_k=1000),
    "top_p": Sampler(2.0, top_p=0.7),
    "top_p of the likeliest alone": Sampler(top_p=0.001),
    "min_p": Sampler(1.5, min_p=0.1),
    "penalty": Sampler(repetition_penalty=1.7),
    "all steps": Sampler(1.2, top_k=12, top_p=0.8, min_p=0.05, repetition_penalty=1.4),
    "greedy": GREEDY,
    "greedy with a penalty": Sampler(0.0, repetition_penalty=2.5),
}
SEEN = [[1, 2, 7], [0], [30, 31, 32, 33]]


def draw_logits(vocabulary_size=40, scale=2.0):
    return np.random.default_rng(3).normal(size=(3, vocabulary_size)).astype("float32") * scale


def numbers_of(sampler):
    return {name: ops.convert_to_tensor(number) for name, number in sampler.numbers.items()}


def mark(seen_tokens, vocabulary_size=40):
    marks = np.zeros((len(seen_tokens), vocabulary_size), "bool")
    for row, tokens in enumerate(seen_tokens):
        marks[row, tokens] = True
    return marks


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_distribution_is_that_of_the_oracle(name):
    sampler, logits = SAMPLERS[name], draw_logits()
    scores = adjust(
        ops.convert_to_tensor(logits),
        ops.convert_to_tensor(mark(SEEN)),
        sampler.rules,
        numbers_of(sampler),
    )
    scores = ops.convert_to_numpy(scores).astype("float64")
    for row, seen_tokens in enumerate(SEEN):
        expected = compute_distribution(logits[row], sampler, seen_tokens)
        if sampler.rules.is_greedy:
            assert np.argmax(scores[row]) == np.argmax(expected)
        else:
            np.testing.assert_allclose(softmax(scores[row]), expected, rtol=1e-5, atol=1e-9)


def test_what_is_equal_at_a_bound_is_kept():
    logits = np.asarray([[1.0, 2.0, 2.0, 2.0, 0.0]], "float32")
    for sampler in (Sampler(top_k=2), Sampler(top_p=0.4)):
        scores = ops.convert_to_numpy(
            adjust(ops.convert_to_tensor(logits), None, sampler.rules, numbers_of(sampler))
        )
        assert np.isfinite(scores).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize("name", ["all", "top_k", "top_p", "min_p", "all steps"])
def test_tokens_are_drawn_as_often_as_the_oracle_says(name):
    sampler, number = SAMPLERS[name], 20_000
    logits = np.tile(draw_logits()[:1], (number, 1))
    uniforms = np.random.default_rng(5).random(number, dtype="float32")
    seen_tokens = np.tile(mark(SEEN[:1]), (number, 1))
    outputs = choose(
        ops.convert_to_tensor(logits),
        ops.convert_to_tensor(seen_tokens),
        ops.convert_to_tensor(uniforms),
        sampler.rules,
        numbers_of(sampler),
    )
    counts = np.bincount(ops.convert_to_numpy(outputs["tokens"]), minlength=40)
    expected = compute_distribution(logits[0], sampler, SEEN[0])
    statistic, degrees = compute_chi_squared(counts, expected)
    assert statistic < bound_chi_squared(degrees)


def test_the_statistic_sees_a_distribution_that_is_off_by_little():
    probabilities = softmax(draw_logits()[0].astype("float64"))
    other = softmax(draw_logits()[0].astype("float64") / 1.05)
    counts = np.random.default_rng(0).multinomial(20_000, other)
    statistic, degrees = compute_chi_squared(counts, probabilities)
    assert statistic > bound_chi_squared(degrees)


@pytest.mark.parametrize("vocabulary_size", [3, 256, 700, 5000])
def test_a_number_falls_on_the_token_whose_share_it_lies_in(vocabulary_size):
    logits = draw_logits(vocabulary_size)[:1]
    ends = np.cumsum(softmax(logits[0].astype("float64")))
    tokens = np.random.default_rng(1).choice(vocabulary_size, 50)
    middles = ends[tokens] - softmax(logits[0].astype("float64"))[tokens] / 2
    drawn = draw(
        ops.convert_to_tensor(np.tile(logits, (50, 1))),
        ops.convert_to_tensor(middles.astype("float32")),
    )
    # A share may be narrower than what float32 tells apart.
    wide = softmax(logits[0].astype("float64"))[tokens] > 1e-5
    assert wide.sum() > 3 or vocabulary_size == 3
    np.testing.assert_array_equal(ops.convert_to_numpy(drawn)[wide], tokens[wide])


def test_what_has_no_weight_is_never_drawn():
    weights = np.zeros((4, 600), "float32")
    weights[:, 5], weights[:, 299] = 1.0, 3.0
    numbers = np.asarray([0.0, 0.2499, 0.2501, np.nextafter(1, 0, dtype="float32")], "float32")
    tokens = draw_by_weight(ops.convert_to_tensor(weights), ops.convert_to_tensor(numbers))
    assert ops.convert_to_numpy(tokens).tolist() == [5, 5, 299, 299]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_told(value):
    logits = draw_logits()
    logits[1, 4] = value
    outputs = choose(
        ops.convert_to_tensor(logits), None, ops.zeros(3), GREEDY.rules, numbers_of(GREEDY)
    )
    assert ops.convert_to_numpy(outputs["is_finite"]).tolist() == [True, False, True]


def test_log_probabilities_are_those_of_the_logits():
    logits = draw_logits()
    logs = log_probabilities(ops.convert_to_tensor(logits), ops.convert_to_tensor([3, 9, 0]))
    expected = [
        np.log(softmax(row.astype("float64"))[t]) for row, t in zip(logits, (3, 9, 0), strict=True)
    ]
    np.testing.assert_allclose(ops.convert_to_numpy(logs), expected, rtol=1e-5)
