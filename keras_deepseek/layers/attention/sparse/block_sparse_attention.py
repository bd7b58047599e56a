"""Multi-head attention over a block layout, at a cost linear in the sequence length."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.head_projection import make_projection, project_tokens
from keras_deepseek.layers.attention.key_value_cache import Cache, append_to_cache
from keras_deepseek.layers.attention.self_attention_layer import (
    SelfAttentionLayer,
    check_call,
    check_room,
    compute_call_spec,
    read_length,
)
from keras_deepseek.layers.attention.sparse.block_attention import (
    attend_to_blocks,
    attend_to_cached_blocks,
)
from keras_deepseek.layers.attention.sparse.block_plan import BlockLayout, plan_blocks, plan_rows
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.position.rotary_embedding import read_rotary
from keras_deepseek.layers.position.start_index import all_start_at_zero


@keras.saving.register_keras_serializable("keras_deepseek")
class BlockSparseAttention(SelfAttentionLayer):
    """Multi-head self-attention in which each position sees only some blocks of the sequence.

    `SparseAttention` is a second name of this class; a file names the class.

    Choose it for long sequences. From about a thousand positions it is faster than
    `keras.layers.MultiHeadAttention`, and it never holds a matrix of length by length. It computes

    ```
    output = W_o concat_h( softmax(mask(Q_h K_hᵀ / sqrt(head_dim))) V_h )
    ```

    The sequence is cut into blocks of `block_size`. The layout, which says which blocks see which,
    is the union of the given patterns:

    | argument | a position sees |
    |---|---|
    | `sliding_window` | positions less than `sliding_window` away, exactly, as in Keras's layer |
    | `global_blocks` | these blocks; positions in these blocks see all |
    | `block_stride` | blocks at a multiple of `block_stride` blocks from its own |
    | `num_random_blocks` | this many more blocks, drawn once; with the two first it is BigBird |
    | `block_layout` | the blocks that the matrix shows |

    Only visible blocks are gathered and multiplied; there is no mask over all blocks. Blocks that
    see many more blocks than others, such as global ones, are computed separately. The cost is
    proportional to the number of visible blocks, so strides and given layouts may make it grow
    faster than the length.

    A mask of the inputs hides positions from all others and is passed on. It may be false anywhere,
    so padding may stand on either side. Scores and softmax are always in float32. A position that
    sees no position gets zeros for its heads. The length need not be a multiple of `block_size`,
    but must be known when the layer computes. A Functional model may have an unknown length and be
    called with any length. Tracing a graph of unknown length raises an error: an export does so,
    and TensorFlow's `fit` and `predict` from the second length on.

    With `use_causal_mask` there is a cache: a dict of `"key"`, `"value"` and `"mask"`, each of
    shape `(batch_size, max_length, ...)`. A new token gathers as many blocks as the row with the
    most visible blocks. Blocks count cache slots, padding included: pad on the right unless the
    layout is only a window.

    It can replace `keras.layers.MultiHeadAttention` in self-attention: it takes the call
    `layer(x, x)`, `value=`, `key=`, masks of tokens and a `use_causal_mask=` equal to the layer's
    own. Another `value`, an `attention_mask`, or a request for the scores raises an error.
    `query_dense`, `key_dense`, `value_dense` and `output_dense` are `keras.layers.EinsumDense`,
    with the names and shapes of those in `keras.layers.MultiHeadAttention`: weights can be set from
    one to the other, and a `keras.distribution.LayoutMap` finds `.../query/kernel` and the like.

    Args:
        num_heads: integer. Number of heads.
        head_dim: integer. Size of each head of queries and keys.
        value_head_dim: integer or `None`. Size of each head of values. `None` means `head_dim`.
            Defaults to `None`.
        num_key_value_heads: integer or `None`. Number of heads of keys and values. It must divide
            `num_heads`; each serves a group of heads of queries. `None` means `num_heads`. Defaults
            to `None`.
        block_size: integer. Number of positions in a block. Defaults to `64`.
        sliding_window: integer or `None`. Positions less than this many positions away are visible.
            Defaults to `None`.
        global_blocks: iterable of integers, such as a list, a range or a NumPy array. Blocks that
            see all blocks and are seen by all. Negative numbers count from the end. A number beyond
            the sequence is ignored, so one layer serves any length, and a prefix of a sequence is
            computed as in the whole sequence. Defaults to `()`.
        block_stride: integer or `None`. Distance, in blocks, between the visible blocks, which
            include the own block. Defaults to `None`.
        num_random_blocks: integer. Number of random blocks for each block, in addition to the
            blocks of other patterns. Defaults to `0`.
        layout_seed: integer. Random seed of these blocks. The same seed gives the same blocks in
            each layer, so use different seeds in a stack of layers. Defaults to `0`.
        block_layout: array-like of booleans of shape `(num_blocks, num_blocks)`, or `None`. Entry
            `[i, j]` shows block `j` to block `i`. A shorter sequence uses the upper left part; a
            longer sequence raises an error. Defaults to `None`.
        rotary: `RotaryEmbedding`, its serialized form, or `None` for no rotation. Rotates queries
            and keys by their positions. Defaults to `None`.
        use_causal_mask: boolean. If true, no position sees a later one. Defaults to `False`.
        use_bias: boolean. If true, each of the four projections adds a bias. Defaults to `True`.
        dropout: float. Fraction of attention weights to drop in training. Defaults to `0.0`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            biases. Defaults to `"zeros"`.
        seed: integer or `None`. Random seed of the dropout. Defaults to `None`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Raises:
        InvalidInputError: An argument has the wrong type, no pattern is given, `block_layout` is
            not square or is too small, the inputs have another rank or an unknown length, the cache
            is full, or the layout does not support a cache.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import BlockSparseAttention
    >>> layer = BlockSparseAttention(
    ...     2, head_dim=8, block_size=16, sliding_window=16, global_blocks=[0]
    ... )
    >>> tuple(layer(np.ones((1, 100, 12), "float32")).shape)
    (1, 100, 12)

    Reference:

    - [Generating Long Sequences with Sparse Transformers (Child et al., 2019)](
      https://arxiv.org/abs/1904.10509)
    - [Longformer: The Long-Document Transformer (Beltagy et al., 2020)](
      https://arxiv.org/abs/2004.05150)
    - [Big Bird: Transformers for Longer Sequences (Zaheer et al., 2020)](
      https://arxiv.org/abs/2007.14062)
    """

    def __init__(  # noqa: PLR0913 - the arguments of Keras's layer, and five patterns
        self,
        num_heads: int,
        *,
        head_dim: int,
        value_head_dim: int | None = None,
        num_key_value_heads: int | None = None,
        block_size: int = 64,
        sliding_window: int | None = None,
        global_blocks: Iterable[int] = (),
        block_stride: int | None = None,
        num_random_blocks: int = 0,
        layout_seed: int = 0,
        block_layout: Any = None,
        rotary: Any = None,
        use_causal_mask: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.value_head_dim = check_integer("value_head_dim", value_head_dim, default=self.head_dim)
        self.num_key_value_heads = check_integer(
            "num_key_value_heads", num_key_value_heads, default=self.num_heads
        )
        if self.num_heads % self.num_key_value_heads:
            raise InvalidInputError(
                f"`num_key_value_heads` must divide `num_heads`, received "
                f"{num_key_value_heads} and {num_heads}."
            )
        self.use_causal_mask = check_boolean("use_causal_mask", use_causal_mask)
        self.rotary = read_rotary(self, rotary, head_dim=self.head_dim)
        self._layout = BlockLayout(
            block_size=block_size,
            is_causal=self.use_causal_mask,
            sliding_window=sliding_window,
            global_blocks=global_blocks,
            block_stride=block_stride,
            num_random_blocks=num_random_blocks,
            layout_seed=layout_seed,
            visible_blocks=None if block_layout is None else np.array(block_layout),
        )
        self.dropout = check_number("dropout", dropout, minimum=0, below=1)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.seed = seed
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        query, key = (self.num_heads, self.head_dim), (self.num_key_value_heads, self.head_dim)
        value = (self.num_key_value_heads, self.value_head_dim)
        self.query_dense = make_projection(self, "query", query)
        self.key_dense = make_projection(self, "key", key)
        self.value_dense = make_projection(self, "value", value)
        self.output_dense = make_projection(
            self, "attention_output", (dim,), equation="bthk,hkd->btd", bias_axes="d"
        )
        self.dropout_layer = keras.layers.Dropout(
            self.dropout, seed=self.seed, dtype=self.dtype_policy, name="dropout"
        )
        for projection in (self.query_dense, self.key_dense, self.value_dense):
            projection.build(input_shape)
        self.output_dense.build((*input_shape[:2], self.num_heads, self.value_head_dim))
        if self.rotary is not None:
            self.rotary.build((None, None, self.num_heads, self.head_dim))

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        heads = self.num_key_value_heads
        return {"key": (heads, self.head_dim), "value": (heads, self.value_head_dim)}

    def make_cache(self, batch_size: int, max_length: int) -> Cache:
        cache = super().make_cache(batch_size, max_length)
        plan_rows(self._layout, int(max_length))  # Raises an error if `block_layout` is too small.
        return cache

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
            self._check_global_blocks()
        length = read_length(self, inputs)

        def drop(weights: Any) -> Any:
            return self.dropout_layer(weights, training=training)

        query, key, value = (
            project_tokens(dense, inputs)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        start = 0 if cache is None else cache_index
        query, key = (self._rotate(x, positions, start) for x in (query, key))
        dropout = drop if self.dropout else None
        if cache is not None:
            cache = append_to_cache(cache, cache_index, {"key": key, "value": value}, mask)
        # At the beginning of a sequence there are no earlier tokens in the cache.
        if cache is None or not length or all_start_at_zero(cache_index):
            plan = plan_blocks(self._layout, length)
            heads = attend_to_blocks(query, key, value, plan, mask, dropout)
        else:
            heads = attend_to_cached_blocks(query, cache, cache_index, self._layout, dropout)
        outputs = project_tokens(self.output_dense, heads)
        return outputs if cache is None else (outputs, cache)

    def _check_global_blocks(self) -> None:
        if any(block < 0 for block in self._layout.global_blocks):
            raise InvalidInputError(
                f"{self.name!r} received a `cache`, but its `global_blocks` "
                f"{list(self._layout.global_blocks)} count from the end, which moves with every "
                f"token. Use block numbers from the beginning instead."
            )

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        spec = compute_call_spec(self, inputs, *args, **kwargs)
        if inputs.shape[1] is not None:
            plan_blocks(self._layout, inputs.shape[1])  # Raises if `block_layout` is too small.
        return spec

    def get_config(self) -> dict[str, Any]:
        layout = self._layout
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "value_head_dim": self.value_head_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "block_size": layout.block_size,
            "sliding_window": layout.sliding_window,
            "global_blocks": list(layout.global_blocks),
            "block_stride": layout.block_stride,
            "num_random_blocks": layout.num_random_blocks,
            "layout_seed": layout.layout_seed,
            "block_layout": None
            if layout.visible_blocks is None
            else layout.visible_blocks.tolist(),
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "use_causal_mask": self.use_causal_mask,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "seed": self.seed,
        }
