"""Sparse attention of DeepSeek-V3.2: latent attention over the few keys that an indexer chooses.

Shape suffixes are those of `latent_attention.py`, and I: size of a head of the indexer.
"""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_deepseek.backend.call_context import known_size
from keras_deepseek.backend.keras_private.quantization import can_read_kernel, read_kernel
from keras_deepseek.checks import check_boolean, check_integer, check_number
from keras_deepseek.layers.attention.compressed.lightning_indexer import (
    IndexerTraining,
    LightningIndexer,
    check_index_head_dim,
)
from keras_deepseek.layers.attention.key_value_cache import make_attention_mask
from keras_deepseek.layers.attention.latent_attention import (
    LatentKeys,
    LatentQueries,
    attend_chosen,
)
from keras_deepseek.layers.attention.multi_head_latent_attention import MultiHeadLatentAttention
from keras_deepseek.layers.heads.token_losses import average_losses
from keras_deepseek.layers.initializers import clone_initializer
from keras_deepseek.layers.input_check import Shape
from keras_deepseek.layers.last_tokens import take_last
from keras_deepseek.layers.position.rotary_embedding import RotaryEmbedding
from keras_deepseek.layers.token_chunks import map_chunks

_SMALLEST_WEIGHT = 1e-30
"""Replaces an attention weight of zero before a logarithm."""


@keras.saving.register_keras_serializable("keras_deepseek")
class DeepSeekSparseAttention(IndexerTraining, MultiHeadLatentAttention):
    """Multi-head latent attention in which each token attends only to its best keys.

    Choose it over `MultiHeadLatentAttention` for sequences many times longer than `index_top_k`, in
    training or from a cache. A `LightningIndexer` scores all keys by a small product. Absorbed
    attention then goes over the k best keys among those that the masks allow. With `c` the
    compressed queries,

    ```
    score(t, s) = sum over i of weight_i(x_t) * relu(index_query_i(c_t) . index_key(x_s))
    output(t) = latent attention of token t over the k keys s of the largest score(t, s)
    ```

    The chosen keys are gathered, not masked, so apart from the scores the work grows with the
    length times k. Queries are computed `chunk_size` at a time to limit memory; the backward pass
    recomputes each chunk. A sequence of at most k tokens is computed as in
    `MultiHeadLatentAttention`. A token that may see fewer than k keys attends to all of those.

    Masks, positions, the cache and the weights are as in `MultiHeadLatentAttention`. The cache also
    holds the indexer's key, `"index_key"`, with `index_head_dim` numbers a token.

    The choice of keys has no gradient, so the indexer has its own loss. With `indexer_loss_weight`,
    training adds that weight times

    ```
    mean over t of KL(p_t || softmax over the chosen s of score(t, s))
    ```

    where `p_t` is the mean of the heads' attention weights. The gradient of this loss reaches only
    the indexer, and the indexer gets no other gradient. With `index_top_k` equal to the length,
    this is the dense warm-up of the paper. Padding does not count, and a call with a cache adds no
    loss. Without `indexer_loss_weight` the indexer's weights are not trainable; set
    `train_indexer`, or later `indexer.trainable`, to train them by your own loss. Both are saved.

    Args:
        num_heads: integer. Number of attention heads.
        index_top_k: integer. The most keys that each token attends to: k.
        index_num_heads: integer. Number of heads of the indexer.
        index_head_dim: integer. Size of a head of the indexer, at least `rope_head_dim`.
        indexer_loss_weight: float or `None`. Weight of the indexer's loss. `None` adds no loss.
            Defaults to `None`.
        train_indexer: boolean or `None`. If true, the indexer's weights are trainable. `None` means
            true if `indexer_loss_weight` is given. Defaults to `None`.
        chunk_size: integer. The most queries to compute at once. Defaults to `128`.
        **kwargs: The other arguments of `MultiHeadLatentAttention`, including the required sizes,
            and those of `keras.Layer`.

    Raises:
        InvalidInputError: An argument is out of range, shapes do not match, the cache is full, or
            the layer has no causal mask and gets a cache.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import DeepSeekSparseAttention, RotaryEmbedding
    >>> layer = DeepSeekSparseAttention(
    ...     4, index_top_k=3, index_num_heads=2, index_head_dim=8, nope_head_dim=8,
    ...     rope_head_dim=4, value_head_dim=8, key_value_lora_rank=16, query_lora_rank=12,
    ...     rotary=RotaryEmbedding(use_interleaved_pairs=True), use_causal_mask=True,
    ... )
    >>> prompt = np.ones((2, 5, 32), "float32")
    >>> cache = layer.make_cache(batch_size=2, max_length=10)
    >>> outputs, cache = layer(prompt, cache=cache, cache_index=0)
    >>> outputs, cache = layer(prompt[:, :1], cache=cache, cache_index=5)
    >>> tuple(outputs.shape)
    (2, 1, 32)

    Reference:

    - [DeepSeek-V3.2 (DeepSeek-AI, 2025)](https://arxiv.org/abs/2512.02556)
    """

    def __init__(
        self,
        num_heads: int,
        *,
        index_top_k: int,
        index_num_heads: int,
        index_head_dim: int,
        indexer_loss_weight: float | None = None,
        train_indexer: bool | None = None,
        chunk_size: int = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, **kwargs)
        self.index_top_k = check_integer("index_top_k", index_top_k)
        self.index_num_heads = check_integer("index_num_heads", index_num_heads)
        self.index_head_dim = check_index_head_dim(index_head_dim, self.rope_head_dim)
        self.indexer_loss_weight = indexer_loss_weight
        if indexer_loss_weight is not None:
            self.indexer_loss_weight = check_number(
                "indexer_loss_weight", indexer_loss_weight, above=0
            )
        self.chunk_size = check_integer("chunk_size", chunk_size)
        self.indexer = LightningIndexer(
            self.index_num_heads,
            head_dim=self.index_head_dim,
            rotary=RotaryEmbedding(
                self.rotary.max_wavelength,
                rotary_dim=self.rope_head_dim,
                scaling=self.rotary.scaling,
            ),
            epsilon=self.epsilon,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            dtype=self.dtype_policy,
            name="indexer",
        )
        if train_indexer is None:
            train_indexer = indexer_loss_weight is not None
        self._set_indexer_training(check_boolean("train_indexer", train_indexer))

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        query_dim = self.query_lora_rank or input_shape[-1]
        self.indexer.build(input_shape, (*input_shape[:-1], query_dim))

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        return {**super()._cache_entries, "index_key": (self.index_head_dim,)}

    def _project(
        self,
        inputs: Any,
        query_input_BTQ: Any,
        position_arguments: dict[str, Any],
        num_outputs: int | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        queries, keys = super()._project(inputs, query_input_BTQ, position_arguments, num_outputs)
        # The indexer's loss must not train other layers.
        query_BTNI, weights_BTN, key_BSI = self.indexer(
            ops.stop_gradient(inputs), ops.stop_gradient(query_input_BTQ), **position_arguments
        )
        queries |= {
            "index_query": take_last(query_BTNI, num_outputs),
            "index_weights": take_last(weights_BTN, num_outputs),
        }
        return queries, {**keys, "index_key": key_BSI}

    def _attend(
        self,
        queries: dict[str, Any],
        keys: dict[str, Any],
        visibility: dict[str, Any],
        training: bool | None,
    ) -> Any:
        """Returns the outputs of each head (BTNV), in chunks; adds the indexer's loss."""
        has_cache = "mask" in keys
        adds_loss = bool(training) and self.indexer_loss_weight is not None and not has_cache
        key_length = known_size(keys["latent"].shape[1])
        num_keys = self.index_top_k
        if key_length is not None:
            num_keys = min(num_keys, key_length)
        chooses_all = num_keys == key_length
        needs_scores = adds_loss and num_keys > 0
        if chooses_all and not needs_scores:
            return super()._attend(queries, keys, visibility, training)

        batch_size, length = ops.shape(queries["nope"])[:2]
        rows = {name: queries[name] for name in ("nope", "rope", "index_query", "index_weights")}
        if training and self.dropout:
            # Drawn before the loop over chunks: not every backend can change the state of a random
            # generator inside a loop.
            shape = (batch_size, length, self.num_heads, num_keys)
            ones = ops.ones(shape, self.compute_dtype)
            rows["dropout_factor"] = self.drop(ones, training=training)
        fixed = {"slots": ops.expand_dims(ops.arange(length, dtype="int32"), 0)}
        if visibility["attention_mask"] is not None:
            # The axis of queries is split into chunks, so the mask must have its full length.
            ones = ops.ones((1, length, 1), "bool")
            fixed["attention_mask"] = ops.logical_and(visibility["attention_mask"], ones)
        constants = {"start_index": visibility["start_index"]}
        if visibility["key_mask"] is not None:
            constants["key_mask"] = visibility["key_mask"]
        shared = {name: keys[name] for name in ("latent", "rotary_key", "index_key")}
        for name, up in (("key_kernel", self.key_up), ("value_kernel", self.value_up)):
            shared[name] = self._read_kernel(up)
        outputs, losses = map_chunks(
            partial(self._attend_chunk, num_keys=num_keys, adds_loss=adds_loss),
            rows,
            fixed,
            shared,
            self.chunk_size,
            constants=constants,
            axis=1,
            recomputes=bool(training),
        )
        if adds_loss:
            mask = take_last(visibility["key_mask"], losses.shape[1])
            token_mask = ops.ones_like(losses) if mask is None else ops.cast(mask, losses.dtype)
            self.add_loss(self.indexer_loss_weight * average_losses(losses, token_mask))
        return outputs

    def _attend_chunk(
        self, chunk: dict[str, Any], *, num_keys: int, adds_loss: bool
    ) -> tuple[Any, Any]:
        """Returns the attention outputs (BTNV) and indexer losses (BT) of a chunk of queries.

        Unless `adds_loss`, the losses are a placeholder.
        """

        def drop(weights: Any) -> Any:
            return weights * chunk["dropout_factor"] if "dropout_factor" in chunk else weights

        mask_BTS = make_attention_mask(
            query_length=None,  # Not read: `query_slots` are given.
            key_length=ops.shape(chunk["latent"])[1],
            key_mask=chunk.get("key_mask"),
            start_index=chunk["start_index"],
            query_slots=chunk["slots"][0],
            use_causal_mask=self.use_causal_mask,
            attention_mask=chunk.get("attention_mask"),
        )
        scores_BTS = self.indexer.score_keys(
            chunk["index_query"], chunk["index_weights"], chunk["index_key"]
        )
        scores_BTS = scores_BTS if adds_loss else ops.stop_gradient(scores_BTS)
        indices_BTK, scores_BTK, is_chosen_BTK = self.indexer.choose_keys(
            scores_BTS, mask_BTS, num_keys
        )
        outputs_BTNV, weights_BTNK = attend_chosen(
            LatentQueries(chunk["nope"], chunk["rope"]),
            LatentKeys(chunk["latent"], chunk["rotary_key"]),
            indices_BTK,
            is_chosen_BTK,
            (chunk["key_kernel"], chunk["value_kernel"]),
            drop,
        )
        if not adds_loss:
            placeholder_BT = scores_BTK[..., 0]  # `map_chunks` expects a tensor, which is not read.
            return outputs_BTNV, placeholder_BT
        return outputs_BTNV, _divergence(weights_BTNK, scores_BTK, is_chosen_BTK)

    def _read_kernel(self, up: Any) -> Any:
        """Returns the kernel of an up-projection (CNP or CNV), dequantized if needed."""
        if can_read_kernel(up):
            return read_kernel(up, self.compute_dtype)
        return up(ops.eye(self.key_value_lora_rank, dtype=self.compute_dtype)[None])[0]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "index_top_k": self.index_top_k,
            "index_num_heads": self.index_num_heads,
            "index_head_dim": self.index_head_dim,
            "indexer_loss_weight": self.indexer_loss_weight,
            "chunk_size": self.chunk_size,
        }


def _divergence(weights_BTNK: Any, scores_BTK: Any, is_chosen_BTK: Any) -> Any:
    """Returns KL(mean over heads of weights || softmax of scores) over the chosen keys (BT).

    It is zero for a query without a chosen key. The weights get no gradient.
    """
    target_BTK = ops.mean(ops.cast(ops.stop_gradient(weights_BTNK), scores_BTK.dtype), axis=2)
    target_BTK = ops.where(is_chosen_BTK, target_BTK, 0.0)
    log_scores_BTK = scores_BTK - ops.logsumexp(scores_BTK, axis=-1, keepdims=True)
    # `ops.maximum` would return float32 on PyTorch.
    positive_BTK = ops.where(target_BTK > _SMALLEST_WEIGHT, target_BTK, _SMALLEST_WEIGHT)
    ratios_BTK = ops.log(positive_BTK) - ops.where(is_chosen_BTK, log_scores_BTK, 0.0)
    return ops.sum(target_BTK * ratios_BTK, axis=-1)
