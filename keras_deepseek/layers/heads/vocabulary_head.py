"""Base class of layers that project hidden states to logits over the vocabulary."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import multiply_matrices
from keras_deepseek.layers.inner_layers import revive_layer, serialize_layer
from keras_deepseek.layers.input_check import FloatingInputLayer, Shape, read_last_dim


class VocabularyHead(FloatingInputLayer):
    """A layer with a kernel of shape `(dim, vocabulary_size)`, its own or that of an embedding.

    A `vocabulary_size` of `None` takes that of `token_embedding`, an `Embedding` or its serialized
    config.
    """

    def __init__(
        self,
        vocabulary_size: int | None,
        token_embedding: Any,
        *,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if token_embedding is not None:
            token_embedding = revive_layer("token_embedding", token_embedding)
            rows = _count_rows(token_embedding)
            vocabulary_size = rows if vocabulary_size is None else vocabulary_size
            if vocabulary_size != rows:
                raise InvalidInputError(
                    f"`vocabulary_size` must be that of `token_embedding` ({rows}) or None, "
                    f"received {vocabulary_size!r}."
                )
        elif vocabulary_size is None:
            raise InvalidInputError(
                "A head needs a `vocabulary_size`, or a `token_embedding` whose table it shares; "
                "received neither."
            )
        self.vocabulary_size = check_integer("vocabulary_size", vocabulary_size)
        self.token_embedding = token_embedding
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_last_dim(self, input_shape)
        if self.token_embedding is None:
            self.kernel = self.add_weight(
                name="kernel",
                shape=(dim, self.vocabulary_size),
                initializer=self.kernel_initializer,
            )
        else:
            if not self.token_embedding.built:
                self.token_embedding.build((None, None))
            if self.token_embedding.output_dim != dim:
                raise InvalidInputError(
                    f"{self.name!r} shares an embedding of size {self.token_embedding.output_dim}, "
                    f"but received inputs of shape {tuple(input_shape)}."
                )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.vocabulary_size,), initializer=self.bias_initializer
            )

    def projection(self) -> tuple[Any, ...]:
        """Returns the kernel, of shape `(dim, vocabulary_size)`, and the bias if there is one.

        Both are tensors in the layer's compute dtype.
        """
        if self.token_embedding is None:
            kernel = ops.cast(self.kernel, self.compute_dtype)
        elif self.token_embedding.quantization_mode is not None:
            kernel = ops.transpose(self.read_rows(ops.arange(self.vocabulary_size)))
        else:
            kernel = ops.transpose(ops.cast(self.token_embedding.embeddings, self.compute_dtype))
        return (kernel,) if self.bias is None else (kernel, ops.cast(self.bias, kernel.dtype))

    def read_rows(self, classes: Any) -> Any:
        """Returns the kernel's columns of some classes, as rows of a tensor `(..., dim)`.

        Args:
            classes: Integer tensor, of any shape.

        Returns:
            A tensor of the shape of `classes` followed by `dim`, in the layer's compute dtype.
        """
        if self.token_embedding is None:
            return ops.take(ops.transpose(ops.cast(self.kernel, self.compute_dtype)), classes, 0)
        if self.token_embedding.quantization_mode is not None:
            # Only the embedding itself can read its quantized table.
            return ops.cast(self.token_embedding(classes), self.compute_dtype)
        return ops.cast(ops.take(self.token_embedding.embeddings, classes, 0), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        embedding = self.token_embedding
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "token_embedding": None if embedding is None else serialize_layer(embedding),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def project(inputs: Any, kernel: Any, bias: Any = None) -> Any:
    """Returns the logits `(..., vocabulary_size)` of inputs `(..., dim)`."""
    logits = multiply_matrices(inputs, kernel)
    return logits if bias is None else logits + bias


def differentiate_projection(
    inputs: Any, upstream: Any, kernel: Any, bias: Any = None
) -> tuple[Any, ...]:
    """Returns the gradients of `project` with respect to the inputs, the kernel and the bias.

    Inputs are `(num_tokens, dim)`; `upstream`, the gradient by the logits, is `(num_tokens,
    vocabulary_size)`; the kernel is `(dim, vocabulary_size)`.
    """
    by_logits = ops.cast(upstream, kernel.dtype)
    by_inputs = multiply_matrices(by_logits, ops.transpose(kernel))
    by_kernel = multiply_matrices(ops.transpose(inputs), by_logits)
    return (
        (by_inputs, by_kernel)
        if bias is None
        else (by_inputs, by_kernel, ops.sum(upstream, axis=0))
    )


def _count_rows(embedding: keras.Layer) -> int:
    if not hasattr(embedding, "input_dim") or not getattr(embedding, "tie_weights", True):
        raise InvalidInputError(
            "`token_embedding` must be a `keras.layers.Embedding`, or a reversible one with tied "
            f"weights, whose table the head can share; received {embedding!r}."
        )
    rows: int = embedding.input_dim
    return rows
