import numpy as np
import pytest

from keras_deepseek.models.generation.compiled_steps import CompiledSteps
from keras_deepseek.models.generation.prompts import read_prompts
from keras_deepseek.models.generation.sampler import GREEDY
from keras_deepseek.models.generation.token_loop import RowNoise, TokenRequest, generate_tokens
from tests.oracles.small_language_model import generate_greedily, make_small_model


@pytest.fixture(scope="module")
def model():
    return make_small_model()


def make_request(prompts, budgets, stops=None):
    stops = stops or [frozenset()] * len(prompts)
    return TokenRequest(read_prompts(prompts, None, None), budgets, stops, GREEDY, seed=0)


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


def test_a_cache_that_is_full_goes_on_in_a_longer_one(model):
    # Room for 160 slots is what a short prompt begins with.
    request = make_request([[5, 6, 7]], [150 + 20])
    steps = list(generate_tokens(CompiledSteps(model), request))
    tokens = [step[0].token for step in steps]
    assert len(tokens) == 170
    assert tokens[-1] == generate_greedily(model, [5, 6, 7, *tokens[:-1]], 1)[-1]


def test_the_noise_of_a_row_is_its_own():
    one, three = RowNoise(5, 1), RowNoise(5, 3)
    drawn = np.stack([three.draw() for _ in range(100)])
    np.testing.assert_array_equal([one.draw()[0] for _ in range(100)], drawn[:, 0])
    assert drawn.dtype == "float32"
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert len(np.unique(drawn)) > 290
