import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.encoder.transformer_encoder import PositionEmbedding
from keras_deepseek.testing import LayerTestCase, assert_close


def oracle(layer, inputs):
    table = keras.ops.convert_to_numpy(layer.embeddings)[: inputs.shape[1]]
    return inputs + (table[::-1] if layer.counts_from_end else table)


@pytest.mark.parametrize("counts_from_end", [False, True])
def test_it_passes_the_layer_routine(counts_from_end):
    LayerTestCase().run_layer_test(
        PositionEmbedding,
        {"max_length": 7, "counts_from_end": counts_from_end},
        (2, 5, 3),
        oracle=oracle,
    )


def test_counted_from_the_end_a_sequence_ends_alike_whatever_is_in_front():
    layer = PositionEmbedding(6, counts_from_end=True)
    outputs = keras.ops.convert_to_numpy(layer(np.zeros((1, 6, 2), "float32")))
    shorter = keras.ops.convert_to_numpy(layer(np.zeros((1, 4, 2), "float32")))
    assert_close(outputs[:, 2:], shorter)


def test_a_sequence_that_is_too_long_is_refused_also_while_a_model_is_made():
    layer = PositionEmbedding(4, name="positions")
    for inputs in (np.zeros((1, 5, 2), "float32"), keras.Input((5, 2))):
        with pytest.raises(InvalidInputError, match=r"'positions' has 4 positions, .* of 5 tokens"):
            layer(inputs)


def test_its_table_may_be_a_symbol():
    layer = PositionEmbedding(9)
    layer.build((2, 5, 8))
    vars(layer)["embeddings"] = keras.KerasTensor((9, 8))  # As in a traced graph.
    assert layer.call(keras.KerasTensor((2, 5, 8))).shape == (2, 5, 8)
