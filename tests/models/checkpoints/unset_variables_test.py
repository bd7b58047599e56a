import threading

import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter, RotaryEmbedding
from keras_deepseek.models.checkpoints.weights_reader import unset_variables


def is_zero(variable):
    return not np.any(keras.ops.convert_to_numpy(variable))


def test_random_variables_are_zeros_and_the_others_as_ever():
    with unset_variables() as unset:
        dense = keras.layers.Dense(3, bias_initializer="ones")
        norm = keras.layers.LayerNormalization()
        dense.build((None, 2))
        norm.build((None, 2))
    assert [variable.path for variable in unset] == [dense.kernel.path]
    assert is_zero(dense.kernel)
    assert keras.ops.convert_to_numpy(dense.bias).tolist() == [1.0, 1.0, 1.0]
    assert not is_zero(norm.gamma)


def test_the_kernels_of_experts_are_among_them():
    with unset_variables() as unset:
        layer = DeepSeekMoE(ExpertRouter(4, 2), 8)
        layer.build((None, 3, 6))
        rotary = RotaryEmbedding()
        rotary.build((None, 3, 4))
    paths = {variable.path.partition("/")[2] for variable in unset}
    assert {"expert_gate/kernel", "expert_up/kernel", "expert_down/kernel"} <= paths
    assert is_zero(layer.gate_kernel)


def test_afterwards_and_in_other_threads_they_are_random():
    add_weight = keras.Layer.add_weight
    are_zero = []

    def build():
        dense = keras.layers.Dense(3)
        dense.build((None, 2))
        are_zero.append(is_zero(dense.kernel))

    with unset_variables():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    build()
    assert are_zero == [False, False]
    assert keras.Layer.add_weight is add_weight


def test_an_error_puts_things_back():
    add_weight = keras.Layer.add_weight
    with pytest.raises(InvalidInputError), unset_variables():
        DeepSeekMoE(ExpertRouter(4, 2), 0)
    assert keras.Layer.add_weight is add_weight
