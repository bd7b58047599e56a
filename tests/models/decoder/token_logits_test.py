import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.models import TokenLogits
from keras_deepseek.testing import assert_close
from tests.oracles.quantization import MODES


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


@pytest.mark.each_backend
@pytest.mark.parametrize("soft_cap", [None, 2.0], ids=["plain", "capped"])
@pytest.mark.parametrize("tie_weights", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # Of Keras, on PyTorch.
def test_a_gradient_passes_a_quantized_table(mode, tie_weights, soft_cap):
    embedding = keras.layers.ReversibleEmbedding(9, 8, tie_weights, "normal")
    layer = TokenLogits(embedding)
    layer.build((None, 8))
    embedding.quantize(**MODES[mode])
    # Inputs that Keras rounds to integers are unchanged by it if they are all zero but one.
    kernel = keras.ops.convert_to_numpy(layer(np.eye(8, dtype="float32"))).astype("float64")
    hidden = np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32")
    direction = np.random.default_rng(1).normal(size=(2, 3, 9)).astype("float32")
    embedding.logit_soft_cap = soft_cap
    logits = keras.ops.convert_to_numpy(embedding(hidden, reverse=True))
    assert_close(keras.ops.convert_to_numpy(layer(hidden)), logits)
    slopes = 1.0 if soft_cap is None else 1 - (logits / soft_cap) ** 2
    (gradient,), _ = backend.current().compute.compute_gradients(
        lambda x: keras.ops.sum(keras.ops.multiply(layer(x), direction)), [hidden], []
    )
    assert_close(gradient, (direction * slopes) @ kernel.T, 1e-5)


def test_it_survives_its_config():
    layer = TokenLogits(keras.layers.ReversibleEmbedding(9, 6), name="head")
    revived = TokenLogits.from_config(layer.get_config())
    assert revived.token_embedding.input_dim == 9


def test_an_embedding_that_has_no_reverse_is_refused():
    with pytest.raises(InvalidInputError, match="must be a `ReversibleEmbedding`"):
        TokenLogits(keras.layers.Embedding(9, 6))
