import numpy as np
import pytest

from keras_deepseek.models.generation import token_loop
from keras_deepseek.models.generation.compiled_steps import CompiledSteps
from keras_deepseek.models.generation.prompts import read_prompts
from keras_deepseek.models.generation.sampler import GREEDY
from keras_deepseek.models.generation.token_loop import RowNoise, TokenRequest, generate_tokens
from tests.oracles.small_language_model import generate_greedily, make_small_model


@pytest.fixture(scope="module")
def model():
    return make_small_model()


def make_request(prompts, budgets, stops=None, context=None):
    stops = stops or [frozenset()] * len(prompts)
    return TokenRequest(
        read_prompts(prompts, None, None), budgets, stops, GREEDY, seed=0, context=context
    )


def test_rows_end_by_themselves(model):
    expected = generate_greedily(model, [5, 6], 3)[2:]
    request = make_request([[5, 6], [9], [5, 6]], [1, 3, 3], [set(), set(), {expected[0]}])
    steps = list(generate_tokens(CompiledSteps(model), request))
    tokens = [[None if token is None else token.token for token in step] for step in steps]
    other = generate_greedily(model, [9], 3)[1:]
    assert [row[1] for row in tokens] == other
    assert [row[0] for row in tokens] == [expected[0], None, None]
    assert [row[2] for row in tokens] == [expected[0], None, None]
    assert [step[1].is_last for step in steps] == [False, False, True]


@pytest.mark.torch_alone
def test_rows_that_have_ended_leave_the_batch(model):
    sizes = []

    class Noting(CompiledSteps):
        def decode(self, kind):
            function = super().decode(kind)

            def note(state, tokens, *args):
                sizes.append(len(tokens))
                return function(state, tokens, *args)

            return note

    prompts = [[5, 6], [9], [7, 8, 5], [5], [3, 1], [2], [1, 1], [8]]
    budgets = [2, 28, 4, 1, 3, 9, 1, 2]
    columns = list(
        zip(*generate_tokens(Noting(model), make_request(prompts, budgets)), strict=True)
    )
    for prompt, budget, column in zip(prompts, budgets, columns, strict=True):
        tokens = [token.token for token in column if token is not None]
        assert [*prompt, *tokens] == generate_greedily(model, prompt, budget)
    assert len(sizes) == max(budgets) - 1
    assert set(sizes) == {8, 1}
    assert sizes == sorted(sizes, reverse=True)


def test_nothing_is_computed_before_it_is_asked_for(model):
    class Counting(CompiledSteps):
        calls = 0

        def decode(self, kind):
            function = super().decode(kind)

            def count(*args):
                self.calls += 1
                return function(*args)

            return count

    steps = Counting(model)
    tokens = generate_tokens(steps, make_request([[5, 6]], [4]))
    for calls in range(4):
        next(tokens)
        assert steps.calls == calls
    assert next(tokens, None) is None
    assert steps.calls == 3


def test_a_cache_that_is_full_goes_on_in_a_longer_one(model, monkeypatch):
    monkeypatch.setattr(token_loop, "first_capacity", lambda length, needed: length + 3)
    steps = CompiledSteps(model)
    grown = []
    monkeypatch.setattr(token_loop, "next_capacity", lambda *at: grown.append(at) or at[0] + 4)
    tokens = [step[0].token for step in generate_tokens(steps, make_request([[5, 6, 7]], [10]))]
    assert tokens == generate_greedily(model, [5, 6, 7], 10)[3:]
    assert len(grown) == 2


@pytest.mark.parametrize("can_grow", [True, False])
def test_other_numbers_of_tokens_need_no_other_caches(model, monkeypatch, can_grow):
    class FoundError(Exception):
        pass

    class Noting(CompiledSteps):
        def prefill(self, kind, capacity):
            raise FoundError(capacity)

    def find_capacity(length, budget):
        request = make_request([[5] * length], [budget], context=600)
        with pytest.raises(FoundError) as error:
            next(generate_tokens(Noting(model), request))
        return error.value.args[0]

    monkeypatch.setattr(token_loop, "holds_only_slots", lambda make_cache: can_grow)
    assert len({find_capacity(6, budget) for budget in (20, 21, 22, 26)}) == 1
    assert len({find_capacity(length, 64 - length) for length in (6, 7, 8)}) == 1
    assert find_capacity(16, 584) == (160 if can_grow else 600)


def test_the_noise_of_a_row_is_its_own():
    single_row, three_rows = RowNoise(5, 1), RowNoise(5, 3)
    drawn = np.stack([three_rows.draw() for _ in range(100)])
    np.testing.assert_array_equal([single_row.draw()[0] for _ in range(100)], drawn[:, 0])
    assert drawn.dtype == "float32"
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert len(np.unique(drawn)) > 290
