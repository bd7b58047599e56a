"""Layers that score every item and select the highest scores."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError

NO_ITEM_SCORE = -1e30
"""The score of items that can't be recommended: below any other, and finite, as JSON requires."""


@keras.saving.register_keras_serializable("keras_deepseek")
class ItemScores(keras.Layer):
    """A layer that returns logits in float32, with padding, item 0, below all others.

    Logits are `(batch_size, num_items + 1)`.
    """

    def call(self, logits: Any) -> Any:
        is_padding = ops.equal(ops.arange(logits.shape[-1]), 0)
        return ops.where(is_padding, NO_ITEM_SCORE, ops.cast(logits, "float32"))

    def compute_output_spec(self, logits: Any) -> Any:
        return keras.KerasTensor(logits.shape, dtype="float32")


@keras.saving.register_keras_serializable("keras_deepseek")
class TopItems(keras.Layer):
    """A layer that returns the items with the highest scores, without those of the history.

    A history of `length` items can hide at most `length` others. So the best `k` are among the best
    `k + length`, and no mask over all items is needed. Scores are `(batch_size, num_items + 1)`;
    item ids are `(batch_size, length)`, with a static length. The output is a dict of `"items"`,
    int32, and `"scores"`, float32, `(batch_size, k)`, the best first. If there are not enough
    items, the id is 0.
    """

    def __init__(self, k: int, exclude_seen: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = check_integer("k", k)
        self.exclude_seen = check_boolean("exclude_seen", exclude_seen)

    def call(self, scores: Any, item_ids: Any) -> Any:
        num_candidates = self._count_candidates(scores, item_ids)
        best, candidates = ops.top_k(scores, num_candidates)
        candidates = ops.cast(candidates, "int32")
        if self.exclude_seen:
            is_seen = ops.equal(
                ops.expand_dims(candidates, 2), ops.expand_dims(ops.cast(item_ids, "int32"), 1)
            )
            best = ops.where(ops.any(is_seen, axis=2), NO_ITEM_SCORE, best)
            best, indices = ops.top_k(best, self.k)
            candidates = _pick(candidates, indices)
        candidates = ops.where(best > NO_ITEM_SCORE, candidates, 0)
        return {"items": candidates, "scores": best}

    def _count_candidates(self, scores: Any, item_ids: Any) -> int:
        num_items = int(scores.shape[-1]) - 1
        if self.k > num_items:
            raise InvalidInputError(
                f"`k` must be at most the {num_items} items, received {self.k}."
            )
        if not self.exclude_seen:
            return self.k
        length = item_ids.shape[1]
        if not isinstance(length, int):
            raise InvalidInputError(
                f"{self.name!r} needs histories of a static length, received {item_ids.shape}."
            )
        return min(self.k + length, num_items + 1)

    def compute_output_spec(self, scores: Any, item_ids: Any) -> Any:
        self._count_candidates(scores, item_ids)
        shape = (scores.shape[0], self.k)
        return {
            "items": keras.KerasTensor(shape, dtype="int32"),
            "scores": keras.KerasTensor(shape, dtype="float32"),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "k": self.k, "exclude_seen": self.exclude_seen}


def _pick(rows: Any, indices: Any) -> Any:
    """Gathers the entries of integer rows at given indices.

    It uses a sum, because `take_along_axis` fixes the batch size in the graphs that PyTorch
    exports.
    """
    is_there = ops.equal(ops.expand_dims(ops.cast(indices, "int32"), 2), ops.arange(rows.shape[1]))
    return ops.sum(ops.where(is_there, ops.expand_dims(rows, 1), 0), axis=2)
