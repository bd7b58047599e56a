import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import GroupedQueryAttention, RotaryEmbedding
from keras_deepseek.layers.attention import head_attention
from keras_deepseek.testing import LayerTestCase, assert_close
from tests.oracles.grouped_query_attention import grouped_query_attention
from tests.oracles.parity import named_weights

SIZES = {"num_heads": 4, "head_dim": 4, "num_key_value_heads": 2, "rotary": RotaryEmbedding(50.0)}


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def run(layer, *args, **kwargs):
    return keras.ops.convert_to_numpy(layer(*args, **kwargs))


def oracle(layer, inputs, mask=None):
    return grouped_query_attention(
        inputs,
        {name: keras.ops.convert_to_numpy(w) for name, w in named_weights(layer).items()},
        layer.rotary.max_wavelength ** -(np.arange(2) / 2),
        (layer.num_heads, layer.num_key_value_heads, layer.head_dim),
        epsilon=layer.epsilon,
        sliding_window=layer.sliding_window,
        mask=mask,
    )


@pytest.mark.parametrize(
    "init_kwargs",
    [
        {"use_bias": True, "use_query_key_norm": True, "epsilon": 1e-3, "sliding_window": 3},
        {"num_key_value_heads": None, "use_output_bias": True},
    ],
)
@pytest.mark.each_backend
def test_it_passes_the_layer_routine(init_kwargs):
    arguments = {**SIZES, "kernel_initializer": "he_normal", **init_kwargs}
    LayerTestCase().run_layer_test(GroupedQueryAttention, arguments, (2, 5, 6), oracle=oracle)


def test_it_passes_the_layer_routine_with_dropout_and_positions():
    LayerTestCase().run_layer_test(
        GroupedQueryAttention,
        {**SIZES, "dropout": 0.2, "seed": 3},
        {"inputs": (2, 5, 6), "positions": (2, 5)},
        {"inputs": "float32", "positions": "int32"},
    )


@pytest.mark.parametrize("length", [9, 300])  # In blocks of queries.
def test_padding_is_hidden(length):
    layer, inputs = GroupedQueryAttention(**SIZES), draw(2, length, 6)
    mask = np.ones((2, length), bool)
    mask[1, 5:8] = False
    outputs = run(layer, inputs, mask=mask)
    assert_close(outputs[mask], oracle(layer, inputs, mask)[mask], 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fused_operation_computes_the_same(dtype, monkeypatch):
    inputs = draw(2, 6, 6)
    mask = np.arange(6) >= np.array([[0], [3]])
    layer = GroupedQueryAttention(**SIZES, dtype=dtype)
    outputs = []
    for fuses in (False, True):
        compute = type(head_attention.backend.current().compute)
        monkeypatch.setattr(compute, "fuses_attention", lambda *_, fuses=fuses: fuses)
        outputs.append(run(layer, inputs, mask=mask).astype("float32"))
        plain = run(layer, inputs).astype("float32")
        assert_close(plain, oracle(layer, inputs), 2e-5 if dtype == "float32" else 0.1)
    assert_close(outputs[1][mask], outputs[0][mask], 1e-5 if dtype == "float32" else 0.05)
    assert np.isfinite(outputs[1]).all()


def test_the_last_tokens_alone_are_those_of_all():
    layer, inputs = GroupedQueryAttention(**SIZES, sliding_window=4), draw(2, 7, 6)
    whole = run(layer, inputs)
    assert_close(run(layer, inputs, num_outputs=2), whole[:, -2:])
    cache = layer.make_cache(2, 9)
    outputs, _ = layer(inputs, cache=cache, cache_index=0, num_outputs=1)
    assert_close(keras.ops.convert_to_numpy(outputs), whole[:, -1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_key_value_heads": 3}, "`num_key_value_heads` must divide `num_heads`"),
        ({"head_dim": 3}, "`head_dim` must be an even number"),
        ({"sliding_window": 0}, "`sliding_window` must be a positive integer"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        GroupedQueryAttention(**{**SIZES, **arguments})
