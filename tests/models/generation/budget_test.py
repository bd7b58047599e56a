import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.models.generation.generation import settle_budgets


@pytest.mark.parametrize(
    ("context", "max_length", "max_new_tokens", "budgets"),
    [
        (100, None, None, [97, 90]),
        (100, 20, None, [17, 10]),
        (100, None, 5, [5, 5]),
        (12, None, 5, [5, 2]),
        (None, 12, 5, [5, 2]),
        (None, None, 5, [5, 5]),
    ],
)
def test_the_least_bound_counts(context, max_length, max_new_tokens, budgets):
    assert settle_budgets([3, 10], context, max_length, max_new_tokens) == budgets


@pytest.mark.parametrize(
    ("context", "max_length", "max_new_tokens", "message"),
    [
        (10, None, None, "A prompt has 10 tokens, and the model's context is 10"),
        (None, 10, None, "`max_length` is 10, prompt included, and a prompt has 10 tokens"),
        (None, None, None, "give `max_new_tokens` or `max_length`"),
        (None, None, 0, "`max_new_tokens` must be a positive integer, received 0"),
        (None, 0, None, "`max_length` must be a positive integer, received 0"),
    ],
)
def test_no_room_is_said(context, max_length, max_new_tokens, message):
    with pytest.raises(InvalidInputError, match=message):
        settle_budgets([3, 10], context, max_length, max_new_tokens)
