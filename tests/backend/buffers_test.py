import keras
import numpy as np
import pytest

from keras_deepseek.backend import current
from keras_deepseek.training.checkpoints.training_state import read_variables, write_variables


def test_a_model_of_keras_s_own_layers_has_nothing_beside_its_variables(convolutional):
    assert current().read_buffers(convolutional) == {}
    current().write_buffers(convolutional, {})


def test_the_buffers_of_pytorch_s_modules_are_read_and_put_back():
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("Only Keras on PyTorch takes its modules as layers.")

    def trained(seed):
        x = np.random.default_rng(seed).normal(size=(8, 3)).astype("float32")
        module = keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(3))
        model = keras.Sequential([keras.Input((3,)), module, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], verbose=0)
        return model

    first, second = trained(1), trained(2)
    buffers = current().read_buffers(first)
    assert any(name.endswith("running_mean") for name in buffers)
    write_variables(second, read_variables(first))
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(second.predict(x, verbose=0), first.predict(x, verbose=0))
    before = {name: buffer.copy() for name, buffer in buffers.items()}
    first.fit(x, x[:, :1], verbose=0)
    for name, buffer in buffers.items():
        np.testing.assert_array_equal(buffer, before[name])
