import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import TokenLogits
from keras_deepseek.testing import assert_close


@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_are_products_with_the_rows_of_the_table(tie_weights):
    embedding = keras.layers.ReversibleEmbedding(9, 6, tie_weights=tie_weights)
    layer = TokenLogits(embedding)
    hidden = np.random.default_rng(0).normal(size=(2, 3, 6)).astype("float32")
    logits = keras.ops.convert_to_numpy(layer(hidden))
    table = embedding.embeddings if tie_weights else embedding.reverse_embeddings
    kernel = keras.ops.convert_to_numpy(table)
    assert_close(logits, hidden @ (kernel.T if tie_weights else kernel))
    assert len(layer.weights) == len(embedding.weights)


def test_logits_are_float32_in_half_precision():
    embedding = keras.layers.ReversibleEmbedding(9, 6, dtype="mixed_bfloat16")
    logits = TokenLogits(embedding, dtype="mixed_bfloat16")(np.ones((1, 2, 6), "float32"))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has float64 where it is told to.")
@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_are_float64_where_the_policy_is(tie_weights):
    embedding = keras.layers.ReversibleEmbedding(9, 6, tie_weights=tie_weights, dtype="float64")
    hidden = np.random.default_rng(0).normal(size=(1, 2, 6))
    logits = TokenLogits(embedding, dtype="float64")(hidden)
    assert keras.backend.standardize_dtype(logits.dtype) == "float64"
    table = embedding.embeddings if tie_weights else embedding.reverse_embeddings
    kernel = keras.ops.convert_to_numpy(table)
    expected = hidden @ (kernel.T if tie_weights else kernel)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(logits), expected, rtol=0, atol=1e-14)


def test_it_survives_its_config():
    layer = TokenLogits(keras.layers.ReversibleEmbedding(9, 6), name="head")
    revived = TokenLogits.from_config(layer.get_config())
    assert revived.token_embedding.input_dim == 9


def test_an_embedding_that_has_no_reverse_is_refused():
    with pytest.raises(InvalidInputError, match="must be a `ReversibleEmbedding`"):
        TokenLogits(keras.layers.Embedding(9, 6))
