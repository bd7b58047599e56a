"""A layer that expands hidden states to several residual streams."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape


@keras.saving.register_keras_serializable("keras_deepseek")
class ResidualStreamExpansion(FloatingInputLayer):
    """Gives each token several residual streams, all equal at first.

    Choose it between the embedding of a model and its first `ManifoldConstrainedHyperConnections`.
    It has no weights, and a mask is passed on.

    Args:
        num_streams: integer. The number of streams. Defaults to `4`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.

    Returns:
        A tensor of shape `(batch_size, ..., num_streams, dim)`.

    Raises:
        InvalidInputError: `num_streams` is not positive, or the inputs are not floating-point.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import ResidualStreamExpansion
    >>> tuple(ResidualStreamExpansion(4)(np.ones((2, 5, 12), "float32")).shape)
    (2, 5, 4, 12)

    Reference:

    - [Hyper-Connections (Zhu et al., 2024)](https://arxiv.org/abs/2409.19606)
    """

    def __init__(self, num_streams: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_streams = check_integer("num_streams", num_streams)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self.input_spec = keras.InputSpec(min_ndim=2)

    def call(self, inputs: Any) -> Any:
        return ops.repeat(ops.expand_dims(inputs, -2), self.num_streams, axis=-2)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.num_streams, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_streams": self.num_streams}
