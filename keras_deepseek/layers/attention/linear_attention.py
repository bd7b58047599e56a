"""Linear attention: a feature map instead of the softmax, at a cost linear in the length.

A token's sum over earlier tokens has two parts: its own chunk, by the products of all pairs in it,
and all earlier chunks, by a state that is summed from chunk to chunk. No step waits for the step
before it, as in a recurrence, and no matrix of length by length is made.

Shape suffixes: B batch, T tokens, N heads, F features of a query or key, V size of a value, M
chunks, C tokens in a chunk.
"""

from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_projection import make_projection, project_tokens
from keras_deepseek.layers.attention.key_value_cache import (
    Cache,
    append_to_cache,
    check_states,
    continue_cache,
)
from keras_deepseek.layers.attention.self_attention_layer import (
    SelfAttentionLayer,
    check_call,
    check_room,
)
from keras_deepseek.layers.double_precision import accumulate, promote_dtypes
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.masks import complete_mask
from keras_deepseek.layers.position.rotary_embedding import read_rotary

_ELU_PLUS_ONE = "elu_plus_one"


@keras.saving.register_keras_serializable("keras_deepseek")
class LinearAttention(SelfAttentionLayer):
    """Multi-head self-attention whose weights are products of features, without a softmax.

    Choose it for very long sequences, and to decode with a cache that does not grow. Its cost grows
    with the length, not its square. It can look up single tokens less sharply than a softmax. With
    a feature map `f` it computes, for each head,

    ```
    output_i = sum over j of (f(query_i) . f(key_j)) value_j
               / (sum over j of f(query_i) . f(key_j) + epsilon)
    ```

    over all tokens `j`, or with `use_causal_mask` over `j <= i`; `output_dense` joins the heads.
    The sums over `j` of `f(key_j)` and `value_j` are computed first. Causal sums use all pairs
    within a chunk of `chunk_size` tokens, and one running state for all earlier chunks.

    `rotary` rotates the features of queries and keys only in the numerator, so that the denominator
    stays a sum of non-negative terms (Su et al., 2021).

    A boolean mask (from Keras, or `mask`) hides padding anywhere and is passed on; outputs at
    padding have no meaning. A token that sees no token gets zeros for its heads. Features, sums and
    states are always in float32.

    With `use_causal_mask` there is a cache, a dict of the states `"key_value"`, of shape
    `(batch_size, num_heads, head_dim, value_head_dim)`, and `"key"`, of shape
    `(batch_size, num_heads, head_dim)`, and of `"mask"`, of shape `(batch_size, max_length)`. The
    states have a fixed size: `max_length` costs only one byte a token, in `"mask"`. A token can't
    be removed from a sum: `cache_index` must be the number of slots that earlier calls filled, or 0
    to start again; skipped slots count as padding. A smaller index raises an error in eager mode on
    a CPU, where the check is free; elsewhere the outputs are wrong.

    Args:
        num_heads: integer. Number of heads.
        head_dim: integer. Size of each head of queries and keys.
        value_head_dim: integer or `None`. Size of each head of values. `None` means `head_dim`.
            Defaults to `None`.
        feature_map: string or function. `f`: `"elu_plus_one"`, the name of an activation of Keras,
            such as `"relu"`, `"softplus"`, `"exponential"` or `"softmax"`, or a function, of
            `keras.ops`, of a tensor of shape `(batch_size, length, num_heads, head_dim)`. Its
            results should not be negative. It may change the number of features. To be saved, a
            function must be registered as serializable. Defaults to `"elu_plus_one"`.
        chunk_size: integer. Number of tokens in a chunk. It changes only the cost. Defaults to
            `64`.
        rotary: `RotaryEmbedding`, its serialized form, or `None` for no rotation. Defaults to
            `None`.
        use_causal_mask: boolean. If true, a token attends only to itself and earlier tokens.
            Defaults to `False`.
        use_bias: boolean. If true, each of the four projections adds a bias. Defaults to `True`.
        epsilon: float. Added to the denominator. Defaults to `1e-6`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            biases. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Raises:
        InvalidInputError: An argument is out of range, `feature_map` is unknown, shapes do not
            match, the cache is full, `positions` are given without `rotary`, or the layer has no
            causal mask and gets a cache.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import LinearAttention
    >>> layer = LinearAttention(2, head_dim=8, use_causal_mask=True)
    >>> prompt = np.ones((1, 5, 12), "float32")
    >>> cache = layer.make_cache(batch_size=1, max_length=1000)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> tuple(outputs.shape), tuple(cache["key_value"].shape)
    ((1, 5, 12), (1, 2, 8, 8))

    Reference:

    - [Transformers are RNNs (Katharopoulos et al., 2020)](https://arxiv.org/abs/2006.16236)
    - [RoFormer (Su et al., 2021)](https://arxiv.org/abs/2104.09864), the rotated numerator
    """

    def __init__(  # noqa: PLR0913 - the arguments of Keras's layer, and those of linear attention
        self,
        num_heads: int,
        *,
        head_dim: int,
        value_head_dim: int | None = None,
        feature_map: Any = _ELU_PLUS_ONE,
        chunk_size: int = 64,
        rotary: Any = None,
        use_causal_mask: bool = False,
        use_bias: bool = True,
        epsilon: float = 1e-6,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        # Otherwise Keras would cast the states of a cache too. The projections cast their inputs.
        super().__init__(**{"autocast": False, **kwargs})
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.value_head_dim = check_integer("value_head_dim", value_head_dim, default=self.head_dim)
        self.chunk_size = check_integer("chunk_size", chunk_size)
        self.feature_map = _read_feature_map(feature_map)
        self.rotary = read_rotary(
            self, rotary, head_dim=self._count_features(), dtype=self._cache_dtype
        )
        self.use_causal_mask = check_boolean("use_causal_mask", use_causal_mask)
        self.epsilon = check_number("epsilon", epsilon, above=0)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        sizes = (self.num_heads, self.head_dim)
        self.query_dense = make_projection(self, "query", sizes)
        self.key_dense = make_projection(self, "key", sizes)
        self.value_dense = make_projection(self, "value", (self.num_heads, self.value_head_dim))
        self.output_dense = make_projection(
            self, "attention_output", (dim,), equation="bthk,hkd->btd", bias_axes="d"
        )
        for projection in (self.query_dense, self.key_dense, self.value_dense):
            projection.build(input_shape)
        self.output_dense.build((*input_shape[:2], self.num_heads, self.value_head_dim))
        if self.rotary is not None:
            self.rotary.build((None, None, self.num_heads, self._count_features()))

    def _count_features(self) -> int:
        sizes = (1, 1, self.num_heads, self.head_dim)
        return int(self._map_features(keras.KerasTensor(sizes, self._cache_dtype)).shape[-1])

    @property
    def _cache_dtype(self) -> str:
        return promote_dtypes(self.compute_dtype, "float32")

    def _state_shapes(self, max_length: int = 0) -> dict[str, tuple[int, ...]]:
        features = (self.num_heads, self._count_features())
        return {"key_value": (*features, self.value_head_dim), "key": features}

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        positions: Any = None,
        cache: Cache | None = None,
        cache_index: Any = None,
        training: bool | None = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = check_call(self, inputs, (mask, inputs_mask), cache, cache_index)
        check_room(self, inputs, positions, cache_index)
        if cache is not None:
            check_states(cache, inputs.shape[0], self._state_shapes)
            cache = continue_cache(cache, cache_index, ("key_value", "key"))
        query_BTNF = self._map_features(project_tokens(self.query_dense, inputs))
        key_BTNF = self._map_features(project_tokens(self.key_dense, inputs))
        value_BTNV = ops.cast(project_tokens(self.value_dense, inputs), self._cache_dtype)
        if mask is not None:
            mask_BT11 = ops.expand_dims(ops.expand_dims(mask, -1), -1)
            key_BTNF = ops.where(mask_BT11, key_BTNF, 0.0)  # Adds nothing to any sum.
        rotated = None
        if self.rotary is not None:
            start = 0 if cache is None else cache_index
            rotated = (
                self._rotate(query_BTNF, positions, start),
                self._rotate(key_BTNF, positions, start),
            )
        if self.use_causal_mask:
            heads_BTNV, states = self._attend_to_earlier(
                query_BTNF, key_BTNF, value_BTNV, rotated, cache
            )
        else:
            heads_BTNV = self._attend_to_all(query_BTNF, key_BTNF, value_BTNV, rotated)
        outputs = project_tokens(self.output_dense, ops.cast(heads_BTNV, self.compute_dtype))
        if cache is None:
            return outputs
        mask = complete_mask(mask, inputs)
        return outputs, append_to_cache(cache, cache_index, {}, mask, states=states)

    def _map_features(self, x: Any) -> Any:
        x = ops.cast(x, self._cache_dtype)
        if self.feature_map == _ELU_PLUS_ONE:
            return ops.elu(x) + 1.0
        return self.feature_map(x)

    def _attend_to_all(
        self,
        query_BTNF: Any,
        key_BTNF: Any,
        value_BTNV: Any,
        rotated: tuple[Any, Any] | None,
    ) -> Any:
        """Returns non-causal linear attention (BTNV); only its numerator uses `rotated` tensors."""
        sums_BTNV = sum_over_all(*(rotated or (query_BTNF, key_BTNF)), value_BTNV)
        total_BTN = ops.einsum("btnf,bnf->btn", query_BTNF, ops.sum(key_BTNF, axis=1))
        return sums_BTNV / (ops.expand_dims(total_BTN, -1) + self.epsilon)

    def _attend_to_earlier(
        self,
        query_BTNF: Any,
        key_BTNF: Any,
        value_BTNV: Any,
        rotated: tuple[Any, Any] | None,
        cache: Cache | None,
    ) -> tuple[Any, dict[str, Any]]:
        """Returns causal linear attention (BTNV), and the running sums after the last token.

        `rotated` are the queries and keys for the numerator (BTNF), if the layer rotates.
        """
        if cache is None:
            cache = {
                name: ops.zeros((ops.shape(query_BTNF)[0], *shape), query_BTNF.dtype)
                for name, shape in self._state_shapes().items()
            }
        size = self.chunk_size
        ones_BTN1 = ops.ones_like(value_BTNV[..., :1])
        state_BNFV, state_BNF1 = cache["key_value"], ops.expand_dims(cache["key"], -1)
        if rotated is None:
            # The denominator is one more column of the values.
            values = ops.concatenate([value_BTNV, ones_BTN1], axis=-1)
            state = ops.concatenate([state_BNFV, state_BNF1], axis=-1)
            sums, state = sum_over_earlier(query_BTNF, key_BTNF, values, state, size)
            sums_BTNV, total_BTN1 = sums[..., :-1], sums[..., -1:]
            state_BNFV, state_BNF1 = state[..., :-1], state[..., -1:]
        else:
            sums_BTNV, state_BNFV = sum_over_earlier(*rotated, value_BTNV, state_BNFV, size)
            total_BTN1, state_BNF1 = sum_over_earlier(
                query_BTNF, key_BTNF, ones_BTN1, state_BNF1, size
            )
        states = {"key_value": state_BNFV, "key": ops.squeeze(state_BNF1, -1)}
        return sums_BTNV / (total_BTN1 + self.epsilon), states

    def get_config(self) -> dict[str, Any]:
        feature_map = self.feature_map
        if feature_map != _ELU_PLUS_ONE:
            feature_map = keras.activations.serialize(feature_map)
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "value_head_dim": self.value_head_dim,
            "feature_map": feature_map,
            "chunk_size": self.chunk_size,
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "use_causal_mask": self.use_causal_mask,
            "use_bias": self.use_bias,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def _read_feature_map(feature_map: Any) -> Any:
    """Returns the feature map as a function; `"elu_plus_one"`, unknown to Keras, stays a string."""
    if feature_map == _ELU_PLUS_ONE:
        return feature_map
    try:
        function = None if feature_map is None else keras.activations.get(feature_map)
    except ValueError:
        function = None
    if function is None:
        raise InvalidInputError(
            f"`feature_map` must be {_ELU_PLUS_ONE!r}, the name of an activation of Keras such as "
            f"'relu', or a function, received {feature_map!r}."
        )
    return function


def sum_over_all(query_BTNF: Any, key_BTNF: Any, value_BTNV: Any) -> Any:
    """Returns the sum over all tokens j of (query_i . key_j) value_j, for each token i (BTNV)."""
    state_BNFV = ops.einsum("btnf,btnv->bnfv", key_BTNF, value_BTNV)
    return ops.einsum("btnf,bnfv->btnv", query_BTNF, state_BNFV)


def sum_over_earlier(
    query_BTNF: Any, key_BTNF: Any, value_BTNV: Any, state_BNFV: Any, chunk_size: int
) -> tuple[Any, Any]:
    """Returns the sum over tokens j <= i of (query_i . key_j) value_j (BTNV), and the new state.

    The state sums key_j value_j over earlier calls; it is zeros at first. `chunk_size`, the most
    tokens of a chunk, changes only the cost.
    """
    length, num_tokens = known_size(query_BTNF.shape[1]), ops.shape(query_BTNF)[1]
    size = chunk_size if length is None else max(1, min(chunk_size, length))
    query_BMCNF, key_BMCNF, value_BMCNV = (
        _split(x, length, size) for x in (query_BTNF, key_BTNF, value_BTNV)
    )
    scores_BMNCC = ops.tril(ops.einsum("bminf,bmjnf->bmnij", query_BMCNF, key_BMCNF))
    sums_BMCNV = ops.einsum("bmnij,bmjnv->bminv", scores_BMNCC, value_BMCNV)

    by_chunk_BMNFV = ops.einsum("bmjnf,bmjnv->bmnfv", key_BMCNF, value_BMCNV)
    states_BMNFV = accumulate(
        ops.concatenate([ops.expand_dims(state_BNFV, 1), by_chunk_BMNFV], axis=1), axis=1
    )
    earlier_BMCNV = ops.einsum("bminf,bmnfv->bminv", query_BMCNF, states_BMNFV[:, :-1])
    sums_BMCNV = sums_BMCNV + earlier_BMCNV
    batch_size, num_chunks = ops.shape(sums_BMCNV)[:2]
    sums_BTNV = ops.reshape(sums_BMCNV, (batch_size, num_chunks * size, *sums_BMCNV.shape[3:]))
    return sums_BTNV[:, :num_tokens], states_BMNFV[:, -1]


def _split(x: Any, length: int | None, size: int) -> Any:
    """Splits (B, T, N, F) into chunks (B, M, C, N, F), the last one padded with zeros."""
    real = ops.shape(x)[1]
    # An unknown length may lack at most `size - 1` tokens of a full chunk.
    fill = size - 1 if length is None else -length % size
    if fill:
        x = ops.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0)))
    num_chunks = (real + fill) // size
    x = x[:, : num_chunks * size]
    return ops.reshape(x, (ops.shape(x)[0], num_chunks, size, *x.shape[2:]))
