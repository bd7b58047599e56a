"""Choosing of the next token of each row, where each row has its own sampling.

The first part runs in compiled steps, the last one on the host. A history is a state of rows: for
each token of the vocabulary how often the row has it, and its bias.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.models.generation.row_sampling import ChoiceKind, is_greedy
from keras_deepseek.models.generation.token_choice import (
    divide,
    draw,
    is_finite,
    is_in_top_p,
    penalize,
)
from keras_deepseek.text.sampling import MAX_ALTERNATIVES, SamplingOptions

_NUM_CANDIDATES = 1024
"""The most likely tokens that are sorted for cutoffs: sorting all of them takes 14 times as long.

In 16 rows with a vocabulary of 129,280 that is 12 ms and 170 ms on PyTorch, on one core.
"""

Numbers = Mapping[str, Any]
History = dict[str, Any]

_GREEDY = SamplingOptions(temperature=0.0)


def choose_greedily(logits: Any) -> dict[str, Any]:
    """Returns the token with the largest logit of each row, and whether the logits are finite."""
    tokens = ops.cast(ops.argmax(logits, axis=-1), "int32")
    return {"tokens": tokens, "is_finite": is_finite(logits)}


def choose_by_row(
    kind: ChoiceKind,
    logits: Any,
    counts: Any,
    bias: Any,
    uniforms: Any,
    numbers: Numbers,
    *,
    sorts_all: bool = False,
) -> dict[str, Any]:
    """Returns the tokens of rows, and what goes with them.

    Penalties come first, then biases, then what `Sampler` does, in its order.

    Args:
        kind: What the rows need.
        logits: `(rows, vocabulary_size)`.
        counts: int32 tensor of this shape, of a history; read by `ChoiceKind.ALL` alone.
        bias: float32 tensor of this shape, of a history; likewise.
        uniforms: float32 `(rows,)`, in [0, 1).
        numbers: The arrays of `stack_numbers`.
        sorts_all: If true, cutoffs are found among all tokens, else among the most likely ones.

    Returns:
        Tensors by name: `"tokens"`; from `ChoiceKind.CUT` on `"is_exact"`, false in a row whose
            cutoffs need `sorts_all`; with `ChoiceKind.ALL` the log-probabilities of `RowOutputs`.
    """
    columns = {name: ops.expand_dims(number, -1) for name, number in numbers.items()}
    scores = ops.cast(logits, "float32")
    if kind is ChoiceKind.ALL:
        scores = _penalize(scores, counts, columns) + bias
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    scores = divide(scores, columns["temperature"])
    outputs = {}
    if kind >= ChoiceKind.CUT:
        bound, outputs["is_exact"] = _find_bound(scores, columns, sorts_all=sorts_all)
        scores = ops.where(scores >= bound, scores, -math.inf)
    tokens = ops.where(numbers["is_greedy"], best, draw(scores, uniforms))
    if kind is ChoiceKind.ALL:
        outputs.update(describe(logits, tokens))
    return {"tokens": tokens, **outputs}


def _penalize(scores: Any, counts: Any, columns: Numbers) -> Any:
    scores = penalize(scores, counts > 0, columns["repetition_penalty"])
    times = ops.cast(counts // 2, "float32")
    scores = scores - columns["frequency_penalty"] * times
    return scores - columns["presence_penalty"] * ops.cast(times > 0, "float32")


def _find_bound(scores: Any, columns: Numbers, *, sorts_all: bool) -> tuple[Any, Any]:
    """Returns the least score that is kept (rows, 1), and whether it is right (rows,).

    The largest score of each row is 0. A bound can't be told if all candidates are kept, and there
    may be more.
    """
    vocabulary_size = scores.shape[-1]
    number = vocabulary_size if sorts_all else min(_NUM_CANDIDATES, vocabulary_size)
    if number == vocabulary_size:
        ordered = ops.flip(ops.sort(scores, axis=-1), axis=-1)
    else:
        ordered = ops.top_k(scores, number)[0]
    is_in_top_k = ops.arange(number, dtype="int32") < columns["top_k"]
    weights = ops.where(is_in_top_k, ops.exp(ordered), 0.0)
    total = ops.where(
        columns["top_k"] <= number,
        ops.sum(weights, axis=-1, keepdims=True),
        ops.sum(ops.exp(scores), axis=-1, keepdims=True),
    )
    is_kept = is_in_top_p(ordered, weights / total, columns["top_p"])
    is_kept = ops.logical_and(is_in_top_k, is_kept)
    has_cut = ops.logical_or(columns["top_k"] < vocabulary_size, columns["top_p"] < 1)
    bound = ops.min(ops.where(is_kept, ordered, math.inf), axis=-1, keepdims=True)
    bound = ops.where(has_cut, bound, -math.inf)
    needs_more = ops.logical_and(has_cut, columns["top_k"] > number)
    needs_more = ops.logical_and(needs_more, ops.all(is_kept, axis=-1, keepdims=True))
    is_exact = ops.logical_or(ops.logical_not(needs_more), number == vocabulary_size)
    return ops.maximum(bound, ops.log(columns["min_p"])), ops.squeeze(is_exact, -1)


def describe(logits: Any, tokens: Any) -> dict[str, Any]:
    """Returns the log-probabilities of tokens and of the most likely ones, as of `RowOutputs`."""
    logits = ops.cast(logits, "float32")
    values, top_tokens = ops.top_k(logits, min(MAX_ALTERNATIVES, logits.shape[-1]))
    chosen = ops.take_along_axis(logits, ops.expand_dims(tokens, -1), axis=-1)
    # In one subtraction, so that a token has the same number in both.
    logs = ops.concatenate([chosen, values], axis=-1)
    logs = logs - ops.logsumexp(logits, axis=-1, keepdims=True)
    return {
        "log_probabilities": logs[:, 0],
        "top_tokens": ops.cast(top_tokens, "int32"),
        "top_log_probabilities": logs[:, 1:],
    }


def count_tokens(counts: Any, tokens: Any, is_active: Any) -> Any:
    """Returns the counts of a history with one more token of each active row."""
    rows, vocabulary_size = counts.shape
    indices = ops.arange(rows, dtype="int32") * vocabulary_size + tokens
    number = ops.take(ops.reshape(counts, (-1,)), indices)
    number = ops.expand_dims(number + 2 * ops.cast(is_active, "int32"), 1)
    return backend.current().inference.write_slots_by_row(counts, tokens, number)


def make_history(rows: int, vocabulary_size: int) -> History:
    """Returns the empty history of rows, as tensors.

    In `"counts"` a token of the prompt adds 1 once, and each token of the answer 2.
    """
    shape = (rows, vocabulary_size)
    return {"counts": ops.zeros(shape, "int32"), "bias": ops.zeros(shape, "float32")}


def start_history(
    prompt: Sequence[int], bias: Mapping[int, float] | None, vocabulary_size: int
) -> dict[str, Array]:
    """Returns the history of one row before its answer, as arrays."""
    history = {
        "counts": np.zeros((1, vocabulary_size), "int32"),
        "bias": np.zeros((1, vocabulary_size), "float32"),
    }
    history["counts"][0, np.asarray(prompt, "int64")] = 1
    for token, number in (bias or {}).items():
        history["bias"][0, token] = number
    return history


def stack_numbers(samplings: Sequence[SamplingOptions | None], vocabulary_size: int) -> Numbers:
    """Returns the settings of rows as arrays of shape `(rows,)` by name."""
    rows = [row or _GREEDY for row in samplings]
    names = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    numbers = {name: [getattr(row, name) for row in rows] for name in names}
    numbers["temperature"] = [1.0 if is_greedy(row) else row.temperature for row in rows]
    top_k = [min(row.top_k or vocabulary_size, vocabulary_size) for row in rows]
    return {
        **{name: np.asarray(values, "float32") for name, values in numbers.items()},
        "top_k": np.asarray(top_k, "int32"),
        "is_greedy": np.asarray([is_greedy(row) for row in rows]),
    }
