import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, SwiGLU
from keras_deepseek.layers.inner_layers import (
    build_layer,
    call_layer,
    check_call_arguments,
    check_kept_shape,
    clone_layers,
    revive_layer,
    serialize_layer,
)


def test_a_layer_comes_back_from_its_config():
    layer = SwiGLU(5, clamp=2.0)
    layer.build((None, 3))
    config = serialize_layer(layer)
    assert "build_config" not in config
    revived = revive_layer("block", config)
    assert revived.get_config() == layer.get_config()
    assert revive_layer("block", revived) is revived


@pytest.mark.parametrize("value", [None, "swiglu", 3, lambda x: x])
def test_what_is_no_layer_is_refused(value):
    with pytest.raises(InvalidInputError, match="`block` must be a Keras layer, received"):
        revive_layer("block", value)
    with pytest.raises(InvalidInputError, match="`block` must be a Keras layer, received"):
        clone_layers("block", value, 2)


@pytest.mark.parametrize("is_config", [False, True])
def test_clones_share_nothing(is_config):
    layer = DeepSeekMoE(ExpertRouter(4, 2), intermediate_dim=5)
    first, second = clone_layers("block", serialize_layer(layer) if is_config else layer, 2)
    assert (first.name, second.name) == ("block_1", "block_2")
    assert len({id(first.router), id(second.router), id(layer.router)}) == 3
    first.build((None, 3))
    second.build((None, 3))
    assert not np.allclose(
        keras.ops.convert_to_numpy(first.up_kernel), keras.ops.convert_to_numpy(second.up_kernel)
    )


def test_a_layer_without_a_build_of_its_own_is_built():
    class Twice(keras.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, inputs):
            return self.dense(self.dense(inputs))

    layer = Twice()
    build_layer(layer, (None, 4), "float32")
    assert len(layer.weights) == 2


def test_a_mask_goes_to_the_layers_that_take_one():
    class Hide(keras.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True

        def call(self, inputs, mask=None, factor=1.0):
            return inputs * keras.ops.cast(mask[..., None], "float32") * factor

    inputs, mask = np.ones((1, 2, 3), "float32"), np.array([[True, False]])
    hidden = keras.ops.convert_to_numpy(call_layer(Hide(), inputs, mask, factor=2.0))
    np.testing.assert_array_equal(hidden[0, :, 0], [2.0, 0.0])
    assert call_layer(SwiGLU(2), inputs, mask).shape == (1, 2, 3)


def test_an_argument_that_a_layer_does_not_take_is_refused():
    class Any(keras.Layer):
        def call(self, inputs, **kwargs):
            return inputs

    class OfOnesOwn(keras.Model):
        def call(self, inputs, **kwargs):
            return inputs

    for layer in (Any(), OfOnesOwn()):
        check_call_arguments(layer, ["cache"])
    with pytest.raises(InvalidInputError, match=r"'it', a SwiGLU, takes no `cache`\. Omit it"):
        call_layer(SwiGLU(2, name="it"), np.ones((1, 2, 3), "float32"), cache={})
    # Keras's own models would drop it without a word.
    with pytest.raises(InvalidInputError, match="'it', a Sequential, takes no `cache`"):
        check_call_arguments(keras.Sequential(name="it"), ["cache"])


def test_a_layer_that_does_not_keep_the_shape_is_refused():
    layer = SwiGLU(2, name="it")
    check_kept_shape("block", layer, np.ones((2, 3)), (None, 3))
    check_kept_shape("block", layer, keras.Input((3,)), (2, 3))
    for outputs, returned in ((np.ones((2, 4)), r"the shape \(2, 4\)"), ({}, "dict")):
        with pytest.raises(
            InvalidInputError, match=f"'block' .* 'it', a SwiGLU, returned {returned}"
        ):
            check_kept_shape("block", layer, outputs, (None, 3))
