"""Canaries: they fail when a Keras release moves a private name."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend.keras_private.variables import (
    NestedScope,
    forget_global_seed,
    global_seed_state,
    has_global_seed,
    in_stateless_scope,
    keras_torch_device,
    layout_axes,
    layout_paths,
    place_by_layout,
    raw_value,
    set_raw_value,
    without_values,
)


def test_the_tensor_inside_a_variable_is_read_and_replaced():
    variable, other = keras.Variable(np.ones(2)), keras.Variable(np.zeros(2))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(raw_value(variable)), np.ones(2))
    set_raw_value(variable, raw_value(other))
    assert raw_value(variable) is raw_value(other)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.zeros(2))


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras has layouts on JAX alone.")
def test_a_variable_from_outside_gets_the_layout_of_a_distribution():
    variable = keras.Variable(np.ones(2))
    mesh = keras.distribution.DeviceMesh((1,), ["batch"], ["cpu:0"])
    with keras.distribution.DataParallel(device_mesh=mesh).scope():
        place_by_layout(variable)
    assert variable._layout is not None
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), np.ones(2))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others ask the framework.")
def test_the_device_of_keras_is_known():
    with keras.device("cpu"):
        assert keras_torch_device() == "cpu"


def test_a_stateless_scope_is_noticed():
    assert not in_stateless_scope()
    with keras.StatelessScope():
        assert in_stateless_scope()


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


def test_variables_without_values_leave_no_trace():
    keras.utils.set_random_seed(1)
    with without_values():
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dropout(1)]
        )
    kernel = model.layers[0].kernel
    assert raw_value(kernel) is None
    assert tuple(kernel.shape) == (2, 3)
    again = keras.layers.Dense(3)
    again.build((None, 2))
    assert again.kernel.path == kernel.path.split("/", 1)[-1]
    with keras.StatelessScope():
        pass  # It initializes the variables that wait for values.
    assert raw_value(kernel) is None
    keras.utils.set_random_seed(1)
    expected = keras.layers.Dense(3)
    expected.build((None, 2))
    np.testing.assert_array_equal(expected.kernel, again.kernel)


def test_a_scope_reads_by_a_function_also_inside_of_it():
    variable = keras.Variable([1.0, 2.0])
    with NestedScope([(variable, variable.value)], lambda _, value: value * 2), NestedScope():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), [2, 4])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), [1, 2])


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras has layouts on JAX alone.")
def test_the_layouts_of_a_distribution_and_of_a_variable():
    layouts = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((1,), ["a"], ["cpu:0"]))
    layouts["kernel"] = (None, "a")
    distribution = keras.distribution.ModelParallel(layout_map=layouts)
    assert layout_paths(distribution) == ["kernel"]
    with distribution.scope():
        assert layout_axes(keras.Variable(np.ones((2, 3)), name="kernel")) == [None, "a"]
        assert layout_axes(keras.Variable(np.ones((2, 3)), name="bias")) == [None, None]
