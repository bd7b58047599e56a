"""Compression of a block of keys or values to a single vector, for `NativeSparseAttention`."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.layers.attention.head_projection import make_projection
from keras_deepseek.layers.input_check import Shape


class BlockCompression(keras.Layer):
    """A perceptron that compresses a block of tokens, with a learned vector for each position.

    ```
    output = down(silu(up(flatten(block + positions))))
    ```

    Heads share the kernels and have separate positions. `hidden_dim` is the size between the two
    kernels. Inputs are `(batch_size, num_heads, num_blocks, block_size, dim)`, outputs
    `(batch_size, num_blocks, num_heads, dim)`.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer

    def build(self, input_shape: Shape) -> None:
        _, num_heads, _, block_size, dim = input_shape
        self.positions = self.add_weight(
            name="positions",
            shape=(num_heads, block_size, dim),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.up = make_projection(
            self, "up", (None, self.hidden_dim), equation="bgntd,tdh->bngh", bias_axes="h"
        )
        self.down = make_projection(
            self, "down", (None, dim), equation="bngh,hd->bngd", bias_axes="d"
        )
        self.up.build(input_shape)
        self.down.build((None, None, num_heads, self.hidden_dim))

    def call(self, inputs: Any) -> Any:
        positions = ops.cast(ops.expand_dims(self.positions, 1), inputs.dtype)
        return self.down(ops.silu(self.up(inputs + positions)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch_size, num_heads, num_blocks, _, dim = input_shape
        return batch_size, num_blocks, num_heads, dim
