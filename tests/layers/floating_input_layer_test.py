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


def make_layers():
    """Returns each layer with the shape of its inputs and what it takes beside them."""
    embedding = keras.layers.Embedding(5, 6)
    return [
        (SwiGLU(4), (2, 3, 6), {}),
        (ExpertRouter(4, 2), (2, 3, 6), {}),
        (HashRouter(4, 2, 5), (2, 3, 6), {"token_ids": TOKENS}),
        (DeepSeekMoE(ExpertRouter(4, 2), 4), (2, 3, 6), {}),
        (RotaryEmbedding(), (2, 3, 6), {}),
        (ResidualStreamExpansion(2), (2, 3, 6), {}),
        (ResidualStreamCollapse(), (2, 3, 2, 6), {}),
        (ManifoldConstrainedHyperConnections(SwiGLU(4)), (2, 3, 2, 6), {}),
        (ChunkedCrossEntropy(5), (2, 3, 6), {"targets": TOKENS}),
        (MaskedPositionHead(5), (2, 3, 6), {"mask_positions": TOKENS}),
        (
            MultiTokenPrediction(SwiGLU(4), embedding, keras.layers.Dense(5)),
            (2, 3, 6),
            {"token_ids": TOKENS},
        ),
    ]


@pytest.mark.parametrize("index", range(11))
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
    for layer, name in ((MaskedPositionHead(5), "mask_positions"), (prediction, "token_ids")):
        for given in (inputs, keras.Input((3, 6))):
            with pytest.raises(InvalidInputError, match=f"`{name}` must be a tensor .* None"):
                layer(given, None)


def test_a_hash_router_refuses_token_ids_that_are_floats():
    with pytest.raises(InvalidInputError, match="`token_ids` must be integers, received float32"):
        HashRouter(4, 2, 5)(np.ones((2, 3, 6), "float32"), np.ones((2, 3), "float32"))
