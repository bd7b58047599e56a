"""Hyper-connections of DeepSeek-V4: several residual streams around each sub-layer."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.layers.double_precision import multiply_matrices
from keras_deepseek.layers.inner_layers import (
    build_layer,
    call_layer,
    check_call_arguments,
    check_kept_shape,
    revive_layer,
    serialize_layer,
)
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape
from keras_deepseek.layers.residual.stream_weights import (
    add_stream_weights,
    check_streams,
    normalize_doubly,
    project_streams,
    read_stream_weights,
    sum_streams,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class ManifoldConstrainedHyperConnections(FloatingInputLayer):
    """Wraps a layer in the hyper-connections of mHC, which replace `x + layer(x)`.

    Choose it for deep models. A token has `n` residual streams instead of one vector. Each wrapped
    layer computes from the streams how to read from them, how to write to them, and how to mix
    them. For the streams `x` of a token, a matrix of `n` rows,

    ```
    a, b, c = split(rms_norm(flatten(x)) @ kernel)          n, n and n * n numbers
    pre  = sigmoid(scale[0] * a + bias_a) + stream_epsilon
    post = 2 * sigmoid(scale[1] * b + bias_b)
    comb = sinkhorn(softmax(scale[2] * c + bias_c) + stream_epsilon)
    output = outer(post, layer(pre @ x)) + transpose(comb) @ x
    ```

    The Sinkhorn-Knopp rounds make rows and columns of `comb` sum to 1. The streams are therefore
    averaged and never amplified, however deep the model is. All three weights are always computed
    in float32 or better.

    `ResidualStreamExpansion` expands a vector to streams, and `ResidualStreamCollapse` does the
    reverse:

    ```
    x = ResidualStreamExpansion(4)(embedding(tokens))
    for _ in range(depth):
        x = ManifoldConstrainedHyperConnections(keras.Sequential([norm(), attention()]))(x)
        x = ManifoldConstrainedHyperConnections(keras.Sequential([norm(), feed_forward()]))(x)
    x = ResidualStreamCollapse()(x)
    ```

    The wrapped layer maps `(batch_size, ..., dim)` to the same shape. It gets the mask, one entry a
    token, if it takes one; the mask is also passed on. A `Sequential` passes a mask only through
    layers that support masks: set `supports_masking` of `keras.layers.RMSNormalization`. Further
    outputs of the layer, such as a cache, are returned after the streams; a `Sequential` can't take
    a cache. Your own block may instead call the two halves, `collapse` and `merge`.

    In a checkpoint, `kernel` is `fn` transposed, and `bias` is `base`.

    Args:
        layer: `keras.Layer` or its serialized config.
        sinkhorn_iterations: integer. The number of rounds. Defaults to `20`.
        stream_epsilon: float. Added to `pre`, `comb` and the sums in the rounds. Defaults to
            `1e-6`.
        epsilon: float. Added to the mean square in the norm. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., num_streams, dim)`.
        mask: Boolean tensor of shape `(batch_size, ...)`, or `None` to use the mask of `inputs`.
        training: boolean. Passed to the wrapped layer. token_ids, positions, cache, cache_index:
            Passed to the wrapped layer if not `None`.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        A tensor of the shape of `inputs`, in the layer's compute dtype. If the wrapped layer
        returns several outputs, a tuple of that tensor and the other outputs.

    Raises:
        InvalidInputError: `layer` is not a layer; `sinkhorn_iterations` is not positive; the inputs
            are not floating-point, have another shape, or have fewer than two streams; the layer
            changes the shape of its inputs; or the layer does not take an argument of the call.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import ManifoldConstrainedHyperConnections, SwiGLU
    >>> layer = ManifoldConstrainedHyperConnections(SwiGLU(16))
    >>> tuple(layer(np.ones((2, 5, 4, 12), "float32")).shape)
    (2, 5, 4, 12)

    Reference:

    - [mHC: Manifold-Constrained Hyper-Connections (Xie et al., 2025)](
      https://arxiv.org/abs/2512.24880)
    - [Hyper-Connections (Zhu et al., 2024)](https://arxiv.org/abs/2409.19606)
    """

    def __init__(
        self,
        layer: Any,
        *,
        sinkhorn_iterations: int = 20,
        stream_epsilon: float = 1e-6,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.layer = revive_layer("layer", layer)
        self.sinkhorn_iterations = check_integer("sinkhorn_iterations", sinkhorn_iterations)
        self.stream_epsilon = check_number("stream_epsilon", stream_epsilon, minimum=0)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        num_streams, dim = check_streams(self.name, input_shape)
        units = (2 + num_streams) * num_streams
        add_stream_weights(self, input_shape, units, num_scales=3)
        build_layer(self.layer, (*input_shape[:-2], dim), self.compute_dtype)

    def collapse(self, inputs: Any) -> tuple[Any, Any, Any]:
        """Returns the input of the sub-layer, and the two weights for `merge`.

        Args:
            inputs: Tensor of shape `(batch_size, ..., num_streams, dim)`, the streams.

        Returns:
            The collapsed streams, of shape `(batch_size, ..., dim)`; `post`, the factor by which
            the output is added to each stream, of shape `(batch_size, ..., num_streams)`; `comb`,
            which mixes the old streams, of `(batch_size, ..., num_streams, num_streams)`.
        """
        num_streams = inputs.shape[-2]
        kernel, bias, scale = read_stream_weights(self)
        logits = project_streams(inputs, kernel, self.epsilon)
        parts = [num_streams, 2 * num_streams]
        pre, post, comb = (
            part * scale[index] + part_bias
            for index, (part, part_bias) in enumerate(
                zip(ops.split(logits, parts, axis=-1), ops.split(bias, parts), strict=True)
            )
        )
        pre = ops.sigmoid(pre) + self.stream_epsilon
        post = 2 * ops.sigmoid(post)
        comb = ops.reshape(comb, (*ops.shape(comb)[:-1], num_streams, num_streams))
        comb = ops.softmax(comb, axis=-1) + self.stream_epsilon
        comb = normalize_doubly(comb, self.sinkhorn_iterations, self.stream_epsilon)
        return sum_streams(inputs, pre), post, comb

    def merge(self, outputs: Any, inputs: Any, post: Any, comb: Any) -> Any:
        """Returns the new streams, from the output of the sub-layer and the old streams.

        Args:
            outputs: Tensor of shape `(batch_size, ..., dim)`, the output of the sub-layer.
            inputs: Tensor of shape `(batch_size, ..., num_streams, dim)`, the streams.
            post: Tensor of shape `(batch_size, ..., num_streams)`. The factor by which the output
                is added to each stream.
            comb: Tensor of shape `(batch_size, ..., num_streams, num_streams)`. The weight of each
                old stream (row) in each new one (column).
        """
        check_kept_shape(self.name, self.layer, outputs, _collapsed_shape(inputs))
        outputs, post, comb = (ops.cast(part, inputs.dtype) for part in (outputs, post, comb))
        written = ops.expand_dims(post, -1) * ops.expand_dims(outputs, -2)
        return written + multiply_matrices(ops.swapaxes(comb, -1, -2), inputs)

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool | None = None,
        token_ids: Any = None,
        positions: Any = None,
        cache: Any = None,
        cache_index: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        arguments = _present_arguments(token_ids, positions, cache, cache_index)
        collapsed, post, comb = self.collapse(inputs)
        outputs = call_layer(self.layer, collapsed, mask, **arguments)
        if isinstance(outputs, tuple | list):
            return self.merge(outputs[0], inputs, post, comb), *outputs[1:]
        return self.merge(outputs, inputs, post, comb)

    def compute_output_spec(
        self,
        inputs: Any,
        mask: Any = None,
        training: bool | None = None,
        token_ids: Any = None,
        positions: Any = None,
        cache: Any = None,
        cache_index: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        arguments = _present_arguments(token_ids, positions, cache, cache_index)
        check_call_arguments(self.layer, arguments)
        collapsed = keras.KerasTensor(_collapsed_shape(inputs), self.compute_dtype)
        outputs = self.layer.compute_output_spec(collapsed, **arguments)
        streams = keras.KerasTensor(inputs.shape, self.compute_dtype)
        has_more = isinstance(outputs, tuple | list)
        read = outputs[0] if has_more else outputs
        check_kept_shape(self.name, self.layer, read, collapsed.shape)
        return (streams, *outputs[1:]) if has_more else streams

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer": serialize_layer(self.layer),
            "sinkhorn_iterations": self.sinkhorn_iterations,
            "stream_epsilon": self.stream_epsilon,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _collapsed_shape(streams: Any) -> Shape:
    """Returns the shape of a wrapped layer's input and output: one stream instead of several."""
    return (*streams.shape[:-2], streams.shape[-1])


def _present_arguments(
    token_ids: Any, positions: Any, cache: Any, cache_index: Any
) -> dict[str, Any]:
    """Returns the call arguments that are not `None`, to pass only these to the wrapped layer."""
    arguments = {
        "token_ids": token_ids,
        "positions": positions,
        "cache": cache,
        "cache_index": cache_index,
    }
    return {name: value for name, value in arguments.items() if value is not None}
