"""Attention by a feature map in the place of the softmax: a cost that grows with the length."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.call_check import (
    check_call,
    check_room,
    compute_call_spec,
)
from keras_deepseek.layers.attention.head_projection import make_projection
from keras_deepseek.layers.attention.key_value_cache import (
    Cache,
    append_to_cache,
    check_states,
    go_on,
    make_cache,
)
from keras_deepseek.layers.attention.linear_scan import sum_over_all, sum_over_earlier
from keras_deepseek.layers.double_precision import promote_dtypes
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.mask_check import complete_mask
from keras_deepseek.layers.position.inner_rotary import read_rotary
from keras_deepseek.layers.token_dim import read_dim

_ELU_PLUS_ONE = "elu_plus_one"


@keras.saving.register_keras_serializable("keras_deepseek")
class LinearAttention(keras.Layer):
    """Multi-head self-attention whose weights are products of features, without a softmax.

    Choose it for very long sequences, and to decode with a cache that does not grow: its cost is
    that of the length, never of its square. What it can look up is less sharp than with a softmax.
    With a feature map `f` it computes, for each head,

    ```
    output_i = sum over j of (f(query_i) . f(key_j)) value_j
               / (sum over j of f(query_i) . f(key_j) + epsilon)
    ```

    over all tokens `j`, or with `use_causal_mask` over `j <= i`; `output_dense` joins the heads.
    The sums over `j` are taken first, of `f(key_j)` and `value_j` alone. Causal ones are taken
    within chunks of `chunk_size` tokens by all pairs, and over earlier chunks by a state that is
    added up from chunk to chunk.

    `rotary` turns the features of queries and keys by their positions in the numerator alone, so
    that the denominator stays a sum of what is not negative (Su et al., 2021).

    A boolean mask, Keras's or as `mask`, hides padding, anywhere, from the others and passes
    through; the outputs at padded places have no meaning. A token that sees none gets zeros for its
    heads. Features, sums and states are in float32 whatever the dtype policy.

    With `use_causal_mask` there is a cache, a dict of the states `"key_value"`, of shape
    `(batch_size, num_heads, key_dim, value_dim)`, and `"key"`, of shape
    `(batch_size, num_heads, key_dim)`, and of `"mask"`, of shape `(batch_size, max_length)`. The
    states are of one size however many tokens they sum up: `max_length` is the number of tokens to
    be counted in `"mask"`, a byte each, and costs nothing else. A token can't be taken out of a sum
    again: `cache_index` is where the call that returned the cache has ended, or 0 to begin anew;
    slots that are skipped are as padding. A smaller one is refused where that costs nothing to see,
    eagerly on a CPU, and else gives wrong outputs.

    Args:
        num_heads: integer. Number of heads.
        key_dim: integer. Size of each head of queries and keys.
        value_dim: integer or `None`. Size of each head of values. `None` is `key_dim`. Defaults to
            `None`.
        feature_map: string or function. `f`: `"elu_plus_one"`, the name of an activation of Keras,
            such as `"relu"`, `"softplus"`, `"exponential"` or `"softmax"`, or a function, of
            `keras.ops`, of a tensor of shape `(batch_size, length, num_heads, key_dim)`. It should
            give nothing negative, and may give more or fewer features; to be saved, it must be
            registered as serializable. Defaults to `"elu_plus_one"`.
        use_causal_mask: boolean. Whether a token looks at none behind it. Defaults to `False`.
        chunk_size: integer. Number of tokens in a chunk, which changes the cost alone. Defaults to
            `64`.
        rotary: `RotaryEmbedding`, the serialized form of one, or `None`. Defaults to `None`.
        epsilon: float. Added to the denominator. Defaults to `1e-6`.
        use_bias: boolean. Whether each of the four projections adds a bias. Defaults to `True`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            biases. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, length, dim)`.
        mask: Boolean tensor of shape `(batch_size, length)`, false where a token is padding, or
            `None` for the mask that `inputs` carry.
        positions: Integer tensor of shape `(batch_size, length)`, or `None` to count from 0, or
            from `cache_index` on. For `rotary` alone.
        cache: dict of tensors, as `make_cache` or an earlier call returned it, or `None`.
        cache_index: integer or integer scalar tensor. The number of tokens in the cache, padding
            included.
        inputs_mask: As `mask`. Keras fills it in from `inputs` where there are further tensors.

    Returns:
        A tensor of the shape of `inputs`; with a cache, the pair of it and the new cache.

    Raises:
        InvalidInputError: An argument is out of its range, `feature_map` is unknown, shapes do not
            fit, the cache is full, `positions` are given without `rotary`, or a layer without a
            causal mask is given a cache.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import LinearAttention
    >>> layer = LinearAttention(2, 8, use_causal_mask=True)
    >>> prompt = np.ones((1, 5, 12), "float32")
    >>> cache = layer.make_cache(batch_size=1, max_length=1000)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> tuple(outputs.shape), tuple(cache["key_value"].shape)
    ((1, 5, 12), (1, 2, 8, 8))

    Reference:

    - [Transformers are RNNs (Katharopoulos et al., 2020)](https://arxiv.org/abs/2006.16236)
    - [RoFormer (Su et al., 2021)](https://arxiv.org/abs/2104.09864), the rotated numerator
    """

    def __init__(  # noqa: PLR0913 - the words of Keras's layer, and what is linear attention's own
        self,
        num_heads: int,
        key_dim: int,
        *,
        value_dim: int | None = None,
        feature_map: Any = _ELU_PLUS_ONE,
        use_causal_mask: bool = False,
        chunk_size: int = 64,
        rotary: Any = None,
        epsilon: float = 1e-6,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        # Keras would cast the states of a cache too. The projections cast what they are given.
        super().__init__(**{"autocast": False, **kwargs})
        self.num_heads = check_integer("num_heads", num_heads)
        self.key_dim = check_integer("key_dim", key_dim)
        self.value_dim = check_integer("value_dim", key_dim if value_dim is None else value_dim)
        self.chunk_size = check_integer("chunk_size", chunk_size)
        self.feature_map = _read_feature_map(feature_map)
        self.rotary: Any = read_rotary(rotary)
        self.use_causal_mask = check_boolean("use_causal_mask", use_causal_mask)
        self.epsilon = check_number("epsilon", epsilon, above=0)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        sizes = (self.num_heads, self.key_dim)
        self.query_dense = make_projection(self, "query", sizes)
        self.key_dense = make_projection(self, "key", sizes)
        self.value_dense = make_projection(self, "value", (self.num_heads, self.value_dim))
        self.output_dense = make_projection(
            self, "attention_output", (dim,), equation="bthk,hkd->btd", bias_axes="d"
        )
        for projection in (self.query_dense, self.key_dense, self.value_dense):
            projection.build(input_shape)
        self.output_dense.build((*input_shape[:2], self.num_heads, self.value_dim))
        if self.rotary is not None:
            self.rotary.build((None, None, self.num_heads, self._count_features()))

    def _count_features(self) -> int:
        sizes = (1, 1, self.num_heads, self.key_dim)
        return int(self._map_features(keras.KerasTensor(sizes, self._state_dtype)).shape[-1])

    @property
    def _state_dtype(self) -> str:
        return promote_dtypes(self.compute_dtype, "float32")

    def make_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns an empty cache, for the `cache` of a call.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that may be added, padding included; the states
                are of one size whatever it is.

        Returns:
            A dict of tensors.

        Raises:
            InvalidInputError: A size is not a positive integer; of a batch, zero is one.
        """
        return make_cache(
            batch_size, max_length, {}, self._state_dtype, states=self._state_shapes()
        )

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        features = (self.num_heads, self._count_features())
        return {"key_value": (*features, self.value_dim), "key": features}

    def call(
        self,
        inputs: Any,
        mask: Any = None,
        positions: Any = None,
        cache: Cache | None = None,
        cache_index: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        mask = check_call(self, inputs, (mask, inputs_mask), cache, cache_index)
        check_room(self, inputs, positions, cache_index)
        if cache is not None:
            check_states(cache, inputs.shape[0], lambda _: self._state_shapes())
            cache = go_on(cache, cache_index, ("key_value", "key"))
        query = self._map_features(self.query_dense(inputs))
        key = self._map_features(self.key_dense(inputs))
        value = ops.cast(self.value_dense(inputs), self._state_dtype)
        if mask is not None:
            key = ops.where(ops.expand_dims(ops.expand_dims(mask, -1), -1), key, 0.0)
        turned = None
        if self.rotary is not None:
            start = 0 if cache is None else cache_index
            turned = tuple(
                ops.cast(self.rotary(x, positions=positions, start_index=start), x.dtype)
                for x in (query, key)
            )
        if self.use_causal_mask:
            heads, states = self._attend_to_earlier(query, key, value, turned, cache)
        else:
            heads = self._attend_to_all(query, key, value, turned)
        outputs = self.output_dense(ops.cast(heads, self.compute_dtype))
        if cache is None:
            return outputs
        mask = complete_mask(mask, inputs)
        return outputs, append_to_cache(cache, cache_index, {}, mask, states=states)

    def _map_features(self, x: Any) -> Any:
        x = ops.cast(x, self._state_dtype)
        if self.feature_map == _ELU_PLUS_ONE:
            return ops.elu(x) + 1.0
        return self.feature_map(x)

    def _attend_to_all(self, query: Any, key: Any, value: Any, turned: Any) -> Any:
        pair = turned or (query, key)
        sums = sum_over_all(pair[0], pair[1], value)
        total = ops.einsum("bshd,bhd->bsh", query, ops.sum(key, axis=1))
        return sums / (ops.expand_dims(total, -1) + self.epsilon)

    def _attend_to_earlier(
        self, query: Any, key: Any, value: Any, turned: Any, cache: Cache | None
    ) -> tuple[Any, dict[str, Any]]:
        """Returns the outputs of heads, and the states after the last token."""
        if cache is None:
            cache = {
                name: ops.zeros((ops.shape(query)[0], *shape), query.dtype)
                for name, shape in self._state_shapes().items()
            }
        ones = ops.ones_like(value[..., :1])
        states = (cache["key_value"], ops.expand_dims(cache["key"], -1))
        if turned is None:
            both = ops.concatenate([value, ones], axis=-1)
            state = ops.concatenate(states, axis=-1)
            sums, state = sum_over_earlier(query, key, both, state, self.chunk_size)
            (sums, total), states = _part(sums), _part(state)
        else:
            sums, state = sum_over_earlier(turned[0], turned[1], value, states[0], self.chunk_size)
            total, key_state = sum_over_earlier(query, key, ones, states[1], self.chunk_size)
            states = (state, key_state)
        new = {"key_value": states[0], "key": ops.squeeze(states[1], -1)}
        return sums / (total + self.epsilon), new

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return compute_call_spec(self, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        feature_map = self.feature_map
        if feature_map != _ELU_PLUS_ONE:
            feature_map = keras.activations.serialize(feature_map)
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "feature_map": feature_map,
            "use_causal_mask": self.use_causal_mask,
            "chunk_size": self.chunk_size,
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "epsilon": self.epsilon,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def _read_feature_map(feature_map: Any) -> Any:
    """Returns a function, or the one name that Keras has not."""
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


def _part(x: Any) -> tuple[Any, Any]:
    """Returns the numerators and the denominators, which stand at the end of the last axis."""
    return x[..., :-1], x[..., -1:]
