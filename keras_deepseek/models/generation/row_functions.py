"""The functions of models and caches that are compiled into steps of rows.

Each takes a model, a state and inputs, and returns outputs and the next state. The state of rows
has their caches and their history: see `row_choice`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

from keras_deepseek import backend
from keras_deepseek.models.generation.row_choice import (
    History,
    choose_by_row,
    choose_greedily,
    count_tokens,
    describe,
    make_history,
)
from keras_deepseek.models.generation.row_sampling import ChoiceKind

Cache = list[dict[str, Any]]
State = dict[str, Any]


def make_staging(slots: int) -> Callable[..., tuple[Any, Cache]]:
    """Returns the function that makes the empty cache of a prompt."""
    return lambda model, _: ((), model.make_cache(1, slots))


def make_rows(rows: int, slots: int) -> Callable[..., tuple[Any, State]]:
    """Returns the function that makes the empty state of rows."""

    def make(model: Any, _: None) -> tuple[Any, State]:
        history = make_history(rows, int(model.output_shape[-1]))
        return (), {"cache": model.make_cache(rows, slots), "history": history}

    return make


def find_names(cache: Cache) -> set[tuple[int, str]]:
    """Returns the names of all tensors of a cache, with the numbers of their layers."""
    return {(layer, name) for layer, tensors in enumerate(cache) for name in tensors}


def _positions(index: Any, length: int) -> Any:
    return ops.expand_dims(index, 1) + ops.arange(length, dtype="int32")


def read(model: Any, cache: Cache, token_ids: Any, index: Any) -> tuple[Any, Cache]:
    """Reads a chunk of a prompt in which all tokens are real."""
    logits, _, cache = model.call_with_cache(
        token_ids,
        cache,
        index,
        positions=_positions(index, token_ids.shape[1]),
        num_logits=1,
        num_hidden_states=1,  # The last layer computes no other token.
    )
    return _start_choice(logits[:, -1]), cache


def read_with_mask(
    model: Any, cache: Cache, token_ids: Any, index: Any, mask: Any, last: Any
) -> tuple[Any, Cache]:
    """Reads a chunk of which the token at index `last` is the last real one."""
    hidden, cache = model.backbone.call_with_cache(
        token_ids, cache, index, mask, _positions(index, token_ids.shape[1])
    )
    logits = model.token_logits(ops.take(hidden, last, axis=1))
    return {
        **_start_choice(logits[:, -1]),
        "hidden": ops.copy(hidden),
    }, cache  # Without a mask of Keras.


def score(model: Any, _: tuple[()], hidden: Any, indices: Any, targets: Any) -> Any:
    """Returns the log-probabilities of tokens that follow those at some indices."""
    logits = model.token_logits(ops.take(hidden, indices, axis=1))
    return describe(logits[0], targets), ()


def decode(
    model: Any, cache: Cache, tokens: Any, is_active: Any, positions: Any
) -> tuple[Any, Cache]:
    """Reads the last token of each row."""
    logits, _, cache = model.call_with_cache(
        ops.expand_dims(tokens, 1),
        cache,
        positions,
        padding_mask=ops.expand_dims(is_active, 1),
        positions=ops.expand_dims(positions, 1),
        num_logits=1,
    )
    return _start_choice(logits[:, -1]), cache


def _start_choice(logits: Any) -> dict[str, Any]:
    logits = ops.cast(logits, "float32")
    return {**choose_greedily(logits), "logits": logits}


def choose(
    kind: ChoiceKind,
    sorts_all: bool,
    _: Any,
    history: History,
    logits: Any,
    uniforms: Any,
    numbers: Mapping[str, Any],
    tokens: Any,
    is_active: Any,
) -> tuple[Any, History]:
    """Chooses the next tokens, after `tokens` of active rows have been counted."""
    counts = bias = None
    if kind is ChoiceKind.ALL:
        counts, bias = count_tokens(history["counts"], tokens, is_active), history["bias"]
        history = {"counts": counts, "bias": bias}
    choice = choose_by_row(kind, logits, counts, bias, uniforms, numbers, sorts_all=sorts_all)
    return choice, history


def _flatten(state: State) -> Cache:
    """Returns the dicts of tensors of a state, each with an axis of rows."""
    return [*state["cache"], state["history"]]


def _restore(tensors: Cache) -> State:
    *cache, history = tensors
    return {"cache": cache, "history": history}


def place_row(_: Any, state: State, staging: State, row: Any) -> tuple[Any, State]:
    """Copies the state of one prompt into a row."""
    write = backend.current().inference.write_row
    return (), _restore(
        [
            {
                # The mask of the whole row: the slots behind a short prompt are those of another.
                name: write(tensor, row, _fit(small[name], tensor.shape[1], pads=name == "mask"))
                for name, tensor in large.items()
            }
            for large, small in zip(_flatten(state), _flatten(staging), strict=True)
        ]
    )


def resize_rows(rows: int, slots: int) -> Callable[..., tuple[Any, State]]:
    """Returns the function that copies rows into a new state. `is_copied` is false for new rows."""

    def copy(name: str, tensor: Any, source: Any, indices: Any, is_copied: Any) -> Any:
        copied = _fit(ops.take(source, indices, axis=0), tensor.shape[1], pads=True)
        return ops.logical_and(copied, is_copied[:, None]) if name == "mask" else copied

    def resize(model: Any, _: None, old: State, *rows_to_copy: Any) -> tuple[Any, State]:
        new = make_rows(rows, slots)(model, None)[1]
        return (), _restore(
            [
                {name: copy(name, x, source[name], *rows_to_copy) for name, x in target.items()}
                for target, source in zip(_flatten(new), _flatten(old), strict=True)
            ]
        )

    return resize


def _fit(tensor: Any, length: int, *, pads: bool) -> Any:
    """Cuts the axis of slots to `length`, and with `pads` fills it up with zeros."""
    if tensor.shape[1] > length:
        return tensor[:, :length]
    missing = length - tensor.shape[1]
    if not pads or not missing:
        return tensor
    return ops.pad(tensor, [[0, 0], [0, missing], *[[0, 0]] * (len(tensor.shape) - 2)])
