"""SwiGLU, the feed-forward block of DeepSeek's models and most language models since Llama."""

import math
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.layers.double_precision import call_dense
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, read_last_dim


@keras.saving.register_keras_serializable("keras_deepseek")
class SwiGLU(FloatingInputLayer):
    """A feed-forward block whose hidden activations are gated by a SiLU of the same input.

    Choose it in place of the two-layer perceptron of a Transformer block. It has three kernels
    instead of two, so use two thirds of the usual `intermediate_dim` for the same number of
    parameters. It computes

    ```
    output = down(silu(gate(x)) * up(x))          silu(z) = z * sigmoid(z)
    ```

    where `gate` and `up` project the last axis to `intermediate_dim`, and `down` projects it back.
    With a `clamp` of `c`, as in DeepSeek-V4, activations stay bounded:

    ```
    output = down(silu(min(gate(x), c)) * clip(up(x), -c, c))
    ```

    Every position is transformed by itself, so a mask is passed on and a decoder caches nothing.
    `gate`, `up` and `down` are `keras.layers.Dense` layers: each has `enable_lora`, and a
    `keras.distribution.LayoutMap` can match `.../gate/kernel`, `.../up/kernel` and
    `.../down/kernel`.

    Args:
        intermediate_dim: integer. Size of the hidden, gated activations.
        use_bias: boolean. If true, each of the three projections adds a bias. Defaults to `False`.
        clamp: float or `None`. Bound of the hidden activations, as above. `None` sets no bound.
            Defaults to `None`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            three kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the three
            biases. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype.

    Raises:
        InvalidInputError: `intermediate_dim` or `clamp` is not positive, or the inputs are not
            floating-point, have no axis besides the batch, or a last axis of unknown size.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import SwiGLU
    >>> layer = SwiGLU(intermediate_dim=32, clamp=10.0)
    >>> tuple(layer(np.ones((2, 5, 12), "float32")).shape)
    (2, 5, 12)

    Reference:

    - [GLU Variants Improve Transformer (Shazeer, 2020)](https://arxiv.org/abs/2002.05202)
    - [DeepSeek-V3 Technical Report (DeepSeek-AI, 2024)](https://arxiv.org/abs/2412.19437)
    """

    def __init__(
        self,
        intermediate_dim: int,
        *,
        use_bias: bool = False,
        clamp: float | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = check_integer("intermediate_dim", intermediate_dim)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.clamp = None if clamp is None else check_number("clamp", clamp, above=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(self, input_shape)
        self.gate = self._make_projection(self.intermediate_dim, "gate")
        self.up = self._make_projection(self.intermediate_dim, "up")
        self.down = self._make_projection(dim, "down")
        self.gate.build(input_shape)
        self.up.build(input_shape)
        self.down.build((*input_shape[:-1], self.intermediate_dim))

    def _make_projection(self, units: int, name: str) -> keras.layers.Dense:
        return keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, inputs: Any) -> Any:
        gate, up = call_dense(self.gate, inputs), call_dense(self.up, inputs)
        return call_dense(self.down, gate_activations(gate, up, self.clamp))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "use_bias": self.use_bias,
            "clamp": self.clamp,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def gate_activations(gate: Any, up: Any, clamp: float | None) -> Any:
    """Returns the hidden activations of a SwiGLU, silu(gate) * up, clipped to `clamp` if given."""
    if clamp is not None:
        gate = ops.clip(gate, -math.inf, clamp)  # `minimum` would return float32 on PyTorch.
        up = ops.clip(up, -clamp, clamp)
    return ops.silu(gate) * up
