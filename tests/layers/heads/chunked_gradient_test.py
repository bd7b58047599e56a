import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.layers.token_chunks import map_chunks_with_gradient
from keras_deepseek.testing import assert_close


def weigh(rows, labels, kernel):
    """Something of a row and the kernel, times the row's label."""
    sums = keras.ops.sum(keras.ops.tanh(keras.ops.matmul(rows, kernel)), axis=-1)
    return sums * keras.ops.cast(labels, rows.dtype)


def differentiate(rows, labels, upstream, kernel):
    weights = keras.ops.cast(labels, rows.dtype) * upstream
    slopes = 1 - keras.ops.square(keras.ops.tanh(keras.ops.matmul(rows, kernel)))
    by_products = slopes * keras.ops.expand_dims(weights, -1)
    return by_products @ keras.ops.transpose(kernel), keras.ops.transpose(rows) @ by_products


def draw(num_tokens):
    rng = np.random.default_rng(0)
    tokens, kernel = rng.normal(size=(num_tokens, 3)), rng.normal(size=(3, 4))
    labels = rng.integers(1, 9, num_tokens).astype("int32")
    return tokens.astype("float32"), labels, kernel.astype("float32")


@pytest.mark.parametrize(
    ("num_tokens", "chunk_size"), [(8, 4), (7, 3), (5, 9), (1, 1), (4, 1), (0, 3)]
)
def test_the_results_are_those_of_all_tokens_at_once(num_tokens, chunk_size):
    tokens, labels, kernel = map(keras.ops.convert_to_tensor, draw(num_tokens))
    results = map_chunks_with_gradient(weigh, differentiate, tokens, labels, (kernel,), chunk_size)
    expected = keras.ops.convert_to_numpy(weigh(tokens, labels, kernel))
    assert_close(keras.ops.convert_to_numpy(results), expected)


def test_the_gradients_are_those_of_all_tokens_at_once():
    tokens, labels, kernel = draw(7)
    direction = np.arange(7, dtype="float32")

    def total(compute, tokens, kernel):
        labels_ = keras.ops.convert_to_tensor(labels)
        return keras.ops.sum(keras.ops.multiply(compute(tokens, labels_, kernel), direction))

    def in_chunks(tokens, labels, kernel):
        return map_chunks_with_gradient(weigh, differentiate, tokens, labels, (kernel,), 3)

    gradients, expected = (
        backend.current().compute.compute_gradients(
            lambda *arrays, compute=compute: total(compute, *arrays), [tokens, kernel], []
        )[0]
        for compute in (in_chunks, weigh)
    )
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert_close(gradient, expected_gradient)


def test_no_call_sees_more_tokens_than_a_chunk_has():
    tokens, labels, kernel = draw(7)
    sizes = []

    def recorded(function):
        def record(rows, *operands):
            sizes.append(rows.shape[0])
            return function(rows, *operands)

        return record

    functions = [recorded(function) for function in (weigh, differentiate)]

    def total(tokens, kernel):
        labels_ = keras.ops.convert_to_tensor(labels)
        results = map_chunks_with_gradient(*functions, tokens, labels_, (kernel,), 3)
        return keras.ops.sum(results)

    backend.current().compute.compute_gradients(total, [tokens, kernel], [])
    assert set(sizes) == {3}


def test_a_number_of_tokens_that_is_not_known_ahead_works():
    class Sum(keras.Layer):
        def call(self, tokens, labels, kernel):
            # Flattening a batch of any size leaves a number that only the run knows.
            flat = keras.ops.reshape(tokens, (-1, 3)), keras.ops.reshape(labels, (-1,))
            return keras.ops.sum(
                map_chunks_with_gradient(weigh, differentiate, *flat, (kernel[0],), 3)
            )[None]

        def compute_output_spec(self, *args):
            return keras.KerasTensor((1,))

    shapes = {"tokens": ((3,), "float32"), "labels": ((), "int32"), "kernel": ((3, 4), "float32")}
    inputs = [keras.Input(shape, dtype=dtype) for shape, dtype in shapes.values()]
    model = keras.Model(inputs, Sum()(*inputs))
    for num_tokens in (7, 2):
        tokens, labels, kernel = draw(num_tokens)
        kernels = np.repeat(kernel[None], num_tokens, axis=0)
        result = model.predict([tokens, labels, kernels], batch_size=8, verbose=0)
        expected = keras.ops.convert_to_numpy(keras.ops.sum(weigh(tokens, labels, kernel)))
        assert_close(result, expected[None])


def test_half_precision_is_added_up_in_float32():
    """In bfloat16 256 + 1 is 256: a sum of 600 ones would stay there."""

    def total(tokens, kernel):
        half = [keras.ops.cast(tensor, "bfloat16") for tensor in (tokens, kernel)]
        labels = keras.ops.ones((600,), "int32")
        results = map_chunks_with_gradient(
            sum_products, differentiate_products, half[0], labels, half[1:], 1
        )
        return keras.ops.sum(results)

    def sum_products(rows, labels, kernel):
        return keras.ops.sum(keras.ops.cast(rows @ kernel, "float32"), axis=-1)

    def differentiate_products(rows, labels, upstream, kernel):
        slopes = keras.ops.ones((1, 4), "bfloat16")
        return slopes @ keras.ops.transpose(kernel), keras.ops.transpose(rows) @ slopes

    arrays = [np.ones((600, 3), "float32"), np.ones((3, 4), "float32")]
    _, by_kernel = backend.current().compute.compute_gradients(total, arrays, [])[0]
    assert_close(by_kernel, np.full((3, 4), 600.0), 5e-3)
