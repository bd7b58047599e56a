import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.layers.token_chunks import map_chunks
from keras_deepseek.testing import assert_close


def weigh(rows, labels, kernel):
    """Something of a row and the kernel, times the row's label."""
    sums = keras.ops.sum(keras.ops.tanh(keras.ops.matmul(rows, kernel)), axis=-1)
    return sums * keras.ops.cast(labels, rows.dtype)


def weigh_chunks(tokens, labels, kernel, chunk_size):
    return map_chunks(
        lambda chunk: weigh(**chunk),
        {"rows": tokens},
        {"labels": labels},
        {"kernel": kernel},
        chunk_size,
    )


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
    results = weigh_chunks(tokens, labels, kernel, chunk_size)
    expected = keras.ops.convert_to_numpy(weigh(tokens, labels, kernel))
    assert_close(keras.ops.convert_to_numpy(results), expected)


@pytest.mark.parametrize("recomputes", [True, False])
@pytest.mark.parametrize(("batch_size", "num_tokens"), [(2, 7), (0, 7), (2, 3), (2, 0)])
def test_tokens_may_stand_along_the_second_axis_and_results_be_several(
    batch_size, num_tokens, recomputes
):
    rows = keras.ops.ones((batch_size, num_tokens, 2)) * keras.ops.reshape(
        keras.ops.arange(num_tokens, dtype="float32"), (1, -1, 1)
    )
    indices = keras.ops.expand_dims(keras.ops.arange(num_tokens), 0)

    def compute(chunk):
        rows, indices = chunk["rows"], keras.ops.cast(chunk["indices"], "float32")
        return rows * chunk["factor"], keras.ops.sum(rows, -1) + indices

    tensors = {"rows": rows}, {"indices": indices}, {"factor": 2.0}
    doubled, tripled = map_chunks(compute, *tensors, 3, axis=1, recomputes=recomputes)
    expected = np.broadcast_to(np.arange(num_tokens), (batch_size, num_tokens))
    assert_close(keras.ops.convert_to_numpy(doubled), np.stack([2 * expected] * 2, axis=-1))
    assert_close(keras.ops.convert_to_numpy(tripled), 3 * expected)


def test_the_gradients_are_those_of_all_tokens_at_once():
    tokens, labels, kernel = draw(7)
    direction = np.arange(7, dtype="float32")

    def total(compute, tokens, kernel):
        labels_ = keras.ops.convert_to_tensor(labels)
        return keras.ops.sum(keras.ops.multiply(compute(tokens, labels_, kernel), direction))

    def in_chunks(tokens, labels, kernel):
        return weigh_chunks(tokens, labels, kernel, 3)

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

    def record(chunk):
        sizes.append(chunk["rows"].shape[0])
        return weigh(**chunk)

    def total(tokens, kernel):
        labels_ = keras.ops.convert_to_tensor(labels)
        tensors = {"rows": tokens}, {"labels": labels_}, {"kernel": kernel}
        return keras.ops.sum(map_chunks(record, *tensors, 3))

    backend.current().compute.compute_gradients(total, [tokens, kernel], [])
    assert set(sizes) == {3}


def test_a_number_of_tokens_that_is_not_known_ahead_works():
    class Sum(keras.Layer):
        def call(self, tokens, labels, kernel):
            # Flattening a batch of any size leaves a number that only the run knows.
            flat = keras.ops.reshape(tokens, (-1, 3)), keras.ops.reshape(labels, (-1,))
            return keras.ops.sum(weigh_chunks(*flat, kernel[0], 3))[None]

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
