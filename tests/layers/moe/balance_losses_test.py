import keras
import numpy as np
import pytest

from keras_deepseek.layers.moe.expert_router import router_z_loss, sequence_balance_loss
from keras_deepseek.testing import assert_close


def draw(shape=(2, 5, 4)):
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 1.0, shape).astype("float32")
    choices = np.eye(shape[-1], dtype="float32")[rng.integers(0, shape[-1], shape[:-1])]
    return scores, choices, np.ones(shape[:-1], "float32")


def balance(*arrays):
    return float(sequence_balance_loss(*map(keras.ops.convert_to_tensor, arrays)))


def test_it_is_the_mean_over_the_sequences():
    scores, choices, token_mask = draw()
    expected = []
    for s, c in zip(scores.astype("float64"), choices, strict=True):
        p = (s / s.sum(-1, keepdims=True)).mean(0)
        expected.append(4 * (c.mean(0) * p).sum())
    assert_close(balance(scores, choices, token_mask), np.mean(expected))


def test_it_is_one_where_all_is_even_and_the_number_of_experts_where_one_has_all():
    even = np.full((1, 4, 4), 0.25, "float32")
    token_mask = np.ones((1, 4), "float32")
    assert_close(balance(even, np.eye(4, dtype="float32")[None], token_mask), 1.0)
    one_expert = np.broadcast_to(np.eye(4, dtype="float32")[0], (1, 4, 4)).copy()
    assert_close(balance(one_expert, one_expert, token_mask), 4.0)


def test_inputs_of_rank_two_are_one_sequence():
    scores, choices, token_mask = draw()
    flat = balance(scores.reshape(10, 4), choices.reshape(10, 4), token_mask.reshape(10))
    assert_close(
        flat,
        balance(scores.reshape(1, 10, 4), choices.reshape(1, 10, 4), token_mask.reshape(1, 10)),
    )


def test_hidden_tokens_and_hidden_sequences_have_no_part():
    scores, choices, token_mask = draw()
    expected = balance(scores[:1, :3], choices[:1, :3], token_mask[:1, :3])
    token_mask[0, 3:] = token_mask[1] = 0.0
    assert_close(balance(scores, choices, token_mask), expected)


def test_the_z_loss_is_the_mean_square_over_the_tokens_that_count():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    token_mask = np.array([[1, 1, 0], [1, 0, 0]], "float32")
    squares = np.log(np.exp(logits.astype("float64")).sum(-1)) ** 2
    loss = router_z_loss(
        keras.ops.convert_to_tensor(logits), keras.ops.convert_to_tensor(token_mask)
    )
    assert_close(float(loss), squares[token_mask == 1].mean())


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 4)])
def test_without_a_token_the_losses_are_zero(shape):
    scores, choices, token_mask = draw(shape)
    nothing = keras.ops.convert_to_tensor(token_mask * 0)
    assert balance(scores, choices, token_mask * 0) == 0.0
    assert float(router_z_loss(keras.ops.convert_to_tensor(scores), nothing)) == 0.0
