"""One layer of latent attention: its absorbed way, its naive one, and the one that it chooses."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
from compiled import Rival
from keras import ops

from keras_deepseek.layers import MultiHeadLatentAttention, RotaryEmbedding
from keras_deepseek.layers.attention import multi_head_latent_attention

WAYS = {"absorbed": True, "naive": False}


def make_rivals(
    num_queries: int, cache_length: int | None, sizes: dict[str, int], dim: int
) -> tuple[dict[str, Rival], dict[str, Any]]:
    """Returns the rivals for new tokens at the end of a full cache, or for a prompt without one."""
    rotary = RotaryEmbedding(use_interleaved_pairs=True)
    layer = MultiHeadLatentAttention(**sizes, rotary=rotary, use_causal_mask=True)
    layer.build((1, num_queries, dim))
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))

    inputs, facts = [draw(1, num_queries, dim)], {}
    if cache_length is not None:
        cache = layer.make_cache(1, cache_length)
        facts["cache_bytes_per_token"] = (
            sum(ops.convert_to_numpy(entry).nbytes for entry in cache.values()) / cache_length
        )
        cache = {name: draw(*entry.shape) for name, entry in cache.items() if name != "mask"}
        cache["mask"] = ops.ones((1, cache_length), "bool")
        index = ops.convert_to_tensor(cache_length - num_queries, "int32")
        inputs = [*inputs, cache, index]

    def call(tokens: Any, cache: Any = None, cache_index: Any = None) -> Any:
        return layer(tokens, cache=cache, cache_index=cache_index)

    functions = {name: _by_way(call, is_absorbed) for name, is_absorbed in WAYS.items()}
    functions["chosen"] = call
    _check_equal([function(*inputs) for function in functions.values()])
    return {name: Rival(f, inputs, [layer]) for name, f in functions.items()}, facts


def _by_way(call: Callable[..., Any], is_absorbed: bool) -> Callable[..., Any]:
    def call_by_way(*inputs: Any) -> Any:
        name = "is_absorbed_cheaper"
        with mock.patch.object(multi_head_latent_attention, name, return_value=is_absorbed):
            return call(*inputs)

    return call_by_way


def _check_equal(results: list[Any]) -> None:
    """The ways would otherwise be no rivals."""
    outputs = [result[0] if isinstance(result, tuple) else result for result in results]
    first, *other_arrays = (keras.ops.convert_to_numpy(output) for output in outputs)
    for other in other_arrays:
        difference = np.max(np.abs(first - other))
        if difference > 1e-4 * np.max(np.abs(first)):
            raise AssertionError(f"The ways differ by {difference}.")
