"""Ranking metrics over all items, from the rank of the item that the user chose next."""

from typing import Any

import keras
from keras import ops

from keras_deepseek.checks import check_integer


class _RankingMetric(keras.metrics.Mean):
    """The mean over users of a metric that depends on the rank of the next item.

    Its state is sums only, so the states of several processes can be added.
    """

    def __init__(self, k: int = 10, name: str | None = None, dtype: Any = None) -> None:
        self.k = check_integer("k", k)
        super().__init__(name=name or f"{self._short_name}_at_{k}", dtype=dtype)

    _short_name = ""

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        ranks = rank_targets(y_true, y_pred)
        worth = ops.where(ops.less(ranks, self.k), self._value(ops.cast(ranks, "float32")), 0.0)
        return super().update_state(worth, sample_weight)

    def _value(self, ranks: Any) -> Any:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {"k": self.k, "name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable("keras_deepseek")
class HitRate(_RankingMetric):
    """The share of users whose next item is among the first `k` of the ranking.

    Choose it to see how often a short list contains the right item. All items are ranked: a sample
    of them would give too good values. Of equal scores the lower item id comes first, as in
    `recommend`. A score of NaN comes last.

    Args:
        k: integer. Number of items that count. Defaults to `10`.
        name: string, or `None` for `hit_rate_at_` and `k`. Defaults to `None`.
        dtype: string or `None`. The dtype of the metric. Defaults to `None`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import HitRate
    >>> metric = HitRate(2)
    >>> metric.update_state(np.array([2, 3]), np.array([[0.0, 3.0, 2.0, 1.0]] * 2))
    >>> float(metric.result())
    0.5
    """

    _short_name = "hit_rate"

    def _value(self, ranks: Any) -> Any:
        return ops.ones_like(ranks)


@keras.saving.register_keras_serializable("keras_deepseek")
class NormalizedDiscountedCumulativeGain(_RankingMetric):
    """The mean of `1 / log2(rank + 2)` of the next item, 0 from rank `k` on; ranks begin at 0.

    Choose it if a higher place in the list should count more. It is the NDCG of a ranking with one
    relevant item. Items are ranked as in `HitRate`.

    Args:
        k: integer. Number of items that count. Defaults to `10`.
        name: string, or `None` for `ndcg_at_` and `k`. Defaults to `None`.
        dtype: string or `None`. The dtype of the metric. Defaults to `None`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import NormalizedDiscountedCumulativeGain
    >>> metric = NormalizedDiscountedCumulativeGain(2)
    >>> metric.update_state(np.array([1, 3]), np.array([[0.0, 3.0, 2.0, 1.0]] * 2))
    >>> float(metric.result())
    0.5
    """

    _short_name = "ndcg"

    def _value(self, ranks: Any) -> Any:
        return ops.log(2.0) / ops.log(ranks + 2.0)


def rank_targets(targets: Any, scores: Any) -> Any:
    """Returns the number of items ranked before each target item, int32 `(batch_size,)`.

    Targets are `(batch_size,)` or `(batch_size, 1)`; scores `(batch_size, num_items + 1)`, where
    item 0, the padding, counts too.
    """
    scores = ops.convert_to_tensor(scores)
    targets = ops.cast(ops.reshape(targets, (-1, 1)), "int32")
    target_scores = ops.take_along_axis(scores, targets, axis=1)
    items = ops.expand_dims(ops.arange(scores.shape[-1], dtype="int32"), 0)
    # This counts the items that the target beats. A target of NaN beats nothing.
    behind = ops.logical_or(
        ops.greater(target_scores, scores),
        ops.logical_and(ops.equal(target_scores, scores), ops.less(targets, items)),
    )
    return scores.shape[-1] - 1 - ops.sum(ops.cast(behind, "int32"), axis=1)
