"""Writes the real models that `serving.py --models` serves: `write_models.py FOLDER`.

`dense.onnx`, three layers; `residual.onnx`, a convolutional network of residual blocks for images
of 28 x 28; `attention.onnx`, two blocks of this package's latent attention over 32 places. Random
weights, exported by this package from the backend that is set. Each takes one row of numbers.
"""

import sys
from pathlib import Path

import keras
from keras import layers

from keras_deepseek.deploy import Exporter
from keras_deepseek.layers import MultiHeadLatentAttention, RotaryEmbedding, SwiGLU


def make_dense() -> keras.Model:
    """Returns a network that costs little beside its requests."""
    inputs = keras.Input((16,), name="x")
    x = inputs
    for _ in range(3):
        x = layers.Dense(256, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(16)(x))


def make_residual() -> keras.Model:
    """Returns a convolutional network."""
    inputs = keras.Input((784,), name="x")
    x = layers.Conv2D(32, 3, strides=2, padding="same")(layers.Reshape((28, 28, 1))(inputs))
    for _ in range(4):
        y = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
        x = layers.Activation("relu")(layers.Add()([x, layers.Conv2D(32, 3, padding="same")(y)]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def make_attention() -> keras.Model:
    """Returns blocks of attention."""
    inputs = keras.Input((32 * 16,), name="x")
    x = layers.Dense(64)(layers.Reshape((32, 16))(inputs))
    for _ in range(2):
        attention = MultiHeadLatentAttention(
            4,
            nope_head_dim=16,
            rope_head_dim=8,
            value_head_dim=16,
            key_value_lora_rank=32,
            rotary=RotaryEmbedding(use_interleaved_pairs=True),
            use_causal_mask=True,
        )
        x = layers.Add()([x, attention(layers.LayerNormalization()(x))])
        x = layers.Add()([x, SwiGLU(128)(layers.LayerNormalization()(x))])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    makers = {"dense": make_dense, "residual": make_residual, "attention": make_attention}
    for name, make in makers.items():
        print(Exporter(make(), backend="onnx").export(folder / f"{name}.onnx").path)


if __name__ == "__main__":
    main()
