import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    CachedAttention,
    DeepSeekMoE,
    HashRouter,
    MultiHeadLatentAttention,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.models import DecoderBlock
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.cached_decoding import decode, draw_mask

DIM = 6


def make_attention():
    return MultiHeadLatentAttention(
        2,
        nope_head_dim=3,
        rope_head_dim=2,
        value_head_dim=3,
        key_value_lora_rank=4,
        rotary=RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    )


def draw(*shape):
    return np.random.default_rng(0).normal(size=(*shape, DIM)).astype("float32")


@pytest.mark.torch_alone
def test_it_passes_the_layer_routine():
    serialize = keras.saving.serialize_keras_object
    init_kwargs = {"attention": serialize(make_attention()), "feed_forward": serialize(SwiGLU(5))}
    LayerTestCase().run_layer_test(DecoderBlock, init_kwargs, (2, 4, DIM), "float32")


@pytest.mark.torch_alone
def test_it_adds_each_layer_of_the_normed_stream_to_the_stream():
    block, inputs = DecoderBlock(make_attention(), SwiGLU(5), epsilon=0.5), draw(2, 4)
    outputs = keras.ops.convert_to_numpy(block(inputs))

    def norm(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.5)

    middle = inputs + keras.ops.convert_to_numpy(block.attention(norm(inputs)))
    expected = middle + keras.ops.convert_to_numpy(block.feed_forward(norm(middle)))
    assert_close(outputs, expected)


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    "make", [make_attention, lambda: CachedAttention(keras.layers.GroupQueryAttention(4, 2, 1))]
)
def test_decoding_is_the_full_forward_pass(make):
    block, inputs, mask = DecoderBlock(make(), SwiGLU(5)), draw(3, 6), draw_mask(3, 6, "left")
    whole = keras.ops.convert_to_numpy(block(inputs, mask=mask))
    pieces = decode(block, inputs, (0, 3, 4, 6), 8, mask=mask)
    assert_close(pieces[mask], whole[mask], 1e-5)


def test_token_ids_reach_a_router_that_goes_by_them():
    router = HashRouter(4, 1, vocabulary_size=9)
    block = DecoderBlock(make_attention(), DeepSeekMoE(router, 5))
    inputs = draw(1, 3)
    block(inputs, token_ids=np.array([[1, 2, 3]]))
    router.token_to_experts.assign(np.arange(9)[:, None] % 4)
    outputs, changed_outputs = (
        keras.ops.convert_to_numpy(block(inputs, token_ids=np.array([ids])))
        for ids in ([1, 2, 3], [1, 2, 4])
    )
    assert_close(outputs[:, :2], changed_outputs[:, :2])
    assert not np.allclose(outputs[:, 2], changed_outputs[:, 2])


@pytest.mark.torch_alone
def test_what_the_attention_does_not_take_is_refused():
    block = DecoderBlock(CachedAttention(keras.layers.GroupQueryAttention(4, 2, 1)), SwiGLU(5))
    with pytest.raises(InvalidInputError, match="takes no `attention_mask`"):
        block(draw(1, 3), attention_mask=np.ones((1, 3, 3), bool))
    with pytest.raises(InvalidInputError, match="`feed_forward` must be a Keras layer"):
        DecoderBlock(make_attention(), 5)


@pytest.mark.torch_alone
@pytest.mark.parametrize(
    "make", [make_attention, lambda: CachedAttention(keras.layers.GroupQueryAttention(4, 2, 1))]
)
def test_outputs_of_the_last_tokens_alone_are_those_of_all(make):
    """Of attention that can leave the others out, and of attention that can't."""
    router = HashRouter(4, 1, vocabulary_size=9)
    block, inputs, mask = (
        DecoderBlock(make(), DeepSeekMoE(router, 5)),
        draw(2, 5),
        draw_mask(2, 5, "left"),
    )
    arguments = {"mask": mask, "token_ids": np.arange(10).reshape(2, 5) % 9}
    whole = keras.ops.convert_to_numpy(block(inputs, **arguments))[:, -2:]
    last = keras.ops.convert_to_numpy(block(inputs, num_outputs=2, **arguments))
    assert last.shape == whole.shape
    assert_close(last[mask[:, -2:]], whole[mask[:, -2:]])
    assert block(keras.Input((5, DIM)), num_outputs=2).shape == (None, 2, DIM)
