"""The sampling of rows, beside a choice in NumPy and float64 from the logits of whole sequences."""

import numpy as np
import pytest

from keras_deepseek.text.sampling import SamplingOptions
from tests.oracles.row_driver import GREEDY, drive
from tests.oracles.sampling import compute_row_distribution, is_token_of, softmax
from tests.oracles.small_language_model import compute_logits, make_small_model

SAMPLINGS = [
    SamplingOptions(temperature=1.3, top_k=5),
    SamplingOptions(temperature=0.8, top_p=0.7, min_p=0.02),
    SamplingOptions(temperature=1.5, top_k=12, top_p=0.8, repetition_penalty=1.4),
    SamplingOptions(
        temperature=0.9, presence_penalty=1.5, frequency_penalty=0.7, logit_bias={3: 4.0, 9: -50}
    ),
    SamplingOptions(
        temperature=0.0, repetition_penalty=1.6, frequency_penalty=2.0, logit_bias={7: 3.0}
    ),
    GREEDY,
]
PROMPTS = [[5, 6, 7, 5, 9, 1, 2, 3, 4, 30], [8, 5], [17, 3, 3, 40], [9], [12, 7, 7], [5, 6]]


@pytest.fixture(scope="module")
def model():
    return make_small_model(scale=1.0)


def logits_before(model, row, index):
    return compute_logits(model, row.text[: len(row.prompt) + index])


def check(model, row):
    for index, (token, uniform) in enumerate(zip(row.answer, row.uniforms, strict=True)):
        logits, answer = logits_before(model, row, index), row.answer[:index]
        probabilities = compute_row_distribution(logits, row.sampling, row.prompt, answer)
        if row.sampling.temperature == 0:
            assert token == np.argmax(probabilities)
        else:
            assert is_token_of(probabilities, np.float32(uniform), token)


@pytest.mark.each_backend
def test_each_row_is_sampled_by_its_own_settings(model):
    rows = drive(model, 4, 30)
    started = [
        rows.begin(index, prompt, sampling, seed=index)
        for index, (prompt, sampling) in enumerate(zip(PROMPTS[:4], SAMPLINGS[:4], strict=True))
    ]
    rows.decode(6)
    rows.resize(30, [3, 2, None, None])  # Counts and biases move with the rows.
    started += [
        rows.begin(index, prompt, sampling)
        for index, prompt, sampling in zip((2, 3), PROMPTS[4:], SAMPLINGS[4:], strict=True)
    ]
    rows.decode(8)
    for row in started:
        check(model, row)


def test_a_new_row_has_nothing_of_the_one_before_it(model):
    rows = drive(model, 2, 30)
    strong = SamplingOptions(
        temperature=2.0, presence_penalty=2.0, logit_bias=dict.fromkeys(range(20), 30.0)
    )
    rows.begin(0, PROMPTS[0], strong)
    other = rows.begin(1, PROMPTS[1], SAMPLINGS[3])  # Keeps penalties in use.
    rows.decode(3)
    row = rows.begin(0, PROMPTS[2], SamplingOptions(temperature=0.9), seed=4)
    greedy_rows = drive(model, 1, 30)
    alone = greedy_rows.begin(0, PROMPTS[2], SamplingOptions(temperature=0.9), seed=4)
    rows.decode(6)
    greedy_rows.decode(6)
    check(model, row)
    check(model, other)
    assert row.text == alone.text


@pytest.mark.each_backend
def test_log_probabilities_are_those_of_the_model(model):
    rows = drive(model, 2, 30)
    sampling = SamplingOptions(temperature=1.2, logit_bias={4: 9.0}, logprobs=5)
    row = rows.begin(1, PROMPTS[0], sampling, has_targets=True)
    rows.begin(0, PROMPTS[1])
    rows.decode(3)
    for index, (token, outputs) in enumerate(zip(row.answer, row.outputs, strict=True)):
        expected = np.log(softmax(logits_before(model, row, index)))
        check_details(outputs, expected, token)
    details = [
        {name: array[index] for name, array in vars(chunk).items()}
        for chunk in row.prompt_outputs
        for index in range(len(chunk.log_probabilities))
    ]
    assert len(details) == len(row.prompt) - 1
    for index, outputs in enumerate(details):
        expected = np.log(softmax(compute_logits(model, row.prompt[: index + 1])))
        check_details(outputs, expected, row.prompt[index + 1])


def check_details(outputs, expected, token):
    np.testing.assert_allclose(outputs["log_probabilities"], expected[token], atol=1e-4)
    best = np.sort(expected)[::-1][:20]
    np.testing.assert_allclose(outputs["top_log_probabilities"], best, atol=1e-4)
    tops = outputs["top_tokens"].tolist()
    np.testing.assert_allclose(expected[tops], best, atol=1e-4)
    assert len(set(tops)) == 20
    if token in tops:  # Exactly: a client compares the two.
        assert outputs["top_log_probabilities"][tops.index(token)] == outputs["log_probabilities"]


def test_cutoffs_are_right_where_the_likeliest_tokens_do_not_suffice():
    model = make_small_model(vocabulary_size=1500, scale=0.02)
    rows = drive(model, 2, 30)
    samplings = (
        SamplingOptions(top_p=0.95),
        SamplingOptions(temperature=0.01, top_k=3),
        SamplingOptions(top_k=1200, logprobs=1),
        SamplingOptions(top_k=1024),
    )
    for number, sampling in enumerate(samplings):
        row = rows.begin(0, [5, 6, 7], sampling, seed=number)
        other = rows.begin(1, [9, 1000], SamplingOptions(temperature=0.05, top_p=0.5), seed=number)
        rows.decode(4)
        check(model, row)
        check(model, other)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLINGS[1], SAMPLINGS[3]])
def test_logits_that_are_not_finite_are_told(sampling):
    model = make_small_model(vocabulary_size=300)
    rows = drive(model, 2, 16)
    rows.begin(0, [5, 6], sampling)
    rows.begin(1, [7], sampling)
    rows.decode()
    table = model.backbone.token_embedding.embeddings
    weights = np.array(table)
    weights[rows.rows[1].text[-1]] = np.nan
    rows.rows[0].text[-1] = (rows.rows[1].text[-1] + 1) % 300
    table.assign(weights)
    rows.decode()
    assert [row.outputs[-1]["is_finite"] for row in rows.rows] == [True, False]
    assert all(row.outputs[0]["is_finite"] for row in rows.rows)
    assert all(token < 300 for row in rows.rows for token in row.text)
