"""Lightning indexer, which chooses the keys for `DeepSeekSparseAttention`.

Shape suffixes: B batch, T queries, S keys, N heads, H size of a head.
"""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.backend.call_context import known_size
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.compressed.token_packing import count_missing
from keras_deepseek.layers.attention.head_projection import project_tokens, projection_arguments
from keras_deepseek.layers.attention.self_attention_layer import check_room
from keras_deepseek.layers.double_precision import call_dense, promote_dtypes
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape, check_floating, check_shape, is_shape
from keras_deepseek.layers.masks import HIDDEN
from keras_deepseek.layers.opaque_operation import call_opaque
from keras_deepseek.layers.position.rotary_embedding import read_rotary


@keras.saving.register_keras_serializable("keras_deepseek")
class LightningIndexer(keras.Layer):
    """Projects tokens to small queries, weights and keys that score which keys a query needs.

    Choose it to attend to few keys out of many: `score_keys` returns the scores and `choose_keys`
    the best keys. All heads share one key per token. For a token `x`, where `c` is the input of
    the queries,

    ```
    query_h = rotary(query_up_h(c))       key = rotary(layer_norm(key(x)))
    weight_h = head_weight_h(x) * (num_heads * head_dim) ** -0.5
    score(t, s) = sum over h of weight_h(t) * relu(query_h(t) . key(s))
    ```

    The choice of keys has no gradient, so an indexer needs its own loss; see
    `DeepSeekSparseAttention`.

    Each token is projected by itself, and a mask is passed on. A decoder caches the key. Weights of
    a checkpoint, apart from their layout: `wq_b` is `query_up`, `wk` `key`, `k_norm` `key_norm`,
    `weights_proj` `head_weight`. The Hadamard transform of DeepSeek's own code changes no score and
    is left out.

    Args:
        num_heads: integer. Number of heads.
        head_dim: integer. Size of a query of each head, and of a key.
        rotary: `RotaryEmbedding`, its serialized form, or `None` for no rotation. DeepSeek rotates
            the first entries, in halves: `RotaryEmbedding(rotary_dim=64)`. Defaults to `None`.
        epsilon: float. Added to the variance in the norm. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. The initializer of all
            kernels. Defaults to `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
        queries: Floating-point tensor of shape `(batch_size, length, query_dim)`: the input of the
            queries, such as the compressed queries of an attention layer. `None` uses `inputs`.
        positions: Integer tensor of shape `(batch_size, length)`, or `None` to count from
            `start_index`. Only with `rotary`.
        start_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The position of
            the first token if `positions` is `None`. Defaults to `0`.

    Returns:
        Three tensors: queries of shape `(batch_size, length, num_heads, head_dim)`, weights of
        shape `(batch_size, length, num_heads)`, and keys of shape `(batch_size, length, head_dim)`.

    Raises:
        InvalidInputError: A size is not a positive integer, the inputs have another shape,
            `queries` are not those of the same tokens, or `positions` are given without `rotary`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import LightningIndexer, RotaryEmbedding
    >>> indexer = LightningIndexer(2, head_dim=8, rotary=RotaryEmbedding(rotary_dim=4))
    >>> query, weights, key = indexer(np.ones((1, 5, 12), "float32"))
    >>> tuple(indexer.score_keys(query, weights, key).shape)
    (1, 5, 5)

    Reference:

    - [DeepSeek-V3.2 (DeepSeek-AI, 2025)](https://arxiv.org/abs/2512.02556)
    """

    def __init__(
        self,
        num_heads: int,
        *,
        head_dim: int,
        rotary: Any = None,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.rotary = read_rotary(self, rotary, head_dim=self.head_dim)
        self.supports_masking = True

    def build(self, inputs_shape: Shape, queries_shape: Shape | None = None) -> None:
        for shape in (inputs_shape, queries_shape or inputs_shape):
            check_shape(self.name, shape)
        self.query_up = keras.layers.EinsumDense(
            "btd,dhn->bthn",
            (None, self.num_heads, self.head_dim),
            **projection_arguments(self, "query_up"),
        )
        self.query_up.supports_masking = True  # Correct: each token is transformed by itself.
        self.query_up.build(queries_shape or inputs_shape)
        self.key = keras.layers.Dense(
            self.head_dim, use_bias=False, **projection_arguments(self, "key")
        )
        self.key.build(inputs_shape)
        self.key_norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="key_norm",
        )
        self.key_norm.build((*inputs_shape[:2], self.head_dim))
        self.head_weight = keras.layers.Dense(
            self.num_heads, use_bias=False, **projection_arguments(self, "head_weight")
        )
        self.head_weight.build(inputs_shape)
        if self.rotary is not None:
            self.rotary.build((*inputs_shape[:2], self.head_dim))

    def call(
        self, inputs: Any, queries: Any = None, positions: Any = None, start_index: Any = 0
    ) -> tuple[Any, Any, Any]:
        self._check_call(inputs, queries)
        check_room(self, inputs, positions, start_index)
        query = project_tokens(self.query_up, inputs if queries is None else queries)
        key = self.key_norm(self.key(inputs))
        if self.rotary is not None:
            query, key = (
                self.rotary(x, positions=positions, start_index=start_index) for x in (query, key)
            )
        weights = call_dense(self.head_weight, inputs)
        weights = weights * (self.num_heads * self.head_dim) ** -0.5
        return query, weights, key

    def _check_call(self, inputs: Any, queries: Any) -> None:
        check_floating(inputs, self.name)
        if queries is None:
            return
        check_floating(queries, self.name)
        received, expected = tuple(queries.shape), (*inputs.shape[:2], None)
        if not is_shape(received, expected):
            raise InvalidInputError(
                f"{self.name!r} needs `queries` of the same tokens as the inputs, of shape "
                f"(batch_size, length, query_dim), here {expected}; received {received}. To score "
                f"the keys of other tokens, call the layer on them and pass their keys to "
                f"`score_keys`."
            )

    def score_keys(self, query: Any, weights: Any, key: Any) -> Any:
        """Returns the score of each key for each query, in float32 or better.

        Args:
            query: Tensor of shape `(batch_size, query_length, num_heads, head_dim)`.
            weights: Tensor of shape `(batch_size, query_length, num_heads)`.
            key: Tensor of shape `(batch_size, key_length, head_dim)`.

        Returns:
            A tensor of shape `(batch_size, query_length, key_length)`.
        """
        products_BTNS = ops.relu(ops.einsum("btnh,bsh->btns", query, key))
        dtype = promote_dtypes(products_BTNS.dtype, "float32")
        return ops.einsum("btns,btn->bts", ops.cast(products_BTNS, dtype), ops.cast(weights, dtype))

    def choose_keys(self, scores: Any, mask: Any, num_keys: int) -> tuple[Any, Any, Any]:
        """Returns the keys with the best scores. Of equal scores the first key wins.

        Args:
            scores: Tensor of shape `(batch_size, query_length, key_length)`.
            mask: Boolean tensor that broadcasts to that shape, false at keys that must not be
                chosen, or `None`.
            num_keys: integer. The number of keys to choose; at most `key_length` if that is known.

        Returns:
            Three tensors of shape `(batch_size, query_length, num_keys)`: the indices of the keys,
            their scores, and a boolean tensor that is false where no further key was left.
        """
        scores_BTS = scores if mask is None else ops.where(mask, scores, HIDDEN)
        key_length = ops.shape(scores_BTS)[2]
        if known_size(key_length) is None:  # There may be fewer keys than `num_keys`.
            missing = count_missing(key_length, num_keys)
            filling = ops.zeros((*ops.shape(scores_BTS)[:2], missing), scores_BTS.dtype) + HIDDEN
            scores_BTS = ops.concatenate([scores_BTS, filling], axis=-1)
        scores_BTK, indices_BTK = call_opaque(
            partial(backend.current().compute.top_k, k=num_keys), scores_BTS
        )
        indices_BTK = ops.minimum(indices_BTK, ops.cast(key_length, "int32") - 1)
        return indices_BTK, scores_BTK, scores_BTK > HIDDEN / 2

    def compute_output_spec(
        self, inputs: Any, queries: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[keras.KerasTensor, keras.KerasTensor, keras.KerasTensor]:
        self._check_call(inputs, queries)
        shapes = ((self.num_heads, self.head_dim), (self.num_heads,), (self.head_dim,))
        query, weights, key = (
            keras.KerasTensor((*inputs.shape[:2], *shape), self.compute_dtype) for shape in shapes
        )
        return query, weights, key

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def check_index_head_dim(index_head_dim: Any, rope_head_dim: int) -> int:
    """Checks and returns the size of an indexer's head: an integer of at least `rope_head_dim`."""
    size = check_integer("index_head_dim", index_head_dim)
    if size < rope_head_dim:
        raise InvalidInputError(
            f"`index_head_dim` must not be less than `rope_head_dim`, the part of it that is "
            f"rotated; received index_head_dim={size} and rope_head_dim={rope_head_dim}."
        )
    return size


class IndexerTraining(keras.Layer):
    """A base class that keeps `train_indexer` of an attention layer through freezing and saving.

    List it before the other base class. The indexer's choice has no gradient, so by default a fit
    must leave its weights alone, or Keras warns. Setting `trainable` of the layer sets all inner
    layers alike; this class then restores the indexer's own value, and saves it in the config as
    `train_indexer`.
    """

    indexer: Any
    _trains_indexer = False

    def _set_indexer_training(self, train_indexer: bool) -> None:
        """Sets the initial `trainable` of the indexer. Later changes of it take precedence."""
        self._trains_indexer = train_indexer
        self.indexer.trainable = self.trainable and train_indexer

    @property
    def train_indexer(self) -> bool:
        """True if the indexer is trained whenever the layer is."""
        return bool(self.indexer.trainable) if self.trainable else self._trains_indexer

    @property
    def trainable(self) -> bool:
        """True if the layer is trained. Settable."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        trains_indexer = self.train_indexer
        keras.Layer.trainable.fset(self, value)
        self._set_indexer_training(trains_indexer)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "train_indexer": self.train_indexer}
