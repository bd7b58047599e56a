"""Head of BERT's pre-training, which predicts masked tokens."""

import math
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.heads.vocabulary_head import VocabularyHead, project
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import (
    Shape,
    bound_indices,
    check_shape,
    check_tensor,
    is_shape,
    read_dim,
)
from keras_deepseek.layers.masks import check_mask


@keras.saving.register_keras_serializable("keras_deepseek")
class MaskedPositionHead(VocabularyHead):
    """Predicts the vocabulary at a few positions of each sequence.

    Choose it to train an encoder on masked tokens: it gathers only the masked positions, about one
    in seven, and projects them to the vocabulary. Its arguments are those of KerasHub's
    `MaskedLMHead`. For the hidden state `x` at a position,

    ```
    y = layer_norm(intermediate_activation(intermediate_dense(x)))
    output = activation(y @ kernel + bias)             kernel: that of token_embedding, transposed
    ```

    Sequences have different numbers of masked tokens. Pad `mask_positions` with `-1`: the outputs
    carry a mask that is false there, so Keras's losses give them a weight of zero. The same holds
    for positions that the mask of the inputs hides. `MaskedLMMaskGenerator` of KerasHub pads with 0
    instead, and returns weights for the `sample_weight` of `fit`; that works too.

    Without `mask_positions` it predicts at each position with the same weights, and passes on the
    mask of the inputs.

    Args:
        vocabulary_size: integer or `None`. The number of classes. `None` takes that of
            `token_embedding`. Defaults to `None`.
        token_embedding: `keras.layers.Embedding` or `None`. Its table is the kernel, as in BERT.
            `None` creates a kernel. Defaults to `None`.
        intermediate_activation: string or function. Activation of the dense layer; BERT's is
            `"gelu"`. Defaults to `"relu"`.
        activation: string, function or `None`. Activation of the outputs; `None` returns logits.
            Defaults to `None`.
        epsilon: float. Added to the variance in the norm; BERT's is `1e-12`. Defaults to
            `1e-5`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            biases. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
        mask_positions: Integer tensor of shape `(batch_size, masks_per_sequence)`, below `length`;
            negative for padding. At a position of `length` or more the outputs, and the loss, are
            NaN on every backend. `None` means all positions. Defaults to `None`.
        mask: Boolean tensor of shape `(batch_size, length)`, false at padding, or `None` to use the
            mask of `inputs`.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        A tensor of shape `(batch_size, masks_per_sequence, vocabulary_size)`, or `(batch_size,
        length, vocabulary_size)`, in the layer's compute dtype.

    Raises:
        InvalidInputError: There is neither a `vocabulary_size` nor a `token_embedding`, the inputs
            are not floating-point, positions are not integers, or a shape does not match.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import MaskedPositionHead
    >>> head = MaskedPositionHead(100, intermediate_activation="gelu")
    >>> positions = np.array([[1, 4], [2, -1]])
    >>> tuple(head(np.ones((2, 5, 12), "float32"), positions).shape)
    (2, 2, 100)

    Reference:

    - [BERT (Devlin et al., 2018)](https://arxiv.org/abs/1810.04805)
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        token_embedding: Any = None,
        *,
        intermediate_activation: Any = "relu",
        activation: Any = None,
        epsilon: float = 1e-5,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocabulary_size,
            token_embedding,
            use_bias=True,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )
        self.intermediate_activation = keras.activations.get(intermediate_activation)
        self.activation = keras.activations.get(activation)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.attach_mask = _AttachMask(name="attach_mask", dtype=self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        check_shape(self.name, input_shape)
        super().build(input_shape)
        dim = read_dim(self, input_shape)
        self.intermediate_dense = keras.layers.Dense(
            dim,
            activation=self.intermediate_activation,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            dtype=self.dtype_policy,
            name="intermediate_dense",
        )
        self.intermediate_dense.build((None, None, dim))
        self.intermediate_layer_norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name="intermediate_layer_norm"
        )
        self.intermediate_layer_norm.build((None, None, dim))
        self.attach_mask.build([input_shape, input_shape[:2]])  # Keras quantizes only built layers.

    def call(
        self, inputs: Any, mask_positions: Any = None, mask: Any = None, inputs_mask: Any = None
    ) -> Any:
        mask = inputs_mask if mask is None else mask
        check_mask(mask, inputs)
        if mask_positions is None:
            outputs = self._predict(inputs)
            return outputs if mask is None else self.attach_mask([outputs, mask])
        _check_positions(mask_positions, inputs)
        indices, exists = bound_indices(mask_positions, ops.shape(inputs)[1])
        output_mask = mask_positions >= 0
        hidden = ops.take_along_axis(inputs, ops.expand_dims(indices, -1), axis=1)
        outputs = self._predict(hidden)
        fits = ops.logical_or(exists, ops.logical_not(output_mask))
        outputs = ops.where(ops.expand_dims(fits, -1), outputs, math.nan)
        if mask is not None:
            output_mask = ops.logical_and(output_mask, ops.take_along_axis(mask, indices, axis=1))
        return self.attach_mask([outputs, output_mask])

    def _predict(self, hidden: Any) -> Any:
        hidden = self.intermediate_layer_norm(self.intermediate_dense(hidden))
        return self.activation(project(hidden, *self.projection()))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return None  # `attach_mask` sets the mask of the outputs.

    def compute_output_spec(
        self, inputs: Any, mask_positions: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        shape: Shape = tuple(inputs.shape[:2])
        if mask_positions is not None:
            _check_positions(mask_positions, inputs)
            shape = tuple(mask_positions.shape)
        shape = (*shape, self.vocabulary_size)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["use_bias"]
        return {
            **config,
            "intermediate_activation": keras.activations.serialize(self.intermediate_activation),
            "activation": keras.activations.serialize(self.activation),
            "epsilon": self.epsilon,
        }


class _AttachMask(keras.Layer):
    """A layer that returns the first of two tensors, with the second as its mask."""

    def call(self, inputs: list[Any]) -> Any:
        return inputs[0]

    def compute_mask(self, inputs: list[Any], previous_mask: Any) -> Any:
        return inputs[1]


def _check_positions(positions: Any, inputs: Any) -> None:
    check_tensor("mask_positions", positions)
    received, batch_size = tuple(positions.shape), inputs.shape[0]
    dtype = keras.backend.standardize_dtype(positions.dtype)
    if not is_shape(received, (batch_size, None)) or "int" not in dtype:
        raise InvalidInputError(
            f"`mask_positions` must be integers of shape (batch_size, masks_per_sequence), for "
            f"inputs of shape {tuple(inputs.shape)}, received {dtype} of shape {received}."
        )
