"""Multi-token prediction of DeepSeek-V3: modules that predict tokens further ahead."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.heads.chunked_cross_entropy import ChunkedCrossEntropy
from keras_deepseek.layers.heads.token_losses import (
    average_losses,
    compute_token_losses,
    mark_unknown_classes,
)
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.inner_layers import (
    build_layer,
    call_layer,
    check_kept_shape,
    clone_layers,
    make_token_norm,
    revive_layer,
    serialize_layer,
)
from keras_deepseek.layers.input_check import (
    FloatingInputLayer,
    Shape,
    check_tensor,
    check_tokens,
    is_shape,
    read_dim,
)
from keras_deepseek.layers.masks import check_mask


@keras.saving.register_keras_serializable("keras_deepseek")
class MultiTokenPrediction(FloatingInputLayer):
    """Predicts further tokens from the hidden states of a language model, one module a token.

    Choose it in training, for a denser signal. The model itself stays unchanged and predicts the
    next token. Module `k` predicts the token `k` places after that, and sees all tokens before it:
    for a sequence `t` and the hidden states `h[0]` of the model,

    ```
    x = projection_k(concat(rms_norm(h[k - 1][i]), rms_norm(token_embedding(t[i + k]))))
    h[k] = block_k(x)
    logits_k[i] = output_head(h[k][i])                      predicts t[i + k + 1]
    loss = loss_weight * mean over k of mean over i of cross_entropy(logits_k[i], t[i + k + 1])
    ```

    This layer does the shift: pass the same `token_ids` that the model was called with. In training
    the loss is added to the losses of the model, which is compiled as without this layer. The mean
    over `i` covers the places where all tokens involved exist and are real. Lengths do not change:
    the last `k` places of `h[k]` have no meaning.

    With `ChunkedCrossEntropy` as `output_head`, shared with the model, the loss never needs the
    logits of all tokens at once. Then use `return_logits=False`, so that no logits are computed:

    ```
    embedding = Embedding(vocabulary_size, dim)
    head = ChunkedCrossEntropy(token_embedding=embedding)
    hidden = backbone(embedding(tokens))
    further = MultiTokenPrediction(block, embedding, head, return_logits=False)(hidden, tokens)
    model = keras.Model([tokens, targets], [head(hidden, targets), *further])
    model.compile("adam")
    ```

    Blocks that take a mask get one that is also false where the shift leaves no token. A block must
    be causal. There is no cache: omit the layer when the model decodes.

    In a checkpoint, `hidden_norm_1` is `hnorm`, `embedding_norm_1` `enorm`, and `projection_1` is
    `eh_proj` transposed, with its two halves of rows swapped. With `use_output_norm` the head gets
    `rms_norm(h[k])`, as in DeepSeek's checkpoints: `output_norm_1` is `shared_head.norm`.

    Args:
        block: `keras.Layer`, such as a Transformer block, or its serialized config. It maps
            `(batch_size, length, dim)` to the same shape. Each module gets its own block, made from
            the config of this one.
        token_embedding: `keras.Layer`, or its serialized config. The embedding of the model.
        output_head: `keras.Layer`, or its serialized config. The output head of the model, from
            hidden states to logits.
        depth: integer. The number of modules. Defaults to `1`.
        loss_weight: float. A factor of the loss; `0.0` adds no loss. Defaults to `0.3`.
        return_logits: boolean. If true, logits are returned, otherwise hidden states. Defaults to
            `True`.
        use_output_norm: boolean. If true, each module has its own norm before the head. Defaults to
            `False`.
        epsilon: float. Added to the mean squares in the norms. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            projections. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, dim)`, the hidden states.
        token_ids: Integer tensor of shape `(batch_size, length)`.
        mask: Boolean tensor of shape `(batch_size, length)`, false at padding, or `None` to use the
            mask of `inputs`.
        training: boolean. If true, the loss is added.
        segment_ids: Integer tensor of shape `(batch_size, length)`, or `None`. The document of each
            token in packed rows. Modules do not mix documents: the block gets an `attention_mask`
            for that.
        positions: Integer tensor of shape `(batch_size, length)`, or `None`. Passed to the block,
            for packed rows.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        A list of `depth` tensors: logits of shape `(batch_size, length, vocabulary_size)`, as the
        head returns them, or the inputs of the head, of shape `(batch_size, length, dim)`, in the
        layer's compute dtype.

    Raises:
        InvalidInputError: `block`, `token_embedding` or `output_head` is not a layer, `depth` or
            `loss_weight` is out of range, the inputs are not floating-point, token ids are not
            integers, or a shape does not match.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.layers import MultiTokenPrediction, SwiGLU
    >>> embedding, head = keras.layers.Embedding(100, 12), keras.layers.Dense(100)
    >>> layer = MultiTokenPrediction(SwiGLU(16), embedding, head, depth=2)
    >>> tokens = np.ones((2, 5), "int32")
    >>> [tuple(logits.shape) for logits in layer(embedding(tokens), tokens)]
    [(2, 5, 100), (2, 5, 100)]

    Reference:

    - [DeepSeek-V3 Technical Report, section 2.2 (DeepSeek-AI, 2024)](
      https://arxiv.org/abs/2412.19437)
    """

    def __init__(
        self,
        block: Any,
        token_embedding: Any,
        output_head: Any,
        *,
        depth: int = 1,
        loss_weight: float = 0.3,
        return_logits: bool = True,
        use_output_norm: bool = False,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.depth = check_integer("depth", depth)
        self.loss_weight = check_number("loss_weight", loss_weight, minimum=0)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.blocks = clone_layers("block", block, self.depth)
        self.token_embedding = revive_layer("token_embedding", token_embedding)
        self.output_head = revive_layer("output_head", output_head)
        self.return_logits = check_boolean("return_logits", return_logits)
        self.use_output_norm = check_boolean("use_output_norm", use_output_norm)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        build_layer(self.token_embedding, (None, None), "int32")
        self._check_embedding(input_shape)
        build_layer(self.output_head, (None, None, dim), self.compute_dtype)
        self.hidden_norms, self.embedding_norms, self.projections = [], [], []
        self.output_norms = []
        for index, block in enumerate(self.blocks, 1):
            self.hidden_norms.append(make_token_norm(self, f"hidden_norm_{index}", dim))
            self.embedding_norms.append(make_token_norm(self, f"embedding_norm_{index}", dim))
            projection = keras.layers.Dense(
                dim,
                use_bias=False,
                kernel_initializer=clone_initializer(self.kernel_initializer),
                dtype=self.dtype_policy,
                name=f"projection_{index}",
            )
            projection.build((None, None, 2 * dim))
            self.projections.append(projection)
            build_layer(block, (None, None, dim), self.compute_dtype)
            if self.use_output_norm:
                self.output_norms.append(make_token_norm(self, f"output_norm_{index}", dim))

    def _check_embedding(self, input_shape: Shape) -> None:
        ids = keras.KerasTensor(input_shape[:2], dtype="int32")
        received = tuple(self.token_embedding.compute_output_spec(ids).shape)
        if not is_shape(received, input_shape):
            raise InvalidInputError(
                f"{self.name!r} needs embeddings of the shape of the hidden states, "
                f"{tuple(input_shape)}; {self.token_embedding.name!r} returns {received} for the "
                "token ids. Pass the embedding that the model begins with."
            )

    def call(
        self,
        inputs: Any,
        token_ids: Any,
        mask: Any = None,
        training: bool | None = None,
        segment_ids: Any = None,
        positions: Any = None,
        inputs_mask: Any = None,
    ) -> list[Any]:
        mask = inputs_mask if mask is None else mask
        self._check_tokens(inputs, token_ids, mask)
        hidden, module_mask, outputs, losses = inputs, mask, [], []
        packed = _describe_rows(segment_ids, positions)
        for index in range(self.depth):
            ids, exists = shift_tokens(token_ids, mask, index + 1, segment_ids)
            module_mask = exists if module_mask is None else ops.logical_and(module_mask, exists)
            hidden = self.call_module(index, hidden, ids, module_mask, **packed)
            states = self._norm_output(index, hidden)
            logits = self.output_head(states) if self._needs_logits(training) else None
            outputs.append(logits if self.return_logits else states)
            if training and self.loss_weight:
                targets, exists = shift_tokens(token_ids, mask, index + 2, segment_ids)
                counted = ops.logical_and(module_mask, exists)
                losses.append(self._compute_loss(states, logits, targets, counted))
        if losses:
            self.add_loss(self.loss_weight * sum(losses) / self.depth)
        return outputs

    def _check_tokens(self, inputs: Any, token_ids: Any, mask: Any) -> None:
        _check_token_ids(token_ids, inputs)
        check_mask(mask, inputs)

    def call_module(
        self, index: int, inputs: Any, token_ids: Any, mask: Any = None, **kwargs: Any
    ) -> Any:
        """Returns the hidden states of one module for given tokens, without a shift.

        Speculative decoding makes draft tokens with it, from the tokens that the model chose.

        Args:
            index: integer. The number of the module, from 0.
            inputs: Tensor of shape `(batch_size, length, dim)`: the hidden states of the model, or
                of the module before.
            token_ids: Integer tensor of shape `(batch_size, length)`: at each place the token
                `index + 1` places after that of `inputs`.
            mask: Boolean tensor of shape `(batch_size, length)`, or `None`. Defaults to `None`.
            **kwargs: Further arguments of the block's call, such as `positions`, `cache` and
                `cache_index`.

        Returns:
            A tensor of the shape of `inputs`; with a cache, the pair that the block returns.
        """
        embedded = ops.cast(self.token_embedding(token_ids), inputs.dtype)
        parts = [self.hidden_norms[index](inputs), self.embedding_norms[index](embedded)]
        hidden = self.projections[index](ops.concatenate(parts, axis=-1))
        outputs = call_layer(self.blocks[index], hidden, mask, **kwargs)
        cache: list[Any] = []
        if kwargs.get("cache") is not None:
            outputs, *cache = outputs
        check_kept_shape(self.name, self.blocks[index], outputs, hidden.shape)
        outputs = ops.cast(outputs, self.compute_dtype)
        return (outputs, *cache) if cache else outputs

    def compute_logits(self, index: int, hidden: Any) -> Any:
        """Returns the logits of one module.

        Args:
            index: integer. The number of the module, from 0.
            hidden: Tensor of shape `(batch_size, length, dim)`, as `call_module` returned it.
        """
        return self.output_head(self._norm_output(index, hidden))

    def _norm_output(self, index: int, hidden: Any) -> Any:
        return self.output_norms[index](hidden) if self.use_output_norm else hidden

    def _needs_logits(self, training: bool | None) -> bool:
        is_chunked = isinstance(self.output_head, ChunkedCrossEntropy)
        return self.return_logits or bool(training and self.loss_weight > 0 and not is_chunked)

    def _compute_loss(self, hidden: Any, logits: Any, targets: Any, counted: Any) -> Any:
        head = self.output_head
        if isinstance(head, ChunkedCrossEntropy):
            losses, count = head.compute_losses(hidden, targets), head.vocabulary_size
            weights = head.weigh_tokens(hidden, targets, mask=counted)
        else:
            losses, count = compute_token_losses(logits, targets), logits.shape[-1]
            weights = ops.cast(counted, losses.dtype)
        return average_losses(mark_unknown_classes(losses, targets, weights, count), weights)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return None if previous_mask is None else [previous_mask] * self.depth

    def compute_output_spec(
        self, inputs: Any, token_ids: Any, *args: Any, **kwargs: Any
    ) -> list[Any]:
        _check_token_ids(token_ids, inputs)
        output = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        if self.return_logits:
            output = self.output_head.compute_output_spec(output)
        return [keras.KerasTensor(output.shape, output.dtype) for _ in range(self.depth)]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "block": serialize_layer(self.blocks[0]),
            "token_embedding": serialize_layer(self.token_embedding),
            "output_head": serialize_layer(self.output_head),
            "depth": self.depth,
            "loss_weight": self.loss_weight,
            "return_logits": self.return_logits,
            "use_output_norm": self.use_output_norm,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _check_token_ids(token_ids: Any, inputs: Any) -> None:
    check_tensor("token_ids", token_ids)
    check_tokens("token_ids", token_ids, inputs, is_integer=True)


def _describe_rows(segment_ids: Any, positions: Any) -> dict[str, Any]:
    """Returns a block's `positions` and `attention_mask` for packed rows, those that are given."""
    arguments = {"positions": positions}
    if segment_ids is not None:
        arguments["attention_mask"] = ops.equal(
            ops.expand_dims(segment_ids, 2), ops.expand_dims(segment_ids, 1)
        )
    return {name: value for name, value in arguments.items() if value is not None}


def shift_tokens(
    token_ids: Any, mask: Any, offset: int, segment_ids: Any = None
) -> tuple[Any, Any]:
    """Returns the token `offset` ahead of each token, and a mask of where such a token exists.

    If there is none, the first tokens of the sequence are returned. All tensors are `(batch_size,
    length)`. A token of another segment does not count as existing.
    """
    length = ops.shape(token_ids)[1]
    exists = ops.arange(length, dtype="int32") < length - offset
    if mask is not None:
        exists = ops.logical_and(exists, ops.roll(ops.cast(mask, "int32"), -offset, axis=1) > 0)
    else:
        exists = ops.broadcast_to(exists, ops.shape(token_ids))
    if segment_ids is not None:
        is_same = ops.equal(ops.roll(segment_ids, -offset, axis=1), segment_ids)
        exists = ops.logical_and(exists, is_same)
    return ops.roll(token_ids, -offset, axis=1), exists
