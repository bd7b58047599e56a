"""Output projection and cross entropy in one layer, with few logits in memory."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.call_context import set_loss_normalizer
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.heads.token_losses import (
    average_losses,
    compute_token_losses,
    differentiate_token_losses,
    mark_unknown_classes,
    weigh_tokens,
)
from keras_deepseek.layers.heads.vocabulary_head import (
    VocabularyHead,
    differentiate_projection,
    project,
)
from keras_deepseek.layers.input_check import Shape, bound_indices, check_tokens
from keras_deepseek.layers.token_chunks import map_chunks_with_gradient

_LEAST_CLASS = -(2**31)  # The least int32.


@keras.saving.register_keras_serializable("keras_deepseek")
class ChunkedCrossEntropy(VocabularyHead):
    """Output projection and cross entropy in one layer, with the logits of a few tokens at a time.

    Choose it over a `Dense` layer and a loss if the vocabulary is large: the logits of a batch take
    `num_tokens * vocabulary_size` numbers, often more than everything else, and their gradients as
    many. Here at most `chunk_size` tokens have logits at any time. The backward pass recomputes
    them, which costs one matrix product in addition to three. The results are the same:

    ```
    logits = soft_cap * tanh((x @ kernel + bias) / soft_cap)          without the cap: x @ kernel
    loss of a token = logsumexp(logits) - logits[target] + z_loss * logsumexp(logits) ** 2
    ```

    Called with targets, it returns the loss of each token and adds their mean to the losses of the
    model. Compile the model without a loss:

    ```
    head = ChunkedCrossEntropy(vocabulary_size)
    training_model = keras.Model([tokens, targets], head(hidden, targets))
    training_model.compile("adam")
    training_model.fit([x, y])
    model = keras.Model(tokens, head(hidden))                         logits, with the same weights
    ```

    The mean is the sum of weighted losses over the sum of sample weights, over all tokens that
    count. A token does not count if the mask is false or its target is `ignore_class`; its loss is
    returned as 0. If a token that counts has a target that is not a class, its loss and that of the
    batch are NaN. The mask is passed on.

    It saves memory in eager mode and when compiled, with and without XLA. It needs three to four
    times the logits of a chunk, in float32, and the gradient of the kernel, which is always summed
    in float32.

    Returned losses are in the layer's compute dtype; the added mean is in float32.

    Args:
        vocabulary_size: integer or `None`. The number of classes. `None` takes that of
            `token_embedding`. Defaults to `None`.
        token_embedding: `keras.layers.Embedding` or `None`. Its table is the kernel, as in a model
            with tied embeddings. `None` creates a kernel. Defaults to `None`.
        chunk_size: integer. The most tokens that have logits at a time. Defaults to `1024`.
        ignore_class: integer or `None`. The target of tokens that do not count, such as `-100`.
            Defaults to `None`.
        z_loss: float. Weight of `logsumexp(logits) ** 2`, which keeps logits small. Defaults to
            `0.0`.
        soft_cap: float or `None`. Bound of the logits, as above. Defaults to `None`.
        loss_weight: float. A factor of the mean before it is added; `0.0` adds nothing. Defaults to
            `1.0`.
        use_bias: boolean. If true, the projection adds a bias. Defaults to `False`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        targets: Integer tensor of shape `(batch_size, ...)`, or `None` for logits.
        sample_weight: Floating-point tensor of shape `(batch_size, ...)`, or `None` for ones.
        mask: Boolean tensor of shape `(batch_size, ...)`, false at tokens that do not count, or
            `None` to use the mask of `inputs`.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        With targets, the losses, of shape `(batch_size, ...)`. Without targets, the logits, of
        shape `(batch_size, ..., vocabulary_size)`.

    Raises:
        InvalidInputError: A size, a class or a factor is out of range, there is neither a
            `vocabulary_size` nor a `token_embedding`, the inputs are not floating-point, targets
            are not integers, or a shape does not match the inputs.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import ChunkedCrossEntropy
    >>> head = ChunkedCrossEntropy(100, chunk_size=4)
    >>> hidden, targets = np.ones((2, 5, 12), "float32"), np.ones((2, 5), "int32")
    >>> tuple(head(hidden, targets).shape), len(head.losses)
    ((2, 5), 1)
    >>> tuple(head(hidden).shape)
    (2, 5, 100)

    Reference:

    - [Cut Your Losses in Large-Vocabulary Language Models (Wijmans et al., 2024)](
      https://arxiv.org/abs/2411.09009)
    - [ST-MoE (Zoph et al., 2022)](https://arxiv.org/abs/2202.08906), the z loss
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        token_embedding: Any = None,
        *,
        chunk_size: int = 1024,
        ignore_class: int | None = None,
        z_loss: float = 0.0,
        soft_cap: float | None = None,
        loss_weight: float = 1.0,
        use_bias: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocabulary_size,
            token_embedding,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            **kwargs,
        )
        self.chunk_size = check_integer("chunk_size", chunk_size)
        if ignore_class is not None:
            ignore_class = check_integer("ignore_class", ignore_class, minimum=_LEAST_CLASS)
        self.ignore_class = ignore_class
        self.z_loss = check_number("z_loss", z_loss, minimum=0)
        self.soft_cap = None if soft_cap is None else check_number("soft_cap", soft_cap, above=0)
        self.loss_weight = check_number("loss_weight", loss_weight, minimum=0)

    def call(
        self,
        inputs: Any,
        targets: Any = None,
        sample_weight: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        if targets is None:
            return self._compute_logits(inputs, *self.projection())
        mask = inputs_mask if mask is None else mask
        losses = self.compute_losses(inputs, targets)
        weights = self.weigh_tokens(inputs, targets, sample_weight=sample_weight, mask=mask)
        losses = mark_unknown_classes(losses, targets, weights, self.vocabulary_size)
        if self.loss_weight:
            self.add_loss(self.loss_weight * average_losses(losses, weights))
            set_loss_normalizer(ops.sum(weights))
        if mask is not None:
            losses = ops.where(mask, losses, 0.0)
        return ops.cast(losses, self.compute_dtype)

    def compute_losses(self, inputs: Any, targets: Any) -> Any:
        """Returns the loss of each token in float32 or better, 0 if it is ignored.

        Args:
            inputs: Tensor of shape `(batch_size, ..., dim)`.
            targets: Integer tensor of shape `(batch_size, ...)`.
        """
        check_tokens("targets", targets, inputs, is_integer=True)
        labels = bound_indices(targets, self.vocabulary_size)[0]
        losses = map_chunks_with_gradient(
            self._compute_chunk,
            self._differentiate_chunk,
            ops.reshape(ops.cast(inputs, self.compute_dtype), (-1, inputs.shape[-1])),
            ops.reshape(labels, (-1,)),
            self.projection(),
            self.chunk_size,
        )
        losses = ops.reshape(losses, ops.shape(targets))
        if self.ignore_class is not None:
            losses = ops.where(ops.equal(targets, self.ignore_class), 0.0, losses)
        return losses

    def weigh_tokens(
        self, inputs: Any, targets: Any, *, sample_weight: Any = None, mask: Any = None
    ) -> Any:
        """Returns the weight of each token in the mean, in float32 or better.

        Args:
            inputs: Tensor of shape `(batch_size, ..., dim)`.
            targets: Integer tensor of shape `(batch_size, ...)`.
            sample_weight: Floating-point tensor of shape `(batch_size, ...)`, or `None`. Defaults
                to `None`.
            mask: Boolean tensor of shape `(batch_size, ...)`, or `None`. Defaults to `None`.
        """
        dtype = promote_dtypes(self.compute_dtype, "float32")
        return weigh_tokens(inputs, targets, dtype, self.ignore_class, sample_weight, mask)

    def _compute_logits(self, inputs: Any, kernel: Any, bias: Any = None) -> Any:
        logits = project(inputs, kernel, bias)
        if self.soft_cap is not None:
            logits = self.soft_cap * ops.tanh(logits / self.soft_cap)
        return logits

    def _compute_chunk(self, rows: Any, labels: Any, *projection: Any) -> Any:
        logits = self._compute_logits(rows, *projection)
        return compute_token_losses(logits, labels, self.z_loss)

    def _differentiate_chunk(
        self, rows: Any, labels: Any, upstream: Any, *projection: Any
    ) -> tuple[Any, ...]:
        logits = self._compute_logits(rows, *projection)
        by_logits = differentiate_token_losses(logits, labels, upstream, self.z_loss)
        if self.soft_cap is not None:
            slopes = 1 - ops.square(ops.cast(logits, by_logits.dtype) / self.soft_cap)
            by_logits = by_logits * slopes
        return differentiate_projection(rows, by_logits, *projection)

    def compute_output_spec(
        self, inputs: Any, targets: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        check_tokens("targets", targets, inputs, is_integer=True)
        shape: Shape = tuple(inputs.shape[:-1])
        if targets is None:
            shape = (*shape, self.vocabulary_size)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "chunk_size": self.chunk_size,
            "ignore_class": self.ignore_class,
            "z_loss": self.z_loss,
            "soft_cap": self.soft_cap,
            "loss_weight": self.loss_weight,
        }
