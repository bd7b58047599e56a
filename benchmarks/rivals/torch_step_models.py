"""Models in two forms with the same weights: in Keras and in plain PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from torch import nn

NUM_CLASSES, VOCABULARY = 5, 1000
LENGTH, FEATURES, UNITS = 50, 32, 64  # Of the recurrent models.


@dataclass(frozen=True)
class Form:
    """A model in two forms, and its inputs.

    Args:
        build: Function that returns the Keras model. Its `made` are its layers with weights, in the
            order in which the module makes its own.
        module: Function that returns the module.
        make_inputs: Function of a generator and a number of rows.
        batch_size: integer. The rows of a batch. Defaults to `32`.
    """

    build: Callable[[], keras.Model]
    module: Callable[[], nn.Module]
    make_inputs: Callable[[np.random.Generator, int], Any]
    batch_size: int = 32


def copy_weights(model: keras.Model, module: nn.Module) -> None:
    """Copies a model's weights to the module of the same form."""
    parts = [part for part in module.modules() if type(part) in CONVERSIONS]
    for layer, part in zip(model.made, parts, strict=True):
        tensors = CONVERSIONS[type(part)]([torch.from_numpy(w) for w in layer.get_weights()])
        names = [name for name in part.state_dict() if name != "num_batches_tracked"]
        part.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)


def _attention(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    query, query_bias, key, key_bias, value, value_bias, output, output_bias = weights
    dim = query.shape[0]
    kernels = [kernel.reshape(dim, dim).T for kernel in (query, key, value)]
    biases = [bias.flatten() for bias in (query_bias, key_bias, value_bias)]
    return [torch.cat(kernels), torch.cat(biases), output.reshape(dim, dim).T, output_bias]


def _lstm(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    kernel, recurrent_kernel, bias, *of_other_direction = weights
    converted = [kernel.T, recurrent_kernel.T, bias, torch.zeros_like(bias)]
    return [*converted, *(_lstm(of_other_direction) if of_other_direction else [])]


def _gru(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    def put_reset_first(weight: torch.Tensor) -> torch.Tensor:
        update, reset, new = weight.chunk(3, dim=-1)
        return torch.cat([reset, update, new], dim=-1)

    kernel, recurrent_kernel, biases = map(put_reset_first, weights)
    return [kernel.T, recurrent_kernel.T, *biases]


def _convolution(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    kernel, *bias = weights
    if kernel.shape[-1] == 1 < kernel.shape[-2] and kernel.shape[0] > 1:  # A depthwise one.
        kernel = kernel.transpose(2, 3)
    return [kernel.permute(3, 2, 0, 1), *bias]


CONVERSIONS: dict[type, Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]] = {
    nn.Linear: lambda weights: [weights[0].T, *weights[1:]],
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: lambda weights: [weights[0].permute(3, 2, 0, 1), *weights[1:]],
    nn.BatchNorm2d: lambda weights: weights,
    nn.LayerNorm: lambda weights: weights,
    nn.Embedding: lambda weights: weights,
    nn.MultiheadAttention: _attention,
    nn.LSTM: _lstm,
    nn.GRU: _gru,
}
"""Functions that turn a Keras layer's weights into those of a module, in its order."""


class Made(list[keras.Layer]):
    """The layers of a Keras model, in the order in which they are made."""

    def __call__(self, layer: keras.Layer) -> keras.Layer:
        self.append(layer)
        return layer

    def model(self, inputs: Any, outputs: Any) -> keras.Model:
        model = keras.Model(inputs, outputs)
        object.__setattr__(model, "made", self)
        return model


def _build_cnn() -> keras.Model:
    make = Made()
    x = inputs = keras.Input((12, 12, 3), name="x")
    for _ in range(2):
        x = make(layers.Conv2D(24, 3, padding="same", activation="relu"))(x)
    x = layers.GlobalAveragePooling2D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(x))


class PlainCnn(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(dim, 24, 3, padding=1) for dim in (3, 24))
        self.head = nn.Linear(24, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((2, 3)))


RESNET_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Width and first stride of the stages of ResNet-18. Each has two blocks."""


def _build_resnet() -> keras.Model:
    make = Made()

    def convolve(x: Any, width: int, size: int, stride: int) -> Any:
        # As Keras's own ResNets: with a stride, "same" pads other sides than PyTorch does.
        padding = "same" if stride == 1 else "valid"
        if stride > 1 and size > 1:
            x = layers.ZeroPadding2D(size // 2)(x)
        x = make(layers.Conv2D(width, size, stride, padding, use_bias=False))(x)
        return make(layers.BatchNormalization(epsilon=1e-5, momentum=0.9))(x)

    inputs = keras.Input((16, 16, 3), name="x")
    x = layers.ReLU()(convolve(inputs, 64, 3, 1))
    for width, first_stride in RESNET_STAGES:
        for stride in (first_stride, 1):
            y = layers.ReLU()(convolve(x, width, 3, stride))
            y = convolve(y, width, 3, 1)
            if x.shape[-1] != width:
                x = convolve(x, width, 1, stride)
            x = layers.ReLU()(x + y)
    x = layers.GlobalAveragePooling2D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(x))


class PlainConvolution(nn.Sequential):
    """A convolution with batch normalization."""

    def __init__(self, dim: int, width: int, size: int, stride: int) -> None:
        convolution = nn.Conv2d(dim, width, size, stride, padding=size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(width))


class PlainBlock(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, dim: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = PlainConvolution(dim, width, 3, stride)
        self.second = PlainConvolution(width, width, 3, 1)
        self.shortcut = nn.Identity()
        if dim != width:
            self.shortcut = PlainConvolution(dim, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class PlainResnet(nn.Module):
    """ResNet-18 for small images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PlainConvolution(3, 64, 3, 1)
        blocks, dim = [], 64
        for width, first_stride in RESNET_STAGES:
            blocks += [PlainBlock(dim, width, first_stride), PlainBlock(width, width, 1)]
            dim = width
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(dim, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def _build_encoder(length: int, dim: int, num_heads: int, num_layers: int) -> keras.Model:
    make, ids = Made(), keras.Input((length,), dtype="int32", name="x")
    positions = keras.ops.cumsum(keras.ops.ones_like(ids), axis=1) - 1
    x = make(layers.Embedding(VOCABULARY, dim))(ids)
    x = x + make(layers.Embedding(length, dim))(positions)
    for _ in range(num_layers):
        attention = make(layers.MultiHeadAttention(num_heads, dim // num_heads))
        hidden, output = make(layers.Dense(4 * dim, "gelu")), make(layers.Dense(dim))
        norms = [make(layers.LayerNormalization(epsilon=1e-5)) for _ in range(2)]
        x = norms[0](x + attention(x, x))
        x = norms[1](x + output(hidden(x)))
    x = layers.GlobalAveragePooling1D()(x)
    return make.model(ids, make(layers.Dense(NUM_CLASSES))(x))


class PlainEncoder(nn.Module):
    """A transformer that classifies tokens, of BERT's shape."""

    def __init__(self, length: int, dim: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, dim), nn.Embedding(length, dim)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, num_heads, 4 * dim, **options)
            for _ in range(num_layers)
        )
        self.head = nn.Linear(dim, NUM_CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def _build_recurrent(layer_class: type[keras.Layer]) -> keras.Model:
    make, inputs = Made(), keras.Input((LENGTH, FEATURES), name="x")
    x = make(layer_class(UNITS, return_sequences=True))(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return make.model(inputs, make(layers.Dense(NUM_CLASSES))(x))


class PlainRecurrent(nn.Module):
    """A recurrent layer, the mean of its steps, and a head."""

    def __init__(self, module_class: type[nn.Module]) -> None:
        super().__init__()
        self.recurrent = module_class(FEATURES, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0].mean(1))


def make_floats(*shape: int) -> Callable[[np.random.Generator, int], Any]:
    """Returns a function of a generator and a number of rows that draws normal numbers."""
    return lambda rng, rows: rng.normal(size=(rows, *shape)).astype("float32")


def _encoder(*sizes: int) -> Form:
    def make_ids(rng: np.random.Generator, rows: int) -> Any:
        return rng.integers(0, VOCABULARY, (rows, sizes[0])).astype("int32")

    return Form(lambda: _build_encoder(*sizes), lambda: PlainEncoder(*sizes), make_ids)


def _recurrent(layer_class: type[keras.Layer], module_class: type[nn.Module]) -> Form:
    return Form(
        lambda: _build_recurrent(layer_class),
        lambda: PlainRecurrent(module_class),
        make_floats(LENGTH, FEATURES),
    )


def _build_bidirectional() -> keras.Model:
    make, ids = Made(), keras.Input((LENGTH,), dtype="int32", name="x")
    x = make(layers.Embedding(VOCABULARY, UNITS))(ids)
    x = make(layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)))(x)
    return make.model(ids, make(layers.Dense(NUM_CLASSES))(layers.GlobalAveragePooling1D()(x)))


class PlainBidirectional(nn.Module):
    """A bidirectional LSTM over embedded tokens, the mean of its steps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, UNITS)
        self.recurrent = nn.LSTM(UNITS, UNITS, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * UNITS, NUM_CLASSES)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.tokens(ids))[0].mean(1))


def _ids(rng: np.random.Generator, rows: int) -> Any:
    return rng.integers(0, VOCABULARY, (rows, LENGTH)).astype("int32")


MODELS = {
    "CNN": Form(_build_cnn, PlainCnn, make_floats(12, 12, 3)),
    "transformer": _encoder(24, 64, 4, 4),
    "ResNet-18": Form(_build_resnet, PlainResnet, make_floats(16, 16, 3)),
    "LSTM": _recurrent(layers.LSTM, nn.LSTM),
    "GRU": _recurrent(layers.GRU, nn.GRU),
    "bidirectional LSTM": Form(_build_bidirectional, PlainBidirectional, _ids, 16),
    "BERT-small": _encoder(32, 512, 8, 4),
}
"""The models by name."""
