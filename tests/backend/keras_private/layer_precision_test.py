"""Canaries: what these say is broken when a Keras release moves a private name."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_private.layer_precision import autocast_to, temporary_policy
from keras_deepseek.backend.keras_private.layers import flatten_layers

HALF = keras.DTypePolicy("mixed_bfloat16")
TOKENS = np.array([[1, 2, 2, 0]])


def name_dtype(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def test_layers_compute_by_another_policy_until_the_block_ends():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    with temporary_policy([layer], HALF):
        assert layer.compute_dtype == "bfloat16"
        assert name_dtype(layer(np.ones((1, 3), "float32"))) == "bfloat16"
        with temporary_policy([layer], keras.DTypePolicy("float32")):
            assert layer.compute_dtype == "float32"
        assert layer.compute_dtype == "bfloat16"
    assert layer.dtype_policy.name == "float32"
    assert name_dtype(layer(np.ones((1, 3), "float32"))) == "float32"


def test_an_error_puts_the_policies_back():
    layer = keras.layers.Embedding(3, 2)
    layer.build((None,))
    with pytest.raises(ArithmeticError), temporary_policy([layer], HALF):
        raise ArithmeticError
    assert layer.dtype_policy.name == "float32"
    assert "call" not in vars(layer)


def test_a_map_of_policies_is_what_it_was():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype=policies)])
    (layer,) = model.layers
    with temporary_policy([layer], HALF):
        assert layer.compute_dtype == "bfloat16"
    assert layer.dtype_policy is policies
    assert layer.compute_dtype == "float32"
    assert not list(policies)


def test_a_layer_that_a_map_quantizes_goes_on_with_its_quantized_weights():
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policies[".*inner"] = keras.dtype_policies.get("int8_from_float32")
    inner = keras.layers.Dense(2, dtype=policies, name="inner")
    keras.Sequential([keras.Input((3,)), inner])
    plain = keras.layers.Dense(2)
    plain.build((None, 3))
    plain.quantize("int8")
    inner.set_weights(plain.get_weights())
    expected = ops.convert_to_numpy(inner(np.ones((1, 3), "float32")))
    with temporary_policy([inner], HALF):
        output = inner(np.ones((1, 3), "float32"))
        assert inner.quantization_mode == "int8"
    assert name_dtype(output) == "bfloat16"
    output = ops.convert_to_numpy(ops.cast(output, "float32"))
    np.testing.assert_allclose(output, expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert inner.dtype_policy is policies


class Seen(keras.layers.Embedding):
    """Notes the dtype of its table as it is read, and then looks rows up as any embedding."""

    @property
    def embeddings(self):
        table = super().embeddings
        self.seen = name_dtype(ops.convert_to_tensor(table))
        return table


def test_an_embedding_casts_the_rows_that_it_looks_up():
    layer = Seen(3, 2)
    layer.build((None, None))
    in_half = Seen(3, 2, dtype="mixed_bfloat16")
    in_half.build((None, None))
    in_half.set_weights(layer.get_weights())
    with temporary_policy([layer], HALF):
        rows = layer(TOKENS)
    assert (layer.seen, name_dtype(rows)) == ("float32", "bfloat16")
    expected = in_half(TOKENS)
    assert in_half.seen == "bfloat16"
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(rows, "float32")),
        ops.convert_to_numpy(ops.cast(expected, "float32")),
    )


def test_an_embedding_with_a_call_of_its_own_keeps_it():
    layer = keras.layers.ReversibleEmbedding(3, 4, reverse_dtype="bfloat16")
    model = keras.Sequential([keras.Input((4,)), layer])
    with temporary_policy(flatten_layers(model), HALF):
        assert "call" not in vars(layer)
        assert name_dtype(layer(np.ones((1, 4), "float32"), reverse=True)) == "bfloat16"


def test_an_embedding_that_is_placed_on_a_device_is_one_still():
    layer = keras.layers.Embedding(3, 2)
    layer.build((None,))
    own_call = layer.call

    @functools.wraps(own_call)
    def placed(inputs):
        table_dtypes.append(name_dtype(keras.ops.convert_to_tensor(layer.embeddings)))
        return own_call(inputs)

    table_dtypes, layer.call = [], placed
    with temporary_policy([layer], HALF):
        assert name_dtype(layer(TOKENS)) == "bfloat16"
    assert table_dtypes == ["float32"]
    assert vars(layer)["call"] is placed


def test_variables_in_half_precision_are_read_in_float32():
    layer = keras.layers.Dense(2, dtype="bfloat16")
    layer.build((None, 3))
    with temporary_policy([layer], keras.DTypePolicy("float32")), autocast_to("float32"):
        outputs = layer(np.ones((1, 3), "float32"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
