import numpy as np
import pytest

from keras_deepseek.errors import NotSupportedError
from keras_deepseek.models.generation import token_loop
from keras_deepseek.models.generation.sampler import Sampler
from keras_deepseek.models.generation.speculative_steps import check_drafts
from tests.oracles.sampling import bound_chi_squared, compute_chi_squared, compute_distribution
from tests.oracles.small_language_model import compute_logits, make_small_model

PROMPTS = [[5, 1, 0, 4], [2], [3, 3]]


def make_drafting_model(depth=1, seed=1):
    # Of few tokens, some drafts are what the model chooses.
    return make_small_model(seed, vocabulary_size=6, num_prediction_layers=depth)


@pytest.fixture(scope="module")
def model():
    return make_drafting_model()


def count_rounds(model, *args, **kwargs):
    """Returns how often the model was run beside the prompt, and what it made."""
    generator = model._get_generator()
    counts = []
    steps = generator._steps
    get = steps.get

    def count(key, *arguments):
        function = get(key, *arguments)

        def run(*inputs):
            counts.append(key[0])
            return function(*inputs)

        return run

    steps.get = count
    try:
        return model.generate(*args, **kwargs), counts.count("continue")
    finally:
        del steps.get


def test_greedy_tokens_are_those_without_drafts(model):
    rounds = 0
    for prompt in PROMPTS:
        plain = model.generate(prompt, max_new_tokens=16)
        drafted, number = count_rounds(model, prompt, max_new_tokens=16, use_drafts=True)
        assert drafted == plain
        rounds += number
    assert rounds < 3 * 15  # Some drafts were kept.


def test_two_modules_draft_two_tokens():
    model, rounds = make_drafting_model(2), 0
    for prompt in PROMPTS:
        plain = model.generate(prompt, max_new_tokens=16)
        drafted, number = count_rounds(model, prompt, max_new_tokens=16, use_drafts=True)
        assert drafted == plain
        rounds += number
    assert rounds < 3 * 15


def test_a_batch_is_as_without_drafts(model):
    plain = model.generate(PROMPTS, max_new_tokens=16)
    assert model.generate(PROMPTS, max_new_tokens=16, use_drafts=True) == plain
    assert [len(row) for row in plain] == [20, 17, 18]


def test_a_row_needs_no_more_rounds_beside_others(model):
    alone = [
        count_rounds(model, prompt, max_new_tokens=40, use_drafts=True)[1] for prompt in PROMPTS
    ]
    tokens, rounds = count_rounds(model, PROMPTS, max_new_tokens=40, use_drafts=True)
    assert tokens == model.generate(PROMPTS, max_new_tokens=40)
    assert rounds == max(alone)


def test_rows_end_by_themselves_and_stream_together(model):
    plain = [model.generate(p, max_new_tokens=16, strip_prompt=True) for p in PROMPTS]
    stops = [row[number] for row, number in zip(plain, (2, 9, 5), strict=True)]
    arguments = {"max_new_tokens": 16, "stop_token_ids": [[stop] for stop in stops]}
    expected = [row[: row.index(stop) + 1] for row, stop in zip(plain, stops, strict=True)]
    steps = list(model.stream(PROMPTS, use_drafts=True, **arguments))
    columns = [list(column) for column in zip(*steps, strict=True)]
    longest = max(map(len, expected))
    assert columns == [row + [None] * (longest - len(row)) for row in expected]


def test_rows_that_have_ended_leave_the_batch(model):
    prompts = [*PROMPTS, [1, 4]]
    plain = [model.generate(p, max_new_tokens=90, strip_prompt=True) for p in prompts]
    stops = [[row[2]] for row in plain[:3]]
    expected = [row[: row.index(*stop) + 1] for row, stop in zip(plain, stops, strict=False)]
    arguments = {"max_new_tokens": 90, "strip_prompt": True, "use_drafts": True}
    tokens = model.generate(prompts, stop_token_ids=[*stops, []], **arguments)
    assert tokens == [*expected, plain[3]]


def test_a_penalty_is_as_without_drafts(model):
    sampler = Sampler(0.0, repetition_penalty=1.8)
    plain = model.generate(PROMPTS, max_new_tokens=16, sampler=sampler)
    assert model.generate(PROMPTS, max_new_tokens=16, sampler=sampler, use_drafts=True) == plain


def test_stop_tokens_and_streams_end_rows_as_without_drafts(model):
    plain = model.generate(PROMPTS[0], max_new_tokens=16, strip_prompt=True)
    arguments = {"max_new_tokens": 16, "stop_token_ids": plain[7], "use_drafts": True}
    ended = plain[: plain.index(plain[7]) + 1]
    assert list(model.stream(PROMPTS[0], **arguments)) == ended
    assert model.generate(PROMPTS[0], strip_prompt=True, **arguments) == ended


def test_log_probabilities_are_as_without_drafts(model):
    plain = model.generate(PROMPTS[0], max_new_tokens=9, return_log_probabilities=True)
    drafted = model.generate(
        PROMPTS[0], max_new_tokens=9, return_log_probabilities=True, use_drafts=True
    )
    assert drafted[0] == plain[0]
    np.testing.assert_allclose(drafted[1], plain[1], rtol=1e-3, atol=1e-4)


def test_a_cache_grows_amid_drafts(model, monkeypatch):
    monkeypatch.setattr(token_loop, "first_capacity", lambda length, needed: length + 4)
    plain = model.generate(PROMPTS[1], max_new_tokens=12)
    assert model.generate(PROMPTS[1], max_new_tokens=12, use_drafts=True) == plain
    plain = model.generate(PROMPTS, max_new_tokens=12)
    assert model.generate(PROMPTS, max_new_tokens=12, use_drafts=True) == plain


def test_drawn_tokens_have_the_models_own_distribution(model):
    number, sampler = 4000, Sampler(0.2, top_k=5)
    rows = np.asarray(
        model.generate(
            [PROMPTS[2]] * number, max_new_tokens=2, sampler=sampler, seed=0, use_drafts=True
        )
    )[:, 2:]
    for position in range(2):
        prefixes, counts = np.unique(rows[:, :position], axis=0, return_counts=True)
        likeliest = prefixes[counts.argmax()] if position else []
        chosen = rows[(rows[:, :position] == likeliest).all(axis=1), position]
        logits = compute_logits(model, [*PROMPTS[2], *map(int, likeliest)])
        expected = compute_distribution(logits, sampler)
        statistic, degrees = compute_chi_squared(np.bincount(chosen, minlength=6), expected)
        assert statistic < bound_chi_squared(degrees)


def test_a_model_that_cant_draft_says_so(model):
    check_drafts(model)
    with pytest.raises(NotSupportedError, match="needs modules that predict further tokens"):
        make_small_model().generate([1], max_new_tokens=2, use_drafts=True)

    class States:
        multi_token_prediction = model.multi_token_prediction

        def make_cache(self, batch_size, max_length):
            return [{"mask": np.zeros((batch_size, max_length)), "sum": np.zeros((0, 3))}]

    with pytest.raises(NotSupportedError, match="caches from which rejected drafts"):
        check_drafts(States())
