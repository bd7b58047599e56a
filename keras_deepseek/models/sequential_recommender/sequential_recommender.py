"""The sequential recommender, which scores all items from a user's history."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array, InferenceFunction
from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import Input, SampledSoftmax
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.compiled_functions import CompiledFunctions
from keras_deepseek.models.sequential_recommender.config import (
    SEQUENTIAL_RECOMMENDER,
    SequentialRecommenderConfig,
)
from keras_deepseek.models.sequential_recommender.interactions import pad_histories, read_histories
from keras_deepseek.models.sequential_recommender.sequential_recommender_backbone import (
    SequentialRecommenderBackbone,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class SequentialRecommender(PresetModel):
    """Self-attention over a user's history of items, which scores all items as the next one.

    Choose it if the order of a user's items matters. The score of an item is the product of its
    embedding and the hidden state of the newest item. The same item embedding is used for inputs
    and scores.

    A training model that shares its weights is trained at every position of a history at once, with
    a softmax over sampled items:

    ```
    recommender = SequentialRecommender(config)
    training_model = recommender.make_training_model(num_negatives=256)
    training_model.compile("adam")
    training_model.fit(split.train_inputs(50))
    recommender.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[HitRate(10), NormalizedDiscountedCumulativeGain(10)],
    )
    recommender.evaluate(*split.test_data(50))
    ```

    Export the model of `make_serving_model`, which maps histories to the best items.

    `save_to_preset` writes the fields of the config to `config.json`, and a tensor for each
    variable, named by its path. `from_preset` reads them. `transformers` has no such model.

    Args:
        config: `SequentialRecommenderConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: dict of `"item_ids"`: integer tensor of shape `(batch_size, length)`, oldest item
            first, padded with 0 on the left.

    Returns:
        Scores of the next item, float32 of shape `(batch_size, num_items + 1)`. The score of item
        0, the padding, is below all others.

    Raises:
        InvalidInputError: Histories are longer than the config's `max_length`.

    Example:

    >>> from keras_deepseek.models import SequentialRecommender, SequentialRecommenderConfig
    >>> config = SequentialRecommenderConfig.from_preset("tiny", num_items=20, max_length=8)
    >>> recommender = SequentialRecommender(config)
    >>> items, scores = recommender.recommend([[3, 1, 7], [5]], k=4)
    >>> items.shape, bool(set(items[0]) & {3, 1, 7})
    ((2, 4), False)

    Reference:

    - [Self-Attentive Sequential Recommendation (Kang and McAuley, 2018)](
      https://arxiv.org/abs/1808.09781)
    """

    architectures = SEQUENTIAL_RECOMMENDER.architectures
    config_class = SequentialRecommenderConfig

    def __init__(
        self, config: SequentialRecommenderConfig, *, dtype: Any = None, **kwargs: Any
    ) -> None:
        backbone = SequentialRecommenderBackbone(config, dtype=dtype, name="backbone")
        inputs = {"item_ids": Input((None,), dtype="int32", name="item_ids")}
        newest = backbone(inputs)[:, -1]
        logits = backbone.item_embedding(newest, reverse=True)
        scores = ItemScores(dtype="float32", name="scores")(logits)
        super().__init__(inputs, scores, **kwargs)
        self.config = config
        self.layers_policy = backbone.layers_policy
        self.backbone = backbone
        self._compiled = CompiledFunctions(self)

    def make_training_model(
        self,
        num_negatives: int = 128,
        *,
        item_weights: Sequence[float] | None = None,
        seed: int | None = None,
    ) -> keras.Model:
        """Returns a model that shares the weights and outputs the loss.

        It takes `"item_ids"` and `"targets"`, the next item at each position, 0 if there is none.
        Compile it with an optimizer only.

        Args:
            num_negatives: integer. Number of items to sample for a batch. Defaults to `128`.
            item_weights: sequence of `num_items` numbers, or `None` for equal ones. Unnormalized
                sampling probabilities of the items, item 1 first. Defaults to `None`.
            seed: integer or `None`. The random seed. Defaults to `None`.

        Raises:
            InvalidInputError: `item_weights` does not have one number for each item, or one is not
                positive.
        """
        if item_weights is not None:
            item_weights = [0.0, *_read_weights(item_weights, self.config.num_items)]
        inputs = {
            name: Input((None,), dtype="int32", name=name) for name in ("item_ids", "targets")
        }
        loss = SampledSoftmax(
            token_embedding=self.backbone.item_embedding,
            num_negatives=num_negatives,
            class_weights=item_weights,
            ignore_class=0,
            seed=seed,
            dtype=self.backbone.layers_policy,
            name="sampled_softmax",
        )
        hidden = self.backbone({"item_ids": inputs["item_ids"]})
        model = keras.Model(inputs, loss(hidden, inputs["targets"]), name=f"{self.name}_training")
        model.dtype_policy = self.dtype_policy  # By which Keras scales a loss in float16.
        return model

    def make_serving_model(
        self, k: int = 10, *, exclude_seen: bool = True, history_length: int | None = None
    ) -> keras.Model:
        """Returns a model from histories to the best items, to export and to serve.

        It takes `"item_ids"` of shape `(batch_size, history_length)` and returns a dict of
        `"items"` and `"scores"` of shape `(batch_size, k)`, the best first.

        Args:
            k: integer. Number of items to return. Defaults to `10`.
            exclude_seen: boolean. Whether to leave out items of the history. Defaults to `True`.
            history_length: integer, or `None` for the config's `max_length`. The length of the
                histories. Of longer ones the last `max_length` items are read, and all are left
                out. Defaults to `None`.

        Raises:
            InvalidInputError: There are fewer than `k` items.
        """
        length = check_integer("history_length", history_length, default=self.config.max_length)
        item_ids = Input((length,), dtype="int32", name="item_ids")
        scores = self({"item_ids": item_ids[:, -self.config.max_length :]})
        best = TopItems(k, exclude_seen, name="top_items")(scores, item_ids)
        return keras.Model({"item_ids": item_ids}, best, name=f"{self.name}_serving")

    def recommend(
        self, histories: Any, k: int = 10, *, exclude_seen: bool = True
    ) -> tuple[Array, Array]:
        """Returns the best items for some users, and their scores.

        It compiles a function for each `k`, and for few lengths and numbers of users, the powers of
        two. It uses the current weights.

        Args:
            histories: sequence of sequences of items, oldest first, of any lengths.
            k: integer. Number of items to return. Defaults to `10`.
            exclude_seen: boolean. Whether to leave out items of a user's own history. Defaults to
                `True`.

        Returns:
            A pair of arrays of shape `(num_users, k)`: items, the best first, and scores. If fewer
            than `k` items are left for a user, the others are 0.

        Raises:
            InvalidInputError: A history is not a sequence of integers, has an item that does not
                exist, or there are fewer than `k` items.
        """
        k, exclude_seen = check_integer("k", k), check_boolean("exclude_seen", exclude_seen)
        histories = read_histories(histories, self.config.num_items)
        longest = max(map(len, histories), default=0) if exclude_seen else 0
        # Doubled until it holds all histories, so that few lengths are compiled.
        length = self.config.max_length
        while length < longest:
            length *= 2

        def make() -> InferenceFunction:
            model = self.make_serving_model(k, exclude_seen=exclude_seen, history_length=length)
            return backend.current().inference.compile_inference(NamedModel(model))

        infer = self._compiled.find((k, exclude_seen, length), make)
        # Empty histories fill up the batch to a power of two, so that few sizes are compiled.
        count = len(histories)
        batch_size = 2 ** max(0, count - 1).bit_length()
        rows = [*histories, *([()] * (batch_size - count))]
        ranking = infer({"item_ids": pad_histories(rows, length)})
        return ranking["items"][:count], ranking["scores"][:count]


def _read_weights(item_weights: Any, num_items: int) -> list[float]:
    try:
        weights = np.asarray(item_weights, "float64")
    except (TypeError, ValueError):
        weights = None
    if weights is None or weights.shape != (num_items,):
        received = repr(item_weights) if weights is None else f"an array of shape {weights.shape}"
        raise InvalidInputError(
            f"`item_weights` must be one number for each of the {num_items} items, item 1 first; "
            f"received {received}."
        )
    is_good = np.isfinite(weights) & (weights > 0)
    if not is_good.all():
        item = int(np.argmin(is_good)) + 1
        raise InvalidInputError(
            "`item_weights` must be positive, because training needs every item as a negative. "
            f"Item {item} has {weights[item - 1]}. If the weights are counts, add 1."
        )
    return [float(weight) for weight in weights]


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
    is_chosen = ops.equal(ops.expand_dims(ops.cast(indices, "int32"), 2), ops.arange(rows.shape[1]))
    return ops.sum(ops.where(is_chosen, ops.expand_dims(rows, 1), 0), axis=2)
