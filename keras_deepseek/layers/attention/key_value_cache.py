"""The cache that every attention layer decodes with: a plain dict of tensors by name.

Each tensor has the shape `(batch_size, max_length, ...)`: one slot a token. Which tensors there
are, the layer says; `"mask"`, boolean, is always among them and is true where a slot holds a token
that may be looked at, so that padding, on the left or anywhere, is carried along. A layer offers

- `make_cache(batch_size, max_length)`: an empty cache;
- `layer(inputs, mask=..., positions=..., cache=cache, cache_index=index)`: writes the tokens of
  `inputs` into the slots from `index` on and returns `(outputs, cache)`. The cache that was given
  stays as it is, so a step works under jit, and two continuations may share a beginning.

A token looks at its own slot and those before it. Slots are not positions: where sequences are
padded, give each token's own number as `positions`, here counted from a boolean mask:

    positions = ops.maximum(ops.cumsum(ops.cast(mask, "int32"), axis=1) - 1, 0)

`cache_index` is the number of slots that earlier calls have filled. Slots that are skipped are as
padding. A layer that keeps all tokens may be called with a smaller index: it overwrites those from
there on, and forgets what lies behind the tokens of the call.

A layer may keep states beside the slots: what it needs of a sequence as a whole, such as a sum
over its tokens. A call replaces them, so they know the tokens of the calls before and no others.
Where a layer can't tell them apart again, as `LinearAttention` and the layers of DeepSeek-V4, a
call goes on behind the last token, or begins anew at 0, whatever the cache holds. A smaller index
is an error where the mask can be read at no cost: eagerly, on a CPU. It is not looked for under
jit, where no number can be read, nor on a GPU or TPU, whose work each token would have to wait for:
there the outputs are then wrong, so keep count.

The functions below are what such layers are written with.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.input_check import Shape, is_shape

Cache = dict[str, Any]


def make_cache(
    batch_size: int,
    max_length: int,
    entries: Mapping[str, tuple[int, ...]],
    dtype: str,
    *,
    states: Mapping[str, tuple[int, ...]] | None = None,
) -> Cache:
    """Returns an empty cache.

    Args:
        batch_size: integer. Number of sequences.
        max_length: integer. Number of slots, in tokens.
        entries: dict. For each name the shape of what is kept of one token.
        dtype: string. The dtype of these entries and of the states.
        states: dict or `None`. For each name the shape of what is kept of one sequence, whatever
            the number of slots. Defaults to `None`.

    Returns:
        A dict of zeros, with a `"mask"` that is false everywhere.

    Raises:
        InvalidInputError: A size is not a positive integer; of a batch, zero is one.
    """
    batch_size = check_integer("batch_size", batch_size, least=0)
    slots = (batch_size, check_integer("max_length", max_length))
    cache = {name: ops.zeros((*slots, *shape), dtype) for name, shape in entries.items()}
    for name, shape in (states or {}).items():
        cache[name] = ops.zeros((batch_size, *shape), dtype)
    return {**cache, "mask": ops.zeros(slots, "bool")}


def check_cache_arguments(cache: Cache | None, cache_index: Any) -> None:
    """Raises an error where a layer is called with one of the two alone, or with no such ones.

    Args:
        cache: dict or `None`.
        cache_index: integer, integer scalar tensor or `None`.

    Raises:
        InvalidInputError: One is `None` and the other is not, the cache is no dict of tensors of
            its kinds, or the index is not one integer.
    """
    if cache is None and cache_index is not None:
        raise InvalidInputError(
            "A `cache_index` needs a `cache`: that of `make_cache` at first, then the one that the "
            "last call returned."
        )
    if cache is not None and cache_index is None:
        raise InvalidInputError(
            "A `cache` needs a `cache_index`: the number of slots that earlier calls have filled, "
            "0 at first."
        )
    if cache is None:
        return
    _check_kinds(cache)
    if tuple(getattr(cache_index, "shape", ())) or not _is_integer(cache_index):
        raise InvalidInputError(
            "`cache_index` must be one integer, the same for all sequences of a batch: pad the "
            f"shorter ones on the left; received {cache_index!r}."
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
    """Raises an error where a layer that keeps nothing but states is given another one's cache.

    Args:
        cache: dict.
        batch_size: integer, or `None` where it is not known.
        make_shapes: Function of the number of slots that returns, for each name of a state, its
            shape without the batch.

    Raises:
        InvalidInputError: A state is missing, there are others, or one is of another shape.
    """
    has_slots = "mask" in cache and len(cache["mask"].shape) > 1
    shapes = make_shapes((cache["mask"].shape[1] if has_slots else None) or 1)
    _check_names(cache, {"mask", *shapes})
    _check_shapes_of(cache, {"mask": (batch_size, None)})
    _check_shapes_of(cache, {name: (batch_size, *shape) for name, shape in shapes.items()})


def go_on(cache: Cache, cache_index: Any, resets: Sequence[str] = ()) -> Cache:
    """Returns the cache of a layer that can't go back: an empty one where a call begins anew.

    Args:
        cache: dict.
        cache_index: integer or integer scalar tensor.
        resets: sequence of strings. The states that are set to zeros where a call begins anew, as
            the mask always is. Defaults to `()`.

    Raises:
        InvalidInputError: The cache holds tokens from the index on, and that can be read at no
            cost.
    """
    start = backend.current().compute.read_integer(cache_index)
    changed = {name: cache[name] for name in ("mask", *resets)}
    if start == 0:
        return cache | {name: ops.zeros_like(x) for name, x in changed.items()}
    if start is None:
        goes_on = ops.cast(cache_index, "int32") > 0
        return cache | {
            name: ops.where(goes_on, x, ops.zeros_like(x)) for name, x in changed.items()
        }
    mask = backend.current().compute.read_array(cache["mask"])
    if mask is not None and start > 0 and mask[:, start:].any():
        last = int(np.flatnonzero(mask.any(axis=0))[-1])
        raise InvalidInputError(
            f"`cache_index` goes backwards: received {start}, where the cache has tokens up to "
            f"slot {last}. A token can't be taken out of it again: go on from {last + 1}, begin "
            f"anew at 0, or keep the cache that was returned before these tokens."
        )
    return cache


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
    """Returns a cache with the tokens of a call written into its slots, and none behind them.

    Args:
        cache: dict. As `make_cache` returns it.
        cache_index: integer or integer scalar tensor. The slot of the first token.
        updates: dict. A tensor of shape `(batch_size, length, ...)` for each name but `"mask"` and
            those of states.
        mask: boolean tensor of shape `(batch_size, length)`, or `None` for no padding; it must be
            given where there are no updates. Defaults to `None`.
        states: dict or `None`. For each name of a state what takes its place. Defaults to `None`.

    Returns:
        A new dict; the given one is unchanged, unless it belongs to a function that the backend's
        `compile_with_state` made.

    Raises:
        InvalidInputError: There is no `cache_index`, names or shapes do not fit, or the cache is
            full. While a function is traced `cache_index` can't be read: a full cache then has its
            last slots overwritten, or raises an error of the backend, so count the slots outside.
    """
    check_cache_arguments(cache, cache_index)
    if mask is None:
        mask = ops.ones(ops.shape(next(iter(updates.values())))[:2], "bool")
    updates, states = {**updates, "mask": mask}, states or {}
    _check_shapes(cache, updates, states)
    start = _read_start(cache, cache_index, updates["mask"].shape[1])
    stop = start + ops.shape(updates["mask"])[1]
    write = backend.current().inference.write_slots
    written = {
        name: write(cache[name], start, ops.cast(update, cache[name].dtype))
        for name, update in updates.items()
    }
    # What an earlier continuation left there would be seen once slots are skipped.
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
    """Returns which queries may look at which keys.

    Args:
        query_length: integer or scalar tensor.
        key_length: integer or scalar tensor.
        key_mask: boolean tensor of shape `(batch_size, key_length)`, or `None` for no padding.
            Defaults to `None`.
        start_index: integer or scalar tensor. The slot of the first query. Defaults to `0`.
        query_slots: integer tensor of shape `(query_length,)`, or `None`. The slots of the queries,
            counted from `start_index`, where they do not follow one another. Defaults to `None`.
        use_causal_mask: boolean. Whether a query looks at no later slot. Defaults to `False`.
        sliding_window: integer or `None`. A query looks at slots less than so many away. Defaults
            to `None`.
        attention_mask: boolean tensor that broadcasts to `(batch_size, query_length, key_length)`,
            or `None`. A further rule. Defaults to `None`.

    Returns:
        A boolean tensor that broadcasts to `(batch_size, query_length, key_length)`, or `None`
        where every query may look at every key.
    """
    mask = None if key_mask is None else ops.expand_dims(ops.cast(key_mask, "bool"), 1)
    if query_slots is None:
        query_slots = ops.arange(query_length, dtype="int32")
    queries = query_slots + ops.cast(start_index, "int32")
    keys = ops.arange(key_length, dtype="int32")
    distance = ops.expand_dims(ops.expand_dims(queries, 1) - ops.expand_dims(keys, 0), 0)
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


def _is_integer(value: Any) -> bool:
    if hasattr(value, "dtype"):
        return "int" in keras.backend.standardize_dtype(value.dtype)
    return isinstance(value, int) and not isinstance(value, bool)


def _check_names(cache: Cache, names: Set[str]) -> None:
    if set(cache) != names:
        raise InvalidInputError(
            f"The cache must hold {sorted(names)}, received {sorted(cache)}. Make it with the "
            f"layer's own `make_cache`."
        )


def _check_shapes(cache: Cache, updates: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    _check_names(cache, {*updates, *states})
    for name, update in updates.items():
        kept, new = tuple(cache[name].shape), tuple(update.shape)
        if not is_shape((kept[0], *kept[2:]), (new[0], *new[2:])):
            raise InvalidInputError(
                f"The cache's {name!r} must have the shape (batch_size, max_length, ...) for new "
                f"tokens of shape {new}, received {kept}."
            )
    _check_shapes_of(cache, {name: tuple(state.shape) for name, state in states.items()})


def _read_start(cache: Cache, cache_index: Any, length: int | None) -> Any:
    """Returns the first slot: as a number where it can be read, and then the tokens must fit."""
    start = backend.current().compute.read_integer(cache_index)
    if start is None:
        return ops.cast(cache_index, "int32")
    max_length = cache["mask"].shape[1]
    if start < 0:
        raise InvalidInputError(
            "`cache_index` must be 0 or more, the number of slots that earlier calls have filled; "
            f"received {start}."
        )
    if length is not None and max_length and start + length > max_length:
        raise InvalidInputError(
            f"The cache has {max_length} slots, received {length} tokens for those from "
            f"{start} on. Make a cache of a larger `max_length`."
        )
    return start
