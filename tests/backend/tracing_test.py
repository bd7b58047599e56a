import keras
import numpy as np
import pytest

from keras_deepseek import backend


@pytest.mark.parametrize(
    "value", [7, np.int64(7), np.array(7), keras.ops.convert_to_tensor(7, "int32")]
)
def test_a_number_that_is_there_is_read(value):
    assert backend.current().read_integer(value) == 7


def test_a_number_that_is_only_traced_reads_as_none():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            read.append(backend.current().read_integer(inputs))
            return inputs

    Reader()(keras.Input((), dtype="int32"))  # Keras infers shapes by tracing.
    assert set(read) == {None}


def test_a_number_that_keras_makes_up_for_want_of_one_reads_as_none():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            if getattr(inputs, "is_meta", False):
                raise NotImplementedError  # As many operations of PyTorch; Keras then tries ones.
            read.append(backend.current().read_integer(inputs[0, 0]))
            read.append(backend.current().read_array(inputs))
            return inputs

    Reader()(keras.Input((2,), dtype="int32"))
    assert set(read) == {None}


def test_shapes_may_follow_from_numbers_where_they_are_there_and_no_shape_is_compiled():
    may = backend.current().can_read_shapes(keras.ops.convert_to_tensor([1, 2], "int32"))
    assert may == (keras.backend.backend() != "jax")


def test_shapes_may_not_follow_from_what_is_only_traced():
    may = []

    class Reader(keras.Layer):
        def call(self, inputs):
            may.append(backend.current().can_read_shapes(inputs))
            return inputs

    Reader()(keras.Input((), dtype="int32"))
    assert set(may) == {False}


def test_the_numbers_of_a_tensor_are_read_where_the_host_holds_them():
    value = keras.ops.convert_to_tensor([[True, False]], "bool")
    np.testing.assert_array_equal(backend.current().read_array(value), [[True, False]])


def test_the_numbers_of_what_is_only_traced_are_not_read():
    read = []

    class Reader(keras.Layer):
        def call(self, inputs):
            read.append(backend.current().read_array(inputs))
            return inputs

    Reader()(keras.Input((2,), dtype="bool"))
    assert set(read) == {None}
