import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current
from keras_deepseek.backend.keras_private.masks import output_masks
from keras_deepseek.errors import NotSupportedError


def test_there_is_a_cpu():
    assert current().devices.count_devices("cpu") >= 1


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_an_absent_kind_counts_as_none(kind):
    assert current().devices.count_devices(kind) >= 0


def test_a_cpu_has_no_name_and_no_allocator_that_counts():
    devices = current().devices
    if devices.count_devices("gpu") or devices.count_devices("tpu"):
        memory = devices.read_device_memory()
        assert memory["in_use"] <= memory["peak"]
        assert devices.read_device_name()
    else:
        assert devices.read_device_memory() is None
        assert devices.read_device_name() is None


def test_variables_are_created_and_computed_with_on_a_device():
    with current().devices.on_device("cpu:0"):
        variable = keras.Variable([1.0, 2.0])
        result = keras.ops.convert_to_tensor(variable) + 1
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(result), [2, 3])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others know the CPU by one name.")
def test_nothing_is_copied_to_where_it_is():
    import torch

    value = torch.ones(2)
    with current().devices.on_device("cpu:0"):
        assert keras.ops.convert_to_tensor(value).data_ptr() == value.data_ptr()
        assert isinstance(keras.Variable([1.0]).value, torch.nn.Parameter)


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow waits ten seconds; the test of the search for a batch size has it.",
)
def test_a_tensor_that_does_not_fit_is_out_of_memory():
    with pytest.raises(Exception, match="llocat") as caught:
        ops.convert_to_numpy(ops.ones((2**21, 2**20)))
    assert current().devices.is_out_of_memory(caught.value)


def test_memory_that_ran_out_is_told_from_other_errors():
    with pytest.raises(MemoryError) as memory_error:
        np.ones((2**21, 2**20))
    assert current().devices.is_out_of_memory(memory_error.value)
    with pytest.raises(Exception, match=r"[Ss]hape|incompatible|[Dd]imension") as caught:
        ops.matmul(ops.ones((2, 3)), ops.ones((2, 3)))
    assert not current().devices.is_out_of_memory(caught.value)


def test_memory_is_released():
    current().devices.release_memory()
    assert float(ops.sum(ops.ones(3))) == 3.0


IS_JAX = keras.backend.backend() == "jax"


X = np.array([[1, 2, 0], [3, 0, 0]])


@pytest.mark.skipif(not IS_JAX, reason="The others can.")
def test_jax_says_what_to_do_instead():
    with pytest.raises(NotSupportedError, match="transformer_layout_map"):
        current().devices.move_variables([], None)
    with pytest.raises(NotSupportedError, match="ModelParallel"):
        current().devices.compute_on(None, None, "gpu:1", is_away=True, comes_back=True)
    with current().devices.on_device_of(ops.ones(1)):
        pass


class Several(keras.layers.Layer):
    """Returns floats and integers, and adds a loss of its input, which it is given twice."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(5, 4, mask_zero=True)
        self.frozen = keras.layers.Dense(4, trainable=False)
        self.norm = keras.layers.BatchNormalization(momentum=0.5)

    def build(self, input_shape):
        self.table.build(input_shape)
        self.frozen.build((*input_shape, 4))
        self.norm.build((*input_shape, 4))

    def call(self, inputs, scale, again, training=False):
        hidden = self.norm(self.frozen(self.table(inputs)), training=training)
        self.add_loss(ops.mean(scale * hidden))
        return {"hidden": hidden * scale + again, "ids": inputs + 1, "none": None}


def compute(is_placed):
    keras.utils.set_random_seed(1)
    layer, scale = Several(), keras.Variable(2.0)
    layer.build((2, 3))
    call = layer.call
    if is_placed:
        call = current().devices.compute_on(
            layer, layer.call, "cpu:0", is_away=True, comes_back=True
        )

    def run():
        factor = ops.convert_to_tensor(scale)
        outputs = call(X, factor, factor, training=True)
        assert outputs["none"] is None
        np.testing.assert_array_equal(ops.convert_to_numpy(outputs["ids"]), X + 1)
        return ops.sum(outputs["hidden"] ** 2) + sum(layer.losses), ()

    variables = [scale, layer.table.embeddings, layer.norm.gamma]
    _, backward = current().step.differentiate(run, variables, layer.non_trainable_variables)
    gradients = [current().step.densify(gradient) for gradient in backward()]
    return [*gradients, *(variable.value for variable in layer.variables)]


@pytest.mark.skipif(IS_JAX, reason="JAX has layouts instead.")
def test_a_layer_that_is_away_has_the_same_gradients_and_leaves_the_same_states():
    for away, home in zip(compute(True), compute(False), strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(away), ops.convert_to_numpy(home), rtol=1e-5, atol=1e-6
        )


@pytest.mark.skipif(IS_JAX, reason="JAX has layouts instead.")
def test_masks_are_handed_on():
    layer = keras.Sequential([keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(2)])
    layer(X)
    call = current().devices.compute_on(layer, layer.call, "cpu:0", is_away=True, comes_back=False)
    for mask in output_masks([layer.call(X), call(X)]):
        np.testing.assert_array_equal(ops.convert_to_numpy(mask), X != 0)


@pytest.mark.skipif(IS_JAX, reason="JAX has layouts instead.")
def test_a_variable_that_is_there_is_not_moved():
    variable = keras.Variable([1.0, 2.0])
    value = variable._value
    assert not current().devices.move_variables([(variable, "cpu:0")], None)
    assert variable._value is value


def test_beside_a_tensor_is_computed_as_ever():
    with current().devices.on_device_of(ops.ones(2)):
        np.testing.assert_array_equal(ops.convert_to_numpy(ops.ones(2) + 1), [2, 2])


def test_the_threads_of_a_process_are_limited():
    code = (
        "import os, sys\n"
        "from keras_deepseek.backend import current\n"
        "current().devices.limit_threads(3)\n"
        "from keras import ops\n"
        "ops.matmul(ops.ones((2, 2)), ops.ones((2, 2)))\n"
        "name = os.environ['KERAS_BACKEND']\n"
        "framework = sys.modules[name]\n"
        "threads = {\n"
        "    'jax': lambda: int(os.environ['NPROC']),\n"
        "    'tensorflow': lambda: framework.config.threading.get_intra_op_parallelism_threads(),\n"
        "    'torch': lambda: framework.get_num_threads(),\n"
        "}\n"
        "print(threads[name]())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
