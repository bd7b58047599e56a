"""Canaries: they fail when a Keras release moves a private name."""

import keras
from keras import ops

from keras_deepseek.backend.keras_private.scopes import NestedScope


def test_a_scope_inside_another_sees_what_that_one_has_set():
    first = keras.Variable(1.0, trainable=False)
    second = keras.Variable(2.0, trainable=False)
    with keras.StatelessScope([(first, ops.convert_to_tensor(10.0))]) as outer:
        first.assign(11.0)
        with NestedScope([(second, ops.convert_to_tensor(20.0))]) as inner:
            assert float(ops.convert_to_numpy(first.value)) == 11.0
            second.assign(first + second)
        assert float(inner.get_current_value(second)) == 31.0
        assert outer.get_current_value(second) is None
    assert float(ops.convert_to_numpy(second.value)) == 2.0
