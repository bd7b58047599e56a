"""A layer that merges several residual streams into one hidden state."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_number
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape
from keras_deepseek.layers.residual.stream_weights import (
    add_stream_weights,
    check_streams,
    project_streams,
    read_stream_weights,
    sum_streams,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class ResidualStreamCollapse(FloatingInputLayer):
    """Combines the residual streams of each token into one vector.

    Choose it after the last `ManifoldConstrainedHyperConnections` and before the final norm, as in
    DeepSeek-V4. It computes

    ```
    weights = sigmoid(scale * (rms_norm(flatten(streams)) @ kernel) + bias) + stream_epsilon
    output = sum over the streams of weights[i] * streams[i]
    ```

    The weights are always computed in float32 or better. Each token is transformed by itself, and a
    mask is passed on.

    In a checkpoint, `kernel` is `hc_head.hc_fn` transposed, `bias` is `hc_base`, and `scale` is
    `hc_scale`.

    Args:
        stream_epsilon: float. Added to the weights. Defaults to `1e-6`.
        epsilon: float. Added to the mean square in the norm. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., num_streams, dim)`.

    Returns:
        A tensor of shape `(batch_size, ..., dim)`, in the layer's compute dtype.

    Raises:
        InvalidInputError: The inputs are not floating-point, have another shape, or have fewer than
            two streams.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import ResidualStreamCollapse
    >>> tuple(ResidualStreamCollapse()(np.ones((2, 5, 4, 12), "float32")).shape)
    (2, 5, 12)

    Reference:

    - [mHC: Manifold-Constrained Hyper-Connections (Xie et al., 2025)](
      https://arxiv.org/abs/2512.24880)
    """

    def __init__(
        self,
        *,
        stream_epsilon: float = 1e-6,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stream_epsilon = check_number("stream_epsilon", stream_epsilon, minimum=0)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        num_streams, _ = check_streams(self.name, input_shape)
        add_stream_weights(self, input_shape, units=num_streams, num_scales=1)

    def call(self, inputs: Any) -> Any:
        kernel, bias, scale = read_stream_weights(self)
        logits = project_streams(inputs, kernel, self.epsilon) * scale + bias
        return sum_streams(inputs, ops.sigmoid(logits) + self.stream_epsilon)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-2], input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "stream_epsilon": self.stream_epsilon,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
