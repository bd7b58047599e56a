"""Programs: source code, several outputs, and the layer at which an error was raised."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_deepseek.graph.plans import Plan


def test_the_source_can_be_read():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, activation="relu", name="head")(inputs))
    plan = Plan(model, keras.KerasTensor((2, 4)), training=False, passes=())
    lines = plan.program.source.splitlines()
    assert lines[0] == "def program(x0):"
    assert any("kernel_1.value  # head/kernel" in line for line in lines)
    assert any(" = matmul_1(" in line and line.endswith("# head") for line in lines)
    assert any(line.strip().startswith("del ") for line in lines)


def test_operations_with_several_outputs_and_structures():
    inputs = keras.Input((4,))
    first, second = ops.split(inputs, 2, axis=-1)
    model = keras.Model(inputs, {"b": [second * 2.0, first], "a": first + second})
    x = ops.convert_to_tensor(np.arange(8, dtype="float32").reshape(2, 4))
    plan = Plan(model, keras.KerasTensor((2, 4)), training=False, passes=())
    expected, received = model(x), plan.program(x)
    assert set(received) == {"a", "b"}
    outputs = map(keras.tree.flatten, (expected, received))
    for expected_output, output in zip(*outputs, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(expected_output), ops.convert_to_numpy(output)
        )


class Pair(NamedTuple):
    first: Any
    second: Any


def test_an_operation_of_a_named_tuple():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, ops.concatenate(Pair(inputs, inputs * 2.0), axis=-1))
    plan = Plan(model, keras.KerasTensor((2, 4)), training=False, passes=())
    received = ops.convert_to_numpy(plan.program(ops.ones((2, 4))))
    np.testing.assert_array_equal(received, [[1, 1, 1, 1, 2, 2, 2, 2]] * 2)


def test_an_error_names_its_layer():
    class Failing(keras.Operation):
        def call(self, x):
            raise ValueError("It fails.")

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    class Calling(layers.Layer):
        def call(self, x):
            return Failing()(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Calling(name="calling")(inputs))
    plan = Plan(model, keras.KerasTensor((2, 4)), training=False, passes=())
    with pytest.raises(ValueError, match="It fails") as caught:
        plan.program(ops.ones((2, 4)))
    assert plan.program.failed_layer(caught.value) == "calling"
    assert plan.program.failed_layer(ValueError()) is None


class Offsets(layers.Layer):
    """Adds another number to each row."""

    def call(self, x):
        return x + ops.reshape(ops.arange(3, dtype="float32"), (3, 1, 1))


@pytest.mark.each_backend
def test_a_number_for_each_row_is_not_taken_for_a_bias():
    inputs = keras.Input(batch_shape=(3, 2, 3))
    model = keras.Model(inputs, Offsets()(inputs))
    x = np.zeros((3, 2, 3), "float32")
    plan = Plan(model, ops.convert_to_tensor(x), training=False, passes=())
    expected = np.broadcast_to(np.arange(3, dtype="float32")[:, None, None], x.shape)
    received = plan.program(ops.convert_to_tensor(x))
    np.testing.assert_array_equal(ops.convert_to_numpy(received), expected)
