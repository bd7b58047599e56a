"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np

from keras_deepseek.backend.keras_private.global_seed import (
    forget_global_seed,
    global_seed_state,
    has_global_seed,
)


def test_the_seed_that_keras_shares_is_a_variable():
    state = global_seed_state()
    seed = keras.ops.convert_to_numpy(state.value).copy()
    keras.random.uniform((1,))
    assert not np.array_equal(keras.ops.convert_to_numpy(global_seed_state().value), seed)
    assert global_seed_state() is state
    assert has_global_seed()
    forget_global_seed()
    assert not has_global_seed()
    assert global_seed_state() is not state
