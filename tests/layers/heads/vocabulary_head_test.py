import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers.heads.vocabulary_head import (
    VocabularyHead,
    differentiate_projection,
    project,
)
from keras_deepseek.testing import assert_close

SETTINGS = {
    "use_bias": True,
    "kernel_initializer": "glorot_uniform",
    "bias_initializer": "ones",
}


def make_head(vocabulary_size=None, token_embedding=None, **kwargs):
    return VocabularyHead(vocabulary_size, token_embedding, **{**SETTINGS, **kwargs})


def test_it_has_a_kernel_and_a_bias_of_its_own():
    head = make_head(7)
    head.build((None, 3))
    assert sorted(weight.name for weight in head.weights) == ["bias", "kernel"]
    assert tuple(head.kernel.shape) == (3, 7)


@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # Of Keras, for an embedding on torch.
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_of_a_quantized_embedding_it_has_what_its_numbers_stand_for(mode):
    embedding = keras.layers.Embedding(7, 4)
    head = make_head(token_embedding=embedding, use_bias=False)
    head.build((None, None, 4))
    (kernel,) = map(keras.ops.convert_to_numpy, head.projection())
    embedding.quantize(mode)
    (quantized_kernel,) = map(keras.ops.convert_to_numpy, head.projection())
    atol = {"int8": 1 / 127, "int4": 1 / 7}[mode] * np.abs(kernel).max()
    np.testing.assert_allclose(quantized_kernel, kernel, rtol=0, atol=atol)
    rows = keras.ops.convert_to_numpy(head.read_rows(np.array([[3, 0]], "int32")))
    np.testing.assert_array_equal(rows[0], quantized_kernel.T[[3, 0]])


def test_it_shares_the_table_of_an_embedding():
    embedding = keras.layers.Embedding(7, 3)
    head = make_head(token_embedding=embedding, use_bias=False)
    head.build((None, None, 3))
    assert [weight.path for weight in head.weights] == [embedding.embeddings.path]
    (kernel,) = head.projection()
    table = keras.ops.convert_to_numpy(embedding.embeddings)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(kernel), table.T)


def test_the_projection_is_in_the_compute_dtype():
    head = make_head(7, dtype="mixed_bfloat16")
    head.build((None, 3))
    dtypes = {keras.backend.standardize_dtype(part.dtype) for part in head.projection()}
    assert dtypes == {"bfloat16"}


def test_logits_are_products_and_the_bias():
    logits = project(np.ones((2, 3), "float32"), np.full((3, 4), 2.0, "float32"), np.float32(1))
    assert_close(keras.ops.convert_to_numpy(logits), np.full((2, 4), 7.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None), "needs a `vocabulary_size`, or a `token_embedding`"),
        ((0, None), "`vocabulary_size` must be a positive integer, received 0"),
        ((8, keras.layers.Embedding(7, 3)), r"must be that of `token_embedding` \(7\)"),
        ((None, keras.layers.Dense(3)), "must be a `keras.layers.Embedding`"),
        ((None, "embedding"), "`token_embedding` must be a Keras layer, received 'embedding'"),
    ],
)
def test_arguments_that_make_no_head_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        make_head(*arguments)


def test_inputs_of_another_size_are_refused():
    with pytest.raises(InvalidInputError, match=r"with a known dim, received \(2, None\)"):
        make_head(7).build((2, None))
    with pytest.raises(InvalidInputError, match="an embedding of size 3, but received"):
        make_head(token_embedding=keras.layers.Embedding(7, 3)).build((2, 4))


@pytest.mark.parametrize("num_parts", [2, 3])
def test_the_gradients_are_those_of_the_projection(num_parts):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((4, 3), (3, 7), (7,))]
    arrays, upstream = arrays[:num_parts], rng.normal(size=(4, 7)).astype("float32")
    inputs, *projection_tensors = map(keras.ops.convert_to_tensor, arrays)
    gradients = differentiate_projection(
        inputs, keras.ops.convert_to_tensor(upstream), *projection_tensors
    )

    def total(*arrays):
        return keras.ops.sum(keras.ops.multiply(project(*arrays), upstream))

    expected, _ = backend.current().compute.compute_gradients(total, arrays, [])
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(keras.ops.convert_to_numpy(gradient), other)
