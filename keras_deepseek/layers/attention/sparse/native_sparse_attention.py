"""Native sparse attention: compressed blocks, chosen blocks and a sliding window.

Shape suffixes: B batch, L tokens of a call, N heads, G heads of keys and values, H size of a head,
M compressed blocks.
"""

from dataclasses import asdict
from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.attention.compressed.token_packing import (
    count_tokens,
    pack_tokens,
    take_rows,
)
from keras_deepseek.layers.attention.head_projection import make_projection, project_tokens
from keras_deepseek.layers.attention.key_value_cache import Cache, append_to_cache, check_states
from keras_deepseek.layers.attention.self_attention_layer import (
    SelfAttentionLayer,
    check_call,
    check_room,
    read_length,
)
from keras_deepseek.layers.attention.sparse.native_sparse_branches import (
    BRANCHES,
    KINDS,
    BlockCompression,
    NativeSparseBranches,
    put_places,
    swap_heads,
    take_places,
)
from keras_deepseek.layers.inner_layers import serialize_layer
from keras_deepseek.layers.input_check import Shape, read_dim
from keras_deepseek.layers.masks import complete_mask
from keras_deepseek.layers.position.rotary_embedding import check_positions, read_rotary
from keras_deepseek.layers.position.rotary_scaling import compute_score_factor
from keras_deepseek.layers.position.start_index import all_start_at_zero


@keras.saving.register_keras_serializable("keras_deepseek")
class NativeSparseAttention(SelfAttentionLayer):
    """Causal self-attention in three branches: to compressed blocks, chosen blocks, and a window.

    Choose it for a model that trains on long sequences from the beginning, so that it learns what
    to look up. Each branch has its own keys and values, and a gate computed from the token:

    ```
    output_t = W_o concat_h( sum over branches c of gate_tch attention(query_th, K_c, V_c) )
    gate_t = sigmoid(W_g x_t)

    K_compression   one key for each block of `compression_block_size` tokens, one block every
                    `compression_stride` tokens, by a perceptron with a vector for each place in
                    the block; only blocks that have ended by t
    K_selection     the tokens up to t of `num_selected_blocks` blocks of `selection_block_size`
    K_window        the last `sliding_window` tokens
    ```

    The first branch decides which blocks to choose. The importance of a block is the sum of the
    attention weights of compressed blocks, each times the number of strides that the two blocks
    share. It sums over the heads of queries that share a head of keys, which make one common
    choice. The first `num_initial_blocks` and the last `num_local_blocks` are always chosen. The
    choice has no gradient. The tokens that chose a block are gathered and multiplied with that
    block only. The cost of compressed keys is the square of the length divided by
    `compression_stride`; all other costs are linear in the length.

    With `rotary`, queries and keys are rotated by their positions. Compressed keys are rotated
    after compression, by the position of their first token. The attention scale is `head_dim **
    -0.5`, times YaRN's mscale squared.

    A boolean mask (from Keras, or `mask`) hides padding anywhere and is passed on; outputs at
    padding have no meaning. Blocks count only real tokens, so the same tokens give the same outputs
    however they are padded. Given positions must be consecutive within a block. The length
    need not be a multiple of any block size, but must be known when the layer computes. A
    Functional model may have an unknown length and be called with any length. Tracing a graph of
    unknown length raises an error: an export does so, and TensorFlow's `fit` and `predict` from the
    second length on.

    A cache is a dict of `"mask"`, of shape `(batch_size, max_length)`, and of states of shape
    `(batch_size, num_key_value_heads, places, dim)`: `"BRANCH_key"` and `"BRANCH_value"` of the
    three branches, which hold real tokens without gaps, and `"compressed_key"` and
    `"compressed_value"`. A decoding step compresses the block that a token ends, and gathers the
    blocks that it chooses.

    Args:
        num_heads: integer. Number of heads of queries.
        head_dim: integer. Size of each head of queries and keys.
        value_head_dim: integer or `None`. Size of each head of values. `None` means `head_dim`.
            Defaults to `None`.
        num_key_value_heads: integer or `None`. Number of heads of keys and values. It must divide
            `num_heads`; each serves a group of heads of queries. `None` means `num_heads`. Defaults
            to `None`.
        compression_block_size: integer. Tokens in a compressed block. Defaults to `32`.
        compression_stride: integer. Tokens from the start of a compressed block to the start of the
            next. It must divide both block sizes. Defaults to `16`.
        compression_hidden_dim: integer or `None`. Size of the hidden layer of the compressing
            perceptrons. `None` means `head_dim`. Defaults to `None`.
        selection_block_size: integer. Tokens in a block to choose. Defaults to `64`.
        num_selected_blocks: integer. Number of blocks that are chosen for each token, including
            those that are always chosen. Defaults to `16`.
        num_initial_blocks: integer. Number of blocks at the beginning that are always chosen.
            Defaults to `1`.
        num_local_blocks: integer. Number of blocks that are always chosen: the block of the token
            and those before it. Defaults to `2`.
        sliding_window: integer. Number of tokens in the window, the token itself included. Defaults
            to `512`.
        rotary: `RotaryEmbedding`, its serialized form, or `None` for no rotation. Defaults to
            `None`.
        use_bias: boolean. If true, the projections, the gates and the perceptrons add a bias.
            Defaults to `False`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. The initializer of all
            kernels. Defaults to `"glorot_uniform"`.
        bias_initializer: string, dict or `keras.initializers.Initializer`. Initializer of the
            biases. Defaults to `"zeros"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Raises:
        InvalidInputError: An argument is out of range, sizes or shapes do not match, the inputs
            have an unknown length, the cache is full, or `positions` are given without `rotary`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import NativeSparseAttention, RotaryEmbedding
    >>> layer = NativeSparseAttention(
    ...     4, head_dim=8, num_key_value_heads=1, compression_block_size=8, compression_stride=4,
    ...     selection_block_size=8, num_selected_blocks=4, sliding_window=16,
    ...     rotary=RotaryEmbedding(),
    ... )
    >>> tuple(layer(np.ones((1, 100, 12), "float32")).shape)
    (1, 100, 12)

    Reference:

    - [Native Sparse Attention (Yuan et al., 2025)](https://arxiv.org/abs/2502.11089)
    """

    def __init__(  # noqa: PLR0913 - three branches have as many
        self,
        num_heads: int,
        *,
        head_dim: int,
        value_head_dim: int | None = None,
        num_key_value_heads: int | None = None,
        compression_block_size: int = 32,
        compression_stride: int = 16,
        compression_hidden_dim: int | None = None,
        selection_block_size: int = 64,
        num_selected_blocks: int = 16,
        num_initial_blocks: int = 1,
        num_local_blocks: int = 2,
        sliding_window: int = 512,
        rotary: Any = None,
        use_bias: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_integer("num_heads", num_heads)
        self.head_dim = check_integer("head_dim", head_dim)
        self.num_key_value_heads = check_integer(
            "num_key_value_heads", num_key_value_heads, default=self.num_heads
        )
        self.value_head_dim = check_integer("value_head_dim", value_head_dim, default=self.head_dim)
        self.compression_hidden_dim = check_integer(
            "compression_hidden_dim", compression_hidden_dim, default=self.head_dim
        )
        if self.num_heads % self.num_key_value_heads:
            raise InvalidInputError(
                f"`num_key_value_heads` must divide `num_heads`, received "
                f"{self.num_key_value_heads} and {self.num_heads}."
            )
        self._branches = NativeSparseBranches(
            compression_block_size,
            compression_stride,
            selection_block_size,
            num_selected_blocks,
            num_initial_blocks,
            num_local_blocks,
            sliding_window,
        )
        for name, size in asdict(self._branches).items():
            setattr(self, name, size)
        self.use_bias = check_boolean("use_bias", use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.use_causal_mask = True
        self.rotary = read_rotary(self, rotary, head_dim=self.head_dim)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        dim = read_dim(self, input_shape)
        heads, groups = self.num_heads, self.num_key_value_heads
        sizes = {"key": self.head_dim, "value": self.value_head_dim}
        self.query_dense = make_projection(self, "query", (heads, self.head_dim))
        self.gate_dense = make_projection(self, "gate", (heads, len(BRANCHES)))
        self.key_value_denses = {
            f"{branch}_{kind}": make_projection(self, f"{branch}_{kind}", (groups, sizes[kind]))
            for branch in BRANCHES
            for kind in KINDS
        }
        for dense in (self.query_dense, self.gate_dense, *self.key_value_denses.values()):
            dense.build(input_shape)
        self.compressions = {
            kind: BlockCompression(
                self.compression_hidden_dim,
                use_bias=self.use_bias,
                kernel_initializer=self.kernel_initializer,
                bias_initializer=self.bias_initializer,
                dtype=self.dtype_policy,
                trainable=self.trainable,
                name=f"compress_{kind}",
            )
            for kind in KINDS
        }
        for kind, compression in self.compressions.items():
            compression.build((None, groups, None, self.compression_block_size, sizes[kind]))
        self.output_dense = make_projection(
            self, "attention_output", (dim,), equation="bthk,hkd->btd", bias_axes="d"
        )
        self.output_dense.build((*input_shape[:2], heads, self.value_head_dim))
        if self.rotary is not None:
            self.rotary.build((None, None, None, self.head_dim))

    def _state_shapes(self, max_length: int) -> dict[str, tuple[int, ...]]:
        block_size = self.selection_block_size
        lengths = dict.fromkeys(BRANCHES, -(-max_length // block_size) * block_size)
        # One more for blocks that no token will end, so that a step always has one to write.
        lengths["compressed"] = self._branches.count_compressed(max_length) + 1
        sizes = {"key": self.head_dim, "value": self.value_head_dim}
        return {
            f"{name}_{kind}": (self.num_key_value_heads, lengths[name], sizes[kind])
            for name in lengths
            for kind in KINDS
        }

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
        if positions is not None:
            check_positions(ops.convert_to_tensor(positions), inputs)
        length = read_length(self, inputs)
        if cache is not None:
            check_states(cache, inputs.shape[0], self._state_shapes)
        if 0 in inputs.shape[:2]:  # A softmax over no tokens would fail.
            outputs = ops.cast(inputs, self.compute_dtype)
            return outputs if cache is None else (outputs, cache)
        num_before = None
        if cache is not None:
            cache, num_before = self._open_cache(cache, cache_index, inputs, mask)
        tokens = pack_tokens(inputs, mask, positions, num_before)
        numbers = tokens.ranks
        # Positions minus numbers: what the caller's positions add to the count of real tokens.
        offsets = None if positions is None else tokens.positions - numbers

        # At the beginning of a sequence there are no earlier tokens in the cache.
        is_first = cache is None or all_start_at_zero(cache_index)
        # Positions are then 0, 1, 2, ..., which the rotary embedding computes by itself.
        is_counted = mask is None and positions is None and is_first
        query, keys = self._project(tokens.inputs, None if is_counted else tokens.positions)
        if cache is not None:
            cache = self._write(cache, keys, numbers, offsets)
        if cache is None or is_first:
            # At least one block, because attention needs a key. An incomplete block is hidden.
            num_blocks = max(1, self._branches.count_compressed(length))
            blocks = ops.expand_dims(ops.arange(num_blocks, dtype="int32"), 0)
            heads = self._branches.attend_to_tokens(
                query, keys | self._compress(keys, blocks, numbers, offsets)
            )
        else:
            heads = self._branches.attend_to_cache(query, cache, numbers)
        gates = ops.sigmoid(project_tokens(self.gate_dense, tokens.inputs))
        gated = [gates[..., i : i + 1] * head_BLNH for i, head_BLNH in enumerate(heads)]
        outputs = project_tokens(self.output_dense, gated[0] + gated[1] + gated[2])
        outputs = tokens.unpack(outputs)
        return outputs if cache is None else (outputs, cache)

    def _project(self, tokens: Any, positions: Any) -> tuple[Any, dict[str, Any]]:
        """Returns queries (BLNH), and keys and values (BGLH) of each branch."""
        keys = {
            name: project_tokens(dense, tokens) for name, dense in self.key_value_denses.items()
        }
        for branch in ("selection", "window"):
            keys[f"{branch}_key"] = self._rotate(keys[f"{branch}_key"], positions)
        query = self._rotate(project_tokens(self.query_dense, tokens), positions)
        if self.rotary is not None:
            query = query * compute_score_factor(self.rotary.scaling)
        return query, {name: swap_heads(x) for name, x in keys.items()}

    def _compress(
        self, keys: dict[str, Any], blocks: Any, numbers: Any, offsets: Any
    ) -> dict[str, Any]:
        """Compresses the blocks with given indices (BM) to keys and values (BGMH).

        `numbers` (BT) count the real tokens of the call. Their positions are larger by `offsets`
        (BT), or the same if that is `None`.
        """
        first = blocks * self.compression_stride
        positions = first
        if offsets is not None:  # Positions are consecutive within a block: its end is in the call.
            last = first + self.compression_block_size - 1 - numbers[:, :1]
            positions = first + take_rows(offsets, ops.clip(last, 0, numbers.shape[1] - 1))
        indices = ops.expand_dims(first, -1) + ops.arange(
            self.compression_block_size, dtype="int32"
        )
        indices = ops.reshape(indices, (-1, blocks.shape[1] * self.compression_block_size))
        compressed = {}
        for kind, compress in self.compressions.items():
            x = keys[f"compression_{kind}"]
            x = take_places(x, ops.minimum(indices, x.shape[2] - 1))
            sizes = (blocks.shape[1], self.compression_block_size, x.shape[-1])
            compressed[kind] = compress(ops.reshape(x, (-1, self.num_key_value_heads, *sizes)))
        compressed["key"] = self._rotate(compressed["key"], positions)
        return {f"compressed_{kind}": swap_heads(x) for kind, x in compressed.items()}

    def _open_cache(self, cache: Cache, index: Any, inputs: Any, mask: Any) -> tuple[Cache, Any]:
        """Returns the cache with new tokens in its mask, and the number of earlier tokens (B1)."""
        mask = complete_mask(mask, inputs)
        states = {name: cache[name] for name in self._state_shapes(cache["mask"].shape[1])}
        cache = append_to_cache(cache, index, {}, mask, states=states)
        return cache, ops.expand_dims(count_tokens(cache["mask"], index), 1)

    def _write(self, cache: Cache, keys: dict[str, Any], numbers: Any, offsets: Any) -> Cache:
        """Returns the cache with new tokens and the compressed blocks that they complete."""
        cache = cache | {name: put_places(cache[name], numbers, x) for name, x in keys.items()}
        stride = self.compression_stride
        first = ops.maximum(numbers[:, :1] - self.compression_block_size + stride, 0) // stride
        blocks = first + ops.arange((numbers.shape[1] - 1) // stride + 1, dtype="int32")
        blocks = ops.minimum(blocks, cache["compressed_key"].shape[2] - 1)
        compressed = self._compress(cache, blocks, numbers, offsets)
        return cache | {name: put_places(cache[name], blocks, x) for name, x in compressed.items()}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "value_head_dim": self.value_head_dim,
            "num_key_value_heads": self.num_key_value_heads,
            "compression_hidden_dim": self.compression_hidden_dim,
            **asdict(self._branches),
            "rotary": None if self.rotary is None else serialize_layer(self.rotary),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
