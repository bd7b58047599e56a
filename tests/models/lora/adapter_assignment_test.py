import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models.lora.lora_weights import LayerAdapter, assign_adapters


def make_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="score")], name="net")


def test_ranks_and_scales_are_those_of_each_layer():
    model = make_model()
    adapter = LayerAdapter(np.ones((3, 4)), np.ones((4, 2)), 2.0)
    assert adapter.rank == 4
    old_kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    assign_adapters(model, {"net/score": adapter}, "file")
    added = keras.ops.convert_to_numpy(model.layers[0].kernel) - old_kernel
    np.testing.assert_allclose(added, np.full((3, 2), 4 * 2.0 / 4), rtol=1e-5)


def test_the_error_names_what_does_not_fit():
    adapter = LayerAdapter(np.ones((3, 4)), np.ones((4, 5)), 2.0)
    model = make_model()
    with pytest.raises(InvalidInputError, match=r"other not in the model; net/score .* do not fit"):
        assign_adapters(model, {"net/score": adapter, "other": adapter}, "file")
    assert len(model.trainable_variables) == 2
