"""The key-value cache of all attention layers: a plain dict of tensors.

Each tensor has the shape `(batch_size, max_length, ...)`: one slot a token. The layer chooses the
names of the tensors. `"mask"`, boolean, is always among them: it is true at slots with tokens that
may be attended to, so padding, on the left or anywhere, stays in the cache. A layer offers

- `make_cache(batch_size, max_length)`: an empty cache;
- `layer(inputs, mask=..., positions=..., cache=cache, cache_index=index)`: writes the tokens of
  `inputs` into the slots from `index` and returns `(outputs, cache)`. The given cache is not
  changed, so a step works under jit, and two continuations may share a beginning.

A token attends to its own slot and earlier slots. Slots are not positions: if sequences are padded,
pass each token's own number as `positions`, here counted from a boolean mask:

    positions = ops.maximum(ops.cumsum(ops.cast(mask, "int32"), axis=1) - 1, 0)

`cache_index` is the number of slots that earlier calls have filled: an integer for all sequences,
or an integer tensor of shape `(batch_size,)` with one for each. With one for each, sequences of
different lengths need no padding on the left: a token's slot is its position. A sequence may begin
at 0 while others are in the middle; a sequence whose tokens are all masked stays as it is, or is
empty if its index is 0.

Skipped slots count as padding. A layer that keeps all tokens accepts a smaller index: it overwrites
the slots from there and forgets the tokens after those of the call.

A layer may also keep states: data of a sequence as a whole, such as a sum over its tokens. A call
replaces them, so they cover exactly the tokens of earlier calls. `LinearAttention` and the layers
of DeepSeek-V4 can't remove tokens from a state. Their calls continue after the last token, or start
again at 0. A smaller index is an error if the mask can be read at no cost: in eager mode on a CPU.
It is not checked under jit, where no value can be read, nor on a GPU or TPU, where each token would
have to wait for the check. There the outputs are wrong, so count the slots yourself.

The functions below implement this contract.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape, is_shape
from keras_deepseek.layers.position.start_index import (
    by_row,
    describe_start,
    is_by_row,
    is_start,
    read_starts,
)

Cache = dict[str, Any]


def make_cache(
    batch_size: int,
    max_length: int,
    entries: Mapping[str, tuple[int, ...]],
    dtype: str,
    *,
    states: Mapping[str, tuple[int, ...]] | None = None,
) -> Cache:
    """Returns an empty cache: a dict of zeros, with a `"mask"` that is false everywhere.

    `max_length` is the number of slots, in tokens. `entries` has the shape of one token's data, and
    `states` of one sequence's data, by name.
    """
    batch_size = check_integer("batch_size", batch_size, minimum=0)
    slots = (batch_size, check_integer("max_length", max_length))
    cache = {name: ops.zeros((*slots, *shape), dtype) for name, shape in entries.items()}
    for name, shape in (states or {}).items():
        cache[name] = ops.zeros((batch_size, *shape), dtype)
    return {**cache, "mask": ops.zeros(slots, "bool")}


def check_cache_arguments(cache: Cache | None, cache_index: Any) -> None:
    """Raises an error if `cache` and `cache_index` are invalid, or only one of them is given."""
    if cache is None and cache_index is not None:
        raise InvalidInputError(
            "Received a `cache_index` without a `cache`. Pass the cache that `make_cache` or the "
            "last call returned."
        )
    if cache is not None and cache_index is None:
        raise InvalidInputError(
            "Received a `cache` without a `cache_index`. Pass the number of slots that earlier "
            "calls have filled, 0 at first."
        )
    if cache is None:
        return
    _check_kinds(cache)
    batch_size = cache["mask"].shape[0] if "mask" in cache and cache["mask"].shape else None
    if not is_start(cache_index, batch_size):
        raise InvalidInputError(
            f"`cache_index` must be one integer for all sequences, or an integer tensor of shape "
            f"(batch_size,), here ({batch_size},); received {describe_start(cache_index)}."
        )
    if isinstance(cache_index, int) and cache_index < 0:
        raise InvalidInputError(
            "`cache_index` must be 0 or more, the number of slots that earlier calls have filled; "
            f"received {cache_index}."
        )


def check_states(
    cache: Cache,
    batch_size: int | None,
    make_shapes: Callable[[int], Mapping[str, tuple[int, ...]]],
) -> None:
    """Raises an error if a layer that caches only states is given the cache of another layer.

    `make_shapes` takes the number of slots and returns the shape of each state, by name and without
    the batch. A `batch_size` of `None` is unknown.
    """
    has_slots = "mask" in cache and len(cache["mask"].shape) > 1
    shapes = make_shapes((cache["mask"].shape[1] if has_slots else None) or 1)
    _check_names(cache, {"mask", *shapes})
    _check_shapes_of(cache, {"mask": (batch_size, None)})
    _check_shapes_of(cache, {name: (batch_size, *shape) for name, shape in shapes.items()})


def continue_cache(cache: Cache, cache_index: Any, resets: Sequence[str] = ()) -> Cache:
    """Returns the cache to continue from, for a layer that can't remove tokens from its states.

    Where the index is 0 the mask and the states of `resets` are set to zero. Raises an
    `InvalidInputError` if the cache holds tokens at or after the index, but only where the mask can
    be read at no cost.
    """
    starts = read_starts(cache_index)
    changed = {name: cache[name] for name in ("mask", *resets)}
    if starts is not None and not starts.any():
        return cache | {name: ops.zeros_like(x) for name, x in changed.items()}
    mask = None if starts is None else backend.current().compute.read_array(cache["mask"])
    if starts is not None and mask is not None:
        _check_direction(starts, mask)
    if starts is not None and starts.all():
        return cache
    goes_on = by_row(cache_index) > 0
    return cache | {
        name: ops.where(ops.reshape(goes_on, (-1, *[1] * (len(x.shape) - 1))), x, ops.zeros_like(x))
        for name, x in changed.items()
    }


def _check_direction(starts: Array, mask: Array) -> None:
    """Raises an error if a sequence has tokens at or after the slot from which it continues.

    `starts` has one slot for all sequences, or one each. `mask` is `(batch_size, max_length)`.
    """
    slots = np.arange(mask.shape[1])
    is_behind = mask & (slots >= starts[:, None]) & (starts[:, None] > 0)
    if is_behind.any():
        row = int(np.flatnonzero(is_behind.any(axis=1))[0]) if len(starts) > 1 else 0
        start, slot_mask = starts[row], mask[row] if len(starts) > 1 else mask.any(axis=0)
        last = int(np.flatnonzero(slot_mask)[-1])
        raise InvalidInputError(
            f"`cache_index` goes backwards{_name_row(starts, row)}: received {start}, but the "
            f"cache has tokens up to slot {last}, which can't be removed. Continue from "
            f"{last + 1}, start again at 0, or keep the cache that was returned before these "
            f"tokens."
        )


def _name_row(starts: Array, row: int) -> str:
    return f" for sequence {row}" if len(starts) > 1 else ""


def _check_shapes_of(cache: Cache, shapes: Mapping[str, Shape]) -> None:
    for name, shape in shapes.items():
        received = tuple(cache[name].shape)
        if not is_shape(received, shape):
            raise InvalidInputError(
                f"The cache's {name!r} must have the shape {shape}, received {received}. Make it "
                f"with the layer's own `make_cache`."
            )


def append_to_cache(
    cache: Cache,
    cache_index: Any,
    updates: Mapping[str, Any],
    mask: Any = None,
    *,
    states: Mapping[str, Any] | None = None,
) -> Cache:
    """Returns the cache with a call's tokens written to its slots, and later slots cleared.

    `cache_index` is the slot of the first token, of all sequences or of each. `updates` has
    `(batch_size, length, ...)` for each name except `"mask"` and the states. `mask`, `(batch_size,
    length)`, is required if `updates` is empty. The given dict is unchanged, except inside a
    function made by the backend's `compile_with_state`.

    Raises an `InvalidInputError` if the cache is full. Inside a traced function `cache_index` can't
    be read, so the caller must count slots: a full cache has its last slots overwritten, loses the
    tokens, or the backend raises its own error. An index for each sequence is also not read from an
    accelerator.
    """
    check_cache_arguments(cache, cache_index)
    if mask is None:
        mask = ops.ones(ops.shape(next(iter(updates.values())))[:2], "bool")
    updates, states = {**updates, "mask": mask}, states or {}
    _check_shapes(cache, updates, states)
    start = _read_start(cache, cache_index, updates["mask"].shape[1])
    stop, inference = start + ops.shape(updates["mask"])[1], backend.current().inference
    write: Callable[[Any, Any, Any], Any] = inference.write_slots
    if is_by_row(start):
        stop, write = ops.expand_dims(stop, 1), inference.write_slots_by_row
    written = {
        name: write(cache[name], start, ops.cast(update, cache[name].dtype))
        for name, update in updates.items()
    }
    # Clear the slots after the call's tokens: tokens of an earlier continuation would become
    # visible once a call skips slots.
    slots = ops.arange(ops.shape(cache["mask"])[1], dtype="int32")
    written["mask"] = ops.logical_and(written["mask"], slots < stop)
    return {name: ops.cast(x, cache[name].dtype) for name, x in states.items()} | written


def make_attention_mask(
    query_length: Any,
    key_length: Any,
    *,
    key_mask: Any = None,
    start_index: Any = 0,
    query_slots: Any = None,
    use_causal_mask: bool = False,
    sliding_window: int | None = None,
    attention_mask: Any = None,
) -> Any:
    """Combines all masks of an attention call into one; `None` if each query may see every key.

    The mask is boolean and broadcasts to `(batch_size, query_length, key_length)`.

    Args:
        query_length: Integer or scalar tensor.
        key_length: Integer or scalar tensor.
        key_mask: Boolean tensor of shape `(batch_size, key_length)`, or `None` for no padding.
        start_index: Integer, or integer tensor, scalar or of shape `(batch_size,)`. The slot of the
            first query.
        query_slots: Integer tensor of shape `(query_length,)`. The slots of the queries, counted
            from `start_index`, if they are not consecutive.
        use_causal_mask: If true, a query sees no later slot.
        sliding_window: A query sees slots less than this many away.
        attention_mask: Boolean tensor that broadcasts to the same shape, or `None`. A further mask.
    """
    mask = None if key_mask is None else ops.expand_dims(ops.cast(key_mask, "bool"), 1)
    if query_slots is None:
        query_slots = ops.arange(query_length, dtype="int32")
    queries = ops.add(by_row(start_index), query_slots)  # JAX adds no symbol to an array.
    keys = ops.arange(key_length, dtype="int32")
    # Slots from a key to a query; negative for a later key. The batch is 1 if all start alike.
    distance = ops.expand_dims(queries, 2) - keys
    rules = [] if attention_mask is None else [attention_mask]
    if use_causal_mask:
        rules.append(distance >= 0)
    if sliding_window is not None:
        rules.append(ops.abs(distance) < sliding_window)
    for rule in rules:
        mask = rule if mask is None else ops.logical_and(mask, rule)
    return mask


def _check_kinds(cache: Any) -> None:
    if not isinstance(cache, Mapping):
        raise InvalidInputError(
            f"`cache` must be a dict of tensors, received {type(cache).__name__}. Make it with the "
            f"layer's own `make_cache`."
        )
    for name, tensor in cache.items():
        if hasattr(tensor, "dtype"):
            received = keras.backend.standardize_dtype(tensor.dtype)
            fits = received == "bool" if name == "mask" else keras.backend.is_float_dtype(received)
        else:
            received, fits = type(tensor).__name__, False
        if not fits:
            raise InvalidInputError(
                f"The cache's {name!r} must be a "
                f"{'boolean' if name == 'mask' else 'floating-point'} tensor, received {received}. "
                f"Make it with the layer's own `make_cache`."
            )


def _check_names(cache: Cache, names: Set[str]) -> None:
    if set(cache) != names:
        raise InvalidInputError(
            f"The cache must hold {sorted(names)}, received {sorted(cache)}. Make it with the "
            f"layer's own `make_cache`."
        )


def _check_shapes(cache: Cache, updates: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    _check_names(cache, {*updates, *states})
    for name, update in updates.items():
        cache_shape, update_shape = tuple(cache[name].shape), tuple(update.shape)
        if not is_shape((cache_shape[0], *cache_shape[2:]), (update_shape[0], *update_shape[2:])):
            raise InvalidInputError(
                f"The cache's {name!r} must have the shape (batch_size, max_length, ...) for new "
                f"tokens of shape {update_shape}, received {cache_shape}."
            )
    _check_shapes_of(cache, {name: tuple(state.shape) for name, state in states.items()})


def _read_start(cache: Cache, cache_index: Any, length: int | None) -> Any:
    """Returns the index of the first slot to write, after checking that the tokens fit.

    It is an integer if there is one for all sequences and its value can be read; else a tensor.
    """
    starts, max_length = read_starts(cache_index), cache["mask"].shape[1]
    if starts is not None and starts.size:
        if (starts < 0).any():
            raise InvalidInputError(
                f"`cache_index` must be 0 or more, the number of slots that earlier calls have "
                f"filled; received {starts.min()}."
            )
        row = int(starts.argmax())
        if length is not None and max_length and starts[row] + length > max_length:
            raise InvalidInputError(
                f"The cache has {max_length} slots, received {length} tokens for the slots from "
                f"{starts[row]}{_name_row(starts, row)}. Create a cache with a larger `max_length`."
            )
    if starts is None or is_by_row(cache_index):
        return ops.cast(cache_index, "int32")
    return int(starts[0])
