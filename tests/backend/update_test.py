import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current

OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, beta_1=0.8, epsilon=1e-3),
    "decay": lambda: keras.optimizers.Adam(0.01, weight_decay=0.1),
    "clip": lambda: keras.optimizers.AdamW(0.01, global_clipnorm=0.5),
    "average": lambda: keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulate": lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("factor", [None, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_that_of_keras(name, factor):
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 12)).astype("float32")
    results = []
    for use_ours in (False, True):
        optimizer = OPTIMIZERS[name]()
        variables = [
            keras.Variable(np.ones((3, 4), "float32"), name="kernel"),
            keras.Variable(np.ones((12,), "float32"), name="bias"),
            keras.Variable(np.ones((2,), "float32"), name="unused"),
        ]
        optimizer.build(variables)
        if optimizer.weight_decay:
            optimizer.exclude_from_weight_decay(var_names=["bias"])
        for step in gradients:
            given = [ops.convert_to_tensor(step.reshape(3, 4)), ops.convert_to_tensor(step), None]
            with warnings.catch_warnings():  # Keras warns of what has no gradient.
                warnings.simplefilter("ignore")
                if use_ours:
                    scale = None if factor is None else ops.convert_to_tensor(factor, "float32")
                    current().apply_update(optimizer, given, variables, scale)
                else:
                    optimizer.apply([_multiply(each, factor) for each in given], variables)
        results.append([ops.convert_to_numpy(v) for v in [*variables, *optimizer.variables]])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def _multiply(gradient, factor):
    return gradient if gradient is None or factor is None else gradient * factor


def test_gradients_that_are_one_tensor_are_multiplied_once():
    variables = [keras.Variable(np.ones((4,), "float32")) for _ in range(2)]
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)
    gradient = ops.convert_to_tensor(np.array([1.0, -2.0, 3.0, 0.5], "float32"))
    current().apply_update(optimizer, [gradient, gradient], variables, ops.convert_to_tensor(0.5))
    first, second = (ops.convert_to_numpy(each) for each in optimizer._momentums)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, [0.05, -0.1, 0.15, 0.025], rtol=1e-6)


# JAX has no float64 unless it is told to.
DTYPES = ["float32", "bfloat16", *(["float64"] if keras.backend.backend() != "jax" else [])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_of_all_gradients(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((3, 4), (5,), (2, 3, 4), ())]
    tensors = [ops.cast(ops.convert_to_tensor(array), dtype) for array in arrays]
    rounded = [ops.convert_to_numpy(ops.cast(tensor, "float32")) for tensor in tensors]
    squares = [np.square(array.astype("float64")).sum() for array in rounded]
    norm = current().global_norm(tensors)
    assert keras.backend.standardize_dtype(norm.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(norm), np.sqrt(sum(squares)), rtol=1e-6)


def test_the_norm_of_many_numbers_is_exact():
    array = np.random.default_rng(0).normal(size=(20_000, 256)).astype("float32")
    norm = ops.convert_to_numpy(current().global_norm([ops.convert_to_tensor(array)]))
    expected = np.sqrt(np.square(array.astype("float64")).sum())
    np.testing.assert_allclose(norm, expected, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_which_tensors_are_finite(dtype):
    arrays = [np.ones((2, 3)), np.array([1, np.nan]), np.array(-np.inf), np.zeros(0), np.array(3.0)]
    tensors = [ops.cast(ops.convert_to_tensor(array), dtype) for array in arrays]
    assert current().find_finite(tensors) == [True, False, False, True, True]
    assert current().find_finite([]) == []


@pytest.mark.parametrize("name", ["adamw", "schedule", "sgd"])
def test_a_compiled_update_is_that_of_keras(name):
    rng = np.random.default_rng(0)
    results = []
    for use_ours in (False, True):
        optimizer = OPTIMIZERS[name]()
        variables = [
            keras.Variable(np.ones((3, 4), "float32"), name="kernel"),
            keras.Variable(np.ones((2,), "float32"), name="unused"),
        ]
        optimizer.build(variables)
        update = current().compile_update(optimizer, variables)
        with warnings.catch_warnings():  # Keras warns of what has no gradient.
            warnings.simplefilter("ignore")
            for gradient in rng.normal(size=(3, 3, 4)).astype("float32"):
                if use_ours:
                    update([gradient, None])
                else:
                    optimizer.apply([ops.convert_to_tensor(gradient), None], variables)
        rng = np.random.default_rng(0)
        results.append([ops.convert_to_numpy(v) for v in [*variables, *optimizer.variables]])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_rows_of_an_embedding_that_a_batch_names_twice_are_added_before_they_are_squared(name):
    """Keras's own update on TensorFlow adds the squares of a sparse gradient's rows."""
    table = keras.Variable(np.ones((5, 2), "float32"), name="embeddings")
    dense = keras.Variable(np.ones((5, 2), "float32"), name="embeddings")
    indices = np.array([[1, 1, 3, 1], [4, 0, 4, 2]])
    scales = np.array([0.5, 2.0, 1.0, 3.0], "float32")[:, None]
    optimizers = [OPTIMIZERS[name](), OPTIMIZERS[name]()]
    for optimizer, variable in zip(optimizers, (table, dense), strict=True):
        optimizer.build([variable])
    for rows in indices:

        def compute(rows=rows):
            return ops.sum(ops.multiply(ops.take(table, rows, axis=0), scales)), None

        _, backward = current().differentiate(compute, [table], [])
        current().apply_update(optimizers[0], backward(), [table])
        whole = np.zeros((5, 2), "float32")
        np.add.at(whole, rows, np.broadcast_to(scales, (4, 2)))
        optimizers[1].apply([ops.convert_to_tensor(whole)], [dense])
    found, expected = (ops.convert_to_numpy(variable) for variable in (table, dense))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_multiples_are_added_to_sums():
    sums = [ops.ones((2, 3)), ops.zeros(4)]
    tensors = [ops.full((2, 3), 2.0), ops.arange(4, dtype="float32")]
    added = current().add_multiples(sums, tensors, ops.convert_to_tensor(0.5))
    added = current().add_multiples(added, tensors, 1.0)
    np.testing.assert_array_equal(ops.convert_to_numpy(added[0]), np.full((2, 3), 4.0))
    np.testing.assert_array_equal(ops.convert_to_numpy(added[1]), 1.5 * np.arange(4))
    np.testing.assert_array_equal(ops.convert_to_numpy(tensors[0]), 2.0)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others update weights one by one.")
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Nadam", "Lamb"])
def test_an_update_of_one_device_after_the_other_is_that_of_keras(name):
    """Of one device here; what shares no kernel with it, the training on two devices tries."""
    from keras_deepseek.backend.torch import update

    def make():
        variables = [keras.Variable(np.ones((2, 3), "float32")), keras.Variable(np.ones(3, "f4"))]
        optimizer = getattr(keras.optimizers, name)(0.1, weight_decay=0.1, global_clipnorm=1.0)
        optimizer.build(variables)
        return optimizer, variables

    (optimizer, found), (other, expected) = make(), make()
    for step in range(3):
        gradients = [ops.full(each.shape, 0.3 + step) for each in found]
        values = [each.value for each in found]
        update._apply_by_device(optimizer, list(gradients), found, values)
        other.apply(gradients, expected)
    for one, another in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(one), ops.convert_to_numpy(another), rtol=1e-5, atol=1e-6
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
        lambda optimizer, variable: current().apply_update(optimizer, [gradient], [variable]),
    ):
        variable = keras.Variable(lambda shape, dtype: ops.copy(value), shape=(6, 4))
        optimizer = OPTIMIZERS[name]()
        optimizer.build([variable])
        for _ in range(3):
            apply(optimizer, variable)
        results.append(ops.convert_to_numpy(variable.value))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
