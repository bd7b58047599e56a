"""Sampled softmax: trains a model of very many classes on a few randomly drawn ones.

Classes are drawn in constant time from any distribution, by Walker's alias method.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.call_context import set_loss_normalizer
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers.double_precision import multiply_matrices, promote_dtypes
from keras_deepseek.layers.heads.token_losses import (
    average_losses,
    mark_unknown_classes,
    weigh_tokens,
)
from keras_deepseek.layers.heads.vocabulary_head import VocabularyHead, project
from keras_deepseek.layers.input_check import Shape, bound_indices, check_tokens


@keras.saving.register_keras_serializable("keras_deepseek")
class SampledSoftmax(VocabularyHead):
    """Cross entropy over the target and a few randomly drawn classes, for very many classes.

    Choose it for training if the logits of all classes cost too much even in the chunks of
    `ChunkedCrossEntropy`, such as the items of a recommender. One draw, with replacement, serves
    all tokens of a batch. If `q` is the probability of drawing a class,

    ```
    score(class) = x @ kernel[:, class] - log(q(class))
    loss of a token = logsumexp(score of the target, scores of the drawn) - score of the target
    ```

    With the correction by `log(q)`, the logits `x @ kernel` learn the probabilities of the classes
    for any `q`. Without it, classes that are drawn often would get too low logits. A drawn class
    that equals the target counts like any other, as in the proof.

    `q` is proportional to `class_weights`. They may be equal, or counts of the training data, best
    to a power of about 0.75, so that popular classes are drawn more often and rare classes still
    are.

    Called with targets, it returns the loss of each token and adds their mean to the losses of the
    model, like `ChunkedCrossEntropy`: compile the model without a loss. Without targets it returns
    the logits of all classes. All shapes are static, so XLA compiles it once.

    Args:
        vocabulary_size: integer or `None`. The number of classes. `None` takes that of
            `token_embedding`. Defaults to `None`.
        token_embedding: `keras.layers.Embedding` or `None`. Its table is the kernel. `None` creates
            a kernel. Defaults to `None`.
        num_negatives: integer. The number of classes to draw for a batch. Defaults to `128`.
        class_weights: sequence of numbers, or `None` for equal weights. The relative probability of
            drawing each class. It must be positive except for `ignore_class`, which is never drawn.
            Defaults to `None`.
        ignore_class: integer or `None`. The target of tokens that do not count, such as 0 if that
            is padding. Defaults to `None`.
        seed: integer or `None`. Random seed of the draws. Defaults to `None`.
        kernel_initializer: string, dict or `keras.initializers.Initializer`. Defaults to
            `"glorot_uniform"`.
        **kwargs: Arguments of `keras.Layer`, such as `name` and `dtype`.

    Call arguments:
        inputs: Floating-point tensor of shape `(batch_size, ..., dim)`.
        targets: Integer tensor of shape `(batch_size, ...)`, or `None` for logits.
        sample_weight: Floating-point tensor of shape `(batch_size, ...)`, or `None` for ones.
        mask: Boolean tensor of shape `(batch_size, ...)`, false at tokens that do not count, or
            `None` to use the mask of `inputs`.
        inputs_mask: The mask of `inputs`, which Keras sets if the call has several tensors. `mask`
            takes precedence.

    Returns:
        With targets, the losses, of shape `(batch_size, ...)`, 0 for tokens that do not count and
        NaN if the target is not a class. Without targets, the logits, of shape
        `(batch_size, ..., vocabulary_size)`.

    Raises:
        InvalidInputError: A size or a weight is out of range, the inputs are not floating-point,
            targets are not integers, or a shape does not match the inputs.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.layers import SampledSoftmax
    >>> head = SampledSoftmax(1000, num_negatives=16, class_weights=np.arange(1000) + 1.0)
    >>> hidden, targets = np.ones((2, 5, 12), "float32"), np.ones((2, 5), "int32")
    >>> tuple(head(hidden, targets).shape), len(head.losses)
    ((2, 5), 1)
    >>> tuple(head(hidden).shape)
    (2, 5, 1000)

    Reference:

    - [Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model
      (Bengio and Senecal, 2008)](https://doi.org/10.1109/TNN.2007.912312), the correction
    - [Noise Contrastive Estimation and Negative Sampling for Conditional Models (Ma and Collins,
      2018)](https://arxiv.org/abs/1809.01812), what it converges to
    """

    def __init__(
        self,
        vocabulary_size: int | None = None,
        token_embedding: Any = None,
        *,
        num_negatives: int = 128,
        class_weights: Sequence[float] | None = None,
        ignore_class: int | None = None,
        seed: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocabulary_size,
            token_embedding,
            use_bias=False,
            kernel_initializer=kernel_initializer,
            bias_initializer="zeros",
            **kwargs,
        )
        self.num_negatives = check_integer("num_negatives", num_negatives)
        if ignore_class is not None:
            ignore_class = check_integer("ignore_class", ignore_class, minimum=-(2**31))
        self.ignore_class = ignore_class
        self._probabilities = _read_weights(class_weights, self.vocabulary_size, ignore_class)
        self.class_weights = None
        if class_weights is not None:
            self.class_weights = [float(weight) for weight in class_weights]
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        with np.errstate(divide="ignore"):
            logs = np.log(self._probabilities)
        tables = {"log_probabilities": np.where(np.isfinite(logs), logs, 0.0).astype("float32")}
        tables["acceptances"], tables["aliases"] = make_alias_table(self._probabilities)
        for name, table in tables.items():
            weight = self.add_weight(
                name=name,
                shape=table.shape,
                dtype=str(table.dtype),
                initializer=_ArrayInitializer(table),
                trainable=False,
                autocast=False,
            )
            setattr(self, name, weight)

    def call(
        self,
        inputs: Any,
        targets: Any = None,
        sample_weight: Any = None,
        mask: Any = None,
        inputs_mask: Any = None,
    ) -> Any:
        if targets is None:
            return project(inputs, *self.projection())
        mask = inputs_mask if mask is None else mask
        check_tokens("targets", targets, inputs, is_integer=True)
        losses = self._compute_losses(inputs, targets)
        dtype = promote_dtypes(self.compute_dtype, "float32")
        weights = weigh_tokens(inputs, targets, dtype, self.ignore_class, sample_weight, mask)
        losses = mark_unknown_classes(losses, targets, weights, self.vocabulary_size)
        self.add_loss(average_losses(ops.where(ops.equal(weights, 0), 0.0, losses), weights))
        set_loss_normalizer(ops.sum(weights))
        losses = ops.where(ops.equal(weights, 0), 0.0, losses)
        return ops.cast(losses, self.compute_dtype)

    def draw_classes(self) -> Any:
        """Returns the classes of one draw, int32 of shape `(num_negatives,)`."""
        # Walker's alias method needs two random numbers a class, for any probabilities.
        shape = (self.num_negatives,)
        drawn = keras.random.randint(shape, 0, self.vocabulary_size, seed=self.seed_generator)
        chance = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        stays = chance < ops.take(self.acceptances, drawn, axis=0)
        return ops.where(stays, drawn, ops.take(self.aliases, drawn, axis=0))

    def _compute_losses(self, inputs: Any, targets: Any) -> Any:
        hidden = ops.cast(inputs, self.compute_dtype)
        labels = bound_indices(targets, self.vocabulary_size)[0]
        negatives = self.draw_classes()
        dtype = promote_dtypes(self.compute_dtype, "float32")
        positive = ops.sum(ops.cast(hidden * self.read_rows(labels), dtype), axis=-1)
        positive = positive - ops.cast(self._log_probabilities(labels), dtype)
        negative = multiply_matrices(hidden, ops.transpose(self.read_rows(negatives)))
        negative = ops.cast(negative, dtype) - ops.cast(self._log_probabilities(negatives), dtype)
        scores = ops.concatenate([ops.expand_dims(positive, -1), negative], axis=-1)
        return ops.logsumexp(scores, axis=-1) - positive

    def _log_probabilities(self, classes: Any) -> Any:
        return ops.take(self.log_probabilities, classes, axis=0)

    def compute_output_spec(
        self, inputs: Any, targets: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        check_tokens("targets", targets, inputs, is_integer=True)
        shape: Shape = tuple(inputs.shape[:-1])
        if targets is None:
            shape = (*shape, self.vocabulary_size)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("use_bias", "bias_initializer"):
            del config[name]
        return {
            **config,
            "num_negatives": self.num_negatives,
            "class_weights": self.class_weights,
            "ignore_class": self.ignore_class,
            "seed": self.seed,
        }


def _read_weights(weights: Any, count: int, ignore_class: int | None) -> Any:
    """Checks class weights, and returns each class's probability of being drawn, in float64."""
    numbers = np.ones(count) if weights is None else np.array(weights, "float64")
    if numbers.shape != (count,):
        raise InvalidInputError(
            f"`class_weights` must hold one number for each of the {count} classes, received "
            f"shape {numbers.shape}."
        )
    counts = np.ones(count, bool)
    if ignore_class is not None and 0 <= ignore_class < count:
        counts[ignore_class] = False
    numbers = np.where(counts, numbers, 0.0)
    if not np.all(np.isfinite(numbers)) or not counts.any() or np.any(numbers[counts] <= 0):
        wrong = int(np.argmax(counts & ~(np.isfinite(numbers) & (numbers > 0))))
        raise InvalidInputError(
            f"`class_weights` must be positive, received {numbers[wrong]} for class {wrong}. A "
            "class that is never drawn can't be learnt. If the weights are counts, add 1 to them."
        )
    return numbers / numbers.sum()


class _ArrayInitializer(keras.initializers.Initializer):
    """An initializer that returns a given array."""

    def __init__(self, numbers: Any) -> None:
        self._numbers = numbers

    def __call__(self, shape: Shape, dtype: Any = None) -> Any:
        return ops.convert_to_tensor(self._numbers, dtype=dtype)


def make_alias_table(probabilities: Any) -> tuple[Array, Array]:
    """Returns the acceptance chances (float32) and the aliases (int32) of an alias table.

    To draw a class, draw one uniformly, keep it with its chance, and otherwise take its alias. The
    probabilities, of shape `(num_classes,)`, sum to 1.
    """
    # Each class is a column of height 1: columns that are too high fill up columns too low.
    heights = np.asarray(probabilities, "float64") * len(probabilities)
    chances = np.ones(len(heights))
    aliases = np.arange(len(heights), dtype="int32")
    low = list(np.flatnonzero(heights < 1))
    high = list(np.flatnonzero(heights >= 1))
    while low and high:
        filled, giver = low.pop(), high[-1]
        chances[filled], aliases[filled] = heights[filled], giver
        heights[giver] -= 1 - heights[filled]
        if heights[giver] < 1:
            low.append(high.pop())
    # The rest has height 1 up to rounding, except a class of probability 0, never to be drawn.
    for unpaired in low:
        if probabilities[unpaired] == 0:
            chances[unpaired], aliases[unpaired] = 0.0, int(np.argmax(probabilities))
    return chances.astype("float32"), aliases
