import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, beta_1=0.8, epsilon=1e-3),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others update weights one by one.")
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Nadam", "Lamb"])
def test_an_update_of_one_device_after_the_other_is_that_of_keras(name):
    """Of one device here; what shares no kernel with it, the training on two devices tries."""
    from keras_deepseek.backend.torch import optimizer_update

    def make():
        variables = [keras.Variable(np.ones((2, 3), "float32")), keras.Variable(np.ones(3, "f4"))]
        optimizer = getattr(keras.optimizers, name)(0.1, weight_decay=0.1, global_clipnorm=1.0)
        optimizer.build(variables)
        return optimizer, variables

    (optimizer, variables), (reference, expected) = make(), make()
    for step in range(3):
        gradients = [ops.full(variable.shape, 0.3 + step) for variable in variables]
        values = [variable.value for variable in variables]
        optimizer_update._apply_by_device(optimizer, list(gradients), variables, values)
        reference.apply(gradients, expected)
    for variable, reference_variable in zip(variables, expected, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable),
            ops.convert_to_numpy(reference_variable),
            rtol=1e-5,
            atol=1e-6,
        )
    assert int(optimizer.iterations) == 3
    assert not {"update_step", "_apply_weight_decay"} & set(vars(optimizer))


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw", "sgd"])
def test_weights_that_lie_transposed_in_memory_are_updated_as_by_keras(name):
    """An orthogonal initializer makes such on PyTorch."""
    value = keras.initializers.Orthogonal(seed=1)((6, 4))
    gradient = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(6, 4)).astype("float32"))
    results = []
    for apply in (
        lambda optimizer, variable: optimizer.apply([gradient], [variable]),
        lambda optimizer, variable: current().step.apply_update(optimizer, [gradient], [variable]),
    ):
        variable = keras.Variable(lambda shape, dtype: ops.copy(value), shape=(6, 4))
        optimizer = OPTIMIZERS[name]()
        optimizer.build([variable])
        for _ in range(3):
            apply(optimizer, variable)
        results.append(ops.convert_to_numpy(variable.value))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
