"""Uses of Keras's layers and ours, for tests of graphs: a layer and its inputs by class name."""

from typing import Any

import keras
import numpy as np
from keras import layers

import keras_deepseek.layers
from tests.oracles.attention_layers import ATTENTIONS, make_attention
from tests.oracles.deepseek_v4_layers import DIM

ARGUMENTS: dict[str, dict[str, Any]] = {
    "Activation": {"activation": "gelu"},
    "AdaptiveAveragePooling1D": {"output_size": 2},
    "AdaptiveAveragePooling2D": {"output_size": 2},
    "AdaptiveAveragePooling3D": {"output_size": 2},
    "AdaptiveMaxPooling1D": {"output_size": 2},
    "AdaptiveMaxPooling2D": {"output_size": 2},
    "AdaptiveMaxPooling3D": {"output_size": 2},
    "AveragePooling1D": {"pool_size": 2},
    "AveragePooling2D": {"pool_size": 2},
    "AveragePooling3D": {"pool_size": 2},
    "CategoryEncoding": {"num_tokens": 9},
    "CenterCrop": {"height": 2, "width": 2},
    "Discretization": {"bin_boundaries": [-0.5, 0.5]},
    "Dot": {"axes": 1},
    "EinsumDense": {"equation": "abc,cd->abd", "output_shape": (None, 3)},
    "Embedding": {"input_dim": 9, "output_dim": 4},
    "GroupQueryAttention": {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2},
    "GroupNormalization": {"groups": 2},
    "Hashing": {"num_bins": 5},
    "IntegerLookup": {"vocabulary": [1, 2, 3]},
    "Lambda": {"function": lambda x: x * 2},
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3},
    "Permute": {"dims": (2, 1)},
    "RandomCrop": {"height": 2, "width": 2},
    "RandomRotation": {"factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
    "RandomShear": {"x_factor": 0.1},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RepeatVector": {"n": 3},
    "Rescaling": {"scale": 0.5},
    "Reshape": {"target_shape": (-1,)},
    "Resizing": {"height": 3, "width": 3},
    "ReversibleEmbedding": {"input_dim": 9, "output_dim": 4},
    "SpectralNormalization": {"layer": lambda: layers.Dense(3)},
    "TimeDistributed": {"layer": lambda: layers.Dense(3)},
    "Bidirectional": {"layer": lambda: layers.GRU(3)},
    "RNN": {"cell": lambda: layers.LSTMCell(3)},
    "UnitNormalization": {},
}
"""Arguments that a class needs. A function makes a new layer to wrap."""

MERGING = ("Add", "Average", "Concatenate", "Dot", "Maximum", "Minimum", "Multiply", "Subtract")
TOKENS = ("Embedding", "ReversibleEmbedding", "IntegerLookup", "Hashing", "CategoryEncoding")
ABSTRACT = (
    "Layer",
    "MaxNumBoundingBoxes",
    "Wrapper",
    "InputLayer",
    "StackedRNNCells",
    "TFSMLayer",
    "TorchModuleWrapper",
)
ABSTRACT += ("FlaxLayer", "JaxLayer", "Pipeline", "STFTSpectrogram", "MelSpectrogram")
TEXT = ("HashedCrossing", "StringLookup", "TextVectorization", "FeatureSpace")


OWN: dict[str, dict[str, Any]] = {
    "ChunkedCrossEntropy": {"vocabulary_size": 9, "chunk_size": 3},
    "DeepSeekMoE": {
        "router": lambda: keras_deepseek.layers.ExpertRouter(4, 2),
        "intermediate_dim": 5,
    },
    "ExpertRouter": {"num_experts": 4, "num_experts_per_token": 2},
    "HashRouter": {"num_experts": 4, "num_experts_per_token": 2, "vocabulary_size": 9},
    "LightningIndexer": {
        "num_heads": 2,
        "head_dim": 4,
        "rotary": lambda: keras_deepseek.layers.RotaryEmbedding(rotary_dim=2),
    },
    "ManifoldConstrainedHyperConnections": {"layer": lambda: keras_deepseek.layers.SwiGLU(5)},
    "MaskedPositionHead": {"vocabulary_size": 9},
    "MultiTokenPrediction": {
        "block": lambda: keras_deepseek.layers.SwiGLU(5),
        "token_embedding": lambda: layers.Embedding(9, DIM),
        "output_head": lambda: layers.Dense(9),
    },
    "ResidualStreamCollapse": {},
    "ResidualStreamExpansion": {"num_streams": 2},
    "RotaryEmbedding": {},
    "SampledSoftmax": {"vocabulary_size": 9, "num_negatives": 4},
    "SwiGLU": {"intermediate_dim": 5},
}
"""Arguments of our layers that are no attention. A function makes a new layer."""

WITH_TOKENS = (
    *("ChunkedCrossEntropy", "HashRouter", "MaskedPositionHead", "MultiTokenPrediction"),
    "SampledSoftmax",
)
"""Our layers that take integers beside the hidden states."""


def layer_names() -> list[str]:
    """Returns the names of Keras's layer classes that take numbers, and of ours."""
    class_names: dict[Any, str] = {}
    for name in sorted(dir(layers), key=len, reverse=True):  # The long one of several names.
        value = getattr(layers, name)
        if isinstance(value, type) and issubclass(value, keras.Layer):
            class_names.setdefault(value, name)
    return sorted(set(class_names.values()) - {*ABSTRACT, *TEXT}) + sorted([*OWN, *ATTENTIONS])


def make_layer(name: str) -> keras.Layer:
    """Returns a new layer of a class."""
    if name in ATTENTIONS:
        return make_attention(name)
    if name in OWN:
        layer_arguments = {
            key: value() if callable(value) else value for key, value in OWN[name].items()
        }
        own_layer: keras.Layer = getattr(keras_deepseek.layers, name)(**layer_arguments)
        return own_layer
    arguments = dict(ARGUMENTS.get(name, {}))
    takes_filters = ("Conv", "SeparableConv")
    if (name.startswith(takes_filters) and "LSTM" not in name) or name.startswith("ConvLSTM"):
        arguments |= {"filters": 3, "kernel_size": 2}
    elif name.startswith("Depthwise"):
        arguments |= {"kernel_size": 2}
    elif name in ("Dense", "LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell"):
        arguments |= {"units": 3}
    elif name.endswith(("Dropout", "Dropout1D", "Dropout2D", "Dropout3D")):
        arguments |= {"rate": 0.3}
    elif name == "GaussianNoise":
        arguments |= {"stddev": 0.3}
    elif name in ("RandomBrightness", "RandomContrast", "RandomHue", "RandomSaturation"):
        arguments |= {"factor": 0.2}
    elif name in ("RandomPosterization", "RandomColorDegeneration", "RandomSharpness"):
        arguments |= {"factor": 0.5 if name != "RandomPosterization" else 4}
    layer_arguments = {
        key: value() if key in ("layer", "cell") else value for key, value in arguments.items()
    }
    layer: keras.Layer = getattr(layers, name)(**layer_arguments)
    return layer


def make_inputs(name: str, random: np.random.Generator) -> list[Any]:  # noqa: PLR0911
    """Returns the inputs of a layer, as positional arguments of its call."""

    def draw(*shape: int) -> Any:
        return random.normal(size=shape).astype("float32")

    if name in ("ManifoldConstrainedHyperConnections", "ResidualStreamCollapse"):
        return [draw(2, 4, 2, DIM)]
    if name in OWN or name in ATTENTIONS:
        tokens = random.integers(0, 4, (2, 4)).astype("int32")
        return [draw(2, 4, DIM), tokens] if name in WITH_TOKENS else [draw(2, 4, DIM)]
    if name in TOKENS:
        return [random.integers(1, 4, (2, 4)).astype("int32")]
    if name in MERGING:
        return [[draw(2, 4), draw(2, 4)]]
    if name in ("Attention", "AdditiveAttention"):
        return [[draw(2, 4, 6), draw(2, 4, 6)]]
    if name in ("MultiHeadAttention", "GroupQueryAttention"):
        return [draw(2, 4, 6), draw(2, 4, 6)]
    if name in ("LSTMCell", "GRUCell", "SimpleRNNCell"):
        return [draw(2, 4), [draw(2, 3) for _ in range(2 if name == "LSTMCell" else 1)]]
    if name == "RepeatVector":
        return [draw(2, 4)]
    if name.startswith("ConvLSTM"):
        return [draw(2, 3, *([5] * int(name[-2])), 4)]
    is_image = name.startswith(
        ("Random", "CenterCrop", "Resizing", "AutoContrast", "Contrast", "Equal")
    )
    if is_image or name in ("MixUp", "CutMix", "RandAugment", "AugMix"):
        return [random.uniform(0, 255, (2, 16, 16, 3)).astype("float32")]
    if name == "Solarization":
        return [random.uniform(0, 255, (2, 16, 16, 3)).astype("float32")]
    rank = next((rank for rank in (1, 2, 3) if f"{rank}D" in name), 1)
    return [draw(2, *([5] * rank), 6)]
