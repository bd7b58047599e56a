import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import (
    ChunkedCrossEntropy,
    DeepSeekMoE,
    ExpertRouter,
    HashRouter,
    ManifoldConstrainedHyperConnections,
    MaskedPositionHead,
    MultiTokenPrediction,
    ResidualStreamCollapse,
    ResidualStreamExpansion,
    RotaryEmbedding,
    SwiGLU,
)

TOKENS = np.ones((2, 3), "int32")


def make_layers(dtype="float32"):
    """Returns each layer with the shape of its inputs and what it takes beside them."""
    policy = {"dtype": dtype}
    inner = SwiGLU(4, clamp=2.0, **policy)
    embedding, head = keras.layers.Embedding(5, 6, **policy), keras.layers.Dense(5, **policy)
    return [
        (inner, (2, 3, 6), {}),
        (ExpertRouter(4, 2, **policy), (2, 3, 6), {}),
        (HashRouter(4, 2, 5, **policy), (2, 3, 6), {"token_ids": TOKENS}),
        (DeepSeekMoE(ExpertRouter(4, 2, **policy), 4, **policy), (2, 3, 6), {}),
        (
            DeepSeekMoE(ExpertRouter(4, 2, **policy), 4, capacity_factor=2.0, **policy),
            (2, 3, 6),
            {},
        ),
        (RotaryEmbedding(**policy), (2, 3, 6), {}),
        (ResidualStreamExpansion(2, **policy), (2, 3, 6), {}),
        (ResidualStreamCollapse(**policy), (2, 3, 2, 6), {}),
        (
            ManifoldConstrainedHyperConnections(inner, **policy),
            (2, 3, 2, 6),
            {},
        ),
        (ChunkedCrossEntropy(5, **policy), (2, 3, 6), {"targets": TOKENS}),
        (MaskedPositionHead(5, **policy), (2, 3, 6), {"mask_positions": TOKENS}),
        (
            MultiTokenPrediction(inner, embedding, head, **policy),
            (2, 3, 6),
            {"token_ids": TOKENS},
        ),
    ]


@pytest.mark.parametrize("index", range(12))
def test_inputs_that_are_no_floats_are_refused_before_and_after_it_is_built(index):
    layer, shape, arguments = make_layers()[index]
    integers = np.ones(shape, "int32")
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=f"{layer.name!r} expects .* received int32"):
            layer(integers, **arguments)
        with pytest.raises(InvalidInputError, match=f"{layer.name!r} expects .* received int32"):
            layer(keras.Input(shape[1:], dtype="int32"))
        with pytest.raises(InvalidInputError, match=f"{layer.name!r} expects .* received None"):
            layer(None, **arguments)
        with pytest.raises(InvalidInputError, match=f"{layer.name!r} expects .* received None"):
            layer(inputs=None, **arguments)
        layer(integers.astype("float32"), **arguments)


def test_a_call_without_inputs_is_keras_own_error():
    with pytest.raises(TypeError, match="inputs"):
        SwiGLU(4)()


def test_further_tensors_that_are_missing_are_named():
    inputs = np.ones((2, 3, 6), "float32")
    prediction = MultiTokenPrediction(
        SwiGLU(4), keras.layers.Embedding(5, 6), keras.layers.Dense(5)
    )
    for hidden in (inputs, keras.Input((3, 6))):
        with pytest.raises(InvalidInputError, match=r"`token_ids` must be a tensor .* None"):
            prediction(hidden, None)


def test_a_hash_router_refuses_token_ids_that_are_floats():
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers, received float32"):
        HashRouter(4, 2, 5)(np.ones((2, 3, 6), "float32"), np.ones((2, 3), "float32"))


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="It has no float64 unless asked to.")
@pytest.mark.parametrize("index", range(12))
def test_float64_is_kept_throughout(index):
    layer, shape, arguments = make_layers("float64")[index]
    rng = np.random.default_rng(0)
    inputs, step = rng.normal(size=(2, *shape))

    def compute(factor):
        outputs = keras.tree.flatten(layer(inputs + factor * 1e-9 * step, **arguments))[0]
        assert keras.backend.standardize_dtype(outputs.dtype) == "float64"
        return keras.ops.convert_to_numpy(outputs)

    once, twice = compute(1) - compute(0), compute(2) - compute(0)
    # The first rotates in float32, whatever the dtype policy. The others have norms of Keras, which
    # compute in float32 on PyTorch.
    if not isinstance(layer, RotaryEmbedding | MaskedPositionHead | MultiTokenPrediction):
        # Where anything is rounded to float32 on the way, steps so small are lost or too large.
        assert once.any()
        np.testing.assert_allclose(twice, 2 * once, atol=1e-4 * np.abs(once).max())
