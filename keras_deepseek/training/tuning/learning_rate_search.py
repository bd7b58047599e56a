"""The learning rate range test: a short training whose rate grows from step to step."""

import dataclasses
import math
import os
import warnings
from typing import Any

import keras
import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.checks import check_integer, check_number
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.training.checkpoints.training_state import find_not_finite
from keras_deepseek.training.tuning.short_training import ShortTraining

_SMOOTHING = 0.8  # The decay of the moving average over 100 losses: a window of about nine.
_FALL_BEGUN = 0.1  # The share of its whole fall after which the loss counts as falling.
_EXPLOSION = 3.0  # The rise that ends the test, in multiples of the first loss.


@dataclasses.dataclass(frozen=True)
class LearningRateSearch:
    """The result of a learning rate range test.

    The rate grows by a constant factor from step to step, as Smith proposes. `suggestion` is the
    rate at which the smoothed loss falls the steepest, over the logarithm of the rate, before its
    lowest point. fastai calls this rule "steep". Only steps count at which the loss has fallen by
    more than its noise. `suggestion` is `None` if there are none.

    Args:
        rates: list of floats. The learning rate of each step.
        losses: list of floats. The losses, smoothed over about a tenth of the steps in both
            directions, so without delay. A loss that rises by more than the loss had fallen is
            clipped first.
        raw_losses: list of floats. The loss of each step's batch.
        suggestion: float or `None`. The rate to train with.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import Trainer
    >>> x = np.random.default_rng(0).normal(size=(64, 4))
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
    >>> search = trainer.find_learning_rate(x, x[:, :1], min_learning_rate=1e-4, num_steps=20)
    >>> 1e-3 < search.suggestion < 1.0
    True

    Reference:

    - [Cyclical Learning Rates for Training Neural Networks (Smith, 2017)](https://arxiv.org/abs/1506.01186)
    - [fastai (Howard and Gugger, 2020)](https://arxiv.org/abs/2002.04688)
    """

    rates: list[float]
    losses: list[float]
    raw_losses: list[float]
    suggestion: float | None

    def save_picture(self, path: str | os.PathLike[str]) -> None:
        """Saves a plot of the losses over the rates, with the suggestion.

        Args:
            path: string or path. Its extension sets the format: `.png`, `.svg`, `.pdf`.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError("matplotlib", "pictures", "to draw a picture") from error
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.semilogx(self.rates, self.raw_losses, ".", color="0.7", label="of each step")
        axes.semilogx(self.rates, self.losses, label="smoothed")
        if self.suggestion is not None:
            label = f"suggestion: {self.suggestion:.2g}"
            axes.axvline(self.suggestion, color="C1", linestyle="--", label=label)
        low, high = min(self.raw_losses), max(self.losses)
        margin = 0.1 * (high - low)
        axes.set(xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin))
        axes.legend()
        figure.savefig(path)


def search_learning_rate(
    model: keras.Model,
    training: ShortTraining,
    *,
    min_learning_rate: float,
    max_learning_rate: float,
    num_steps: int,
    **data: Any,
) -> LearningRateSearch:
    """Trains with a growing rate, and restores the model; see `Trainer.find_learning_rate`."""
    check_number("min_learning_rate", min_learning_rate, above=0.0)
    check_number("max_learning_rate", max_learning_rate, above=0.0)
    if max_learning_rate <= min_learning_rate:
        raise InvalidInputError(
            f"`max_learning_rate` must be above `min_learning_rate`, {min_learning_rate:g}; "
            f"received {max_learning_rate:g}."
        )
    check_integer("num_steps", num_steps, minimum=10)
    if not isinstance(model.optimizer.learning_rate, keras.Variable):
        raise InvalidInputError(
            "The optimizer has a schedule as its learning_rate, which the search can't change. "
            "Search with an optimizer whose learning_rate is a number, and then scale the schedule."
        )
    sweep = _Sweep(np.geomspace(min_learning_rate, max_learning_rate, num_steps))
    with training.restored_state():
        training.fit(num_steps, [sweep], **data)
    if len(sweep.losses) < num_steps and not sweep.has_exploded:
        warnings.warn(
            f"The generator has ended after {len(sweep.losses)} of {num_steps} steps, so that "
            "higher rates were not tried. Use a generator that never ends, or fewer num_steps.",
            stacklevel=3,
        )
    return _result(sweep.rates, sweep.losses)


def _result(all_rates: list[float], raw_losses: list[float]) -> LearningRateSearch:
    """Returns the search result, from losses that may have ended before the last rate."""
    rates = all_rates[: len(raw_losses)]
    # The start is the median over the first tenth. Losses are clipped as far above it as the lowest
    # is below it: in the means, an explosion would hide the fall before it.
    start = float(np.median(raw_losses[: max(len(raw_losses) // 10, 1)]))
    clipped = np.minimum(raw_losses, 2 * start - min(raw_losses))
    losses = _smooth(clipped, _smoothing(len(all_rates)))
    return LearningRateSearch(rates, losses, raw_losses, _suggest(rates, losses, clipped))


def _smoothing(num_steps: int) -> float:
    return float(_SMOOTHING ** (100 / num_steps))


class _Sweep(keras.callbacks.Callback):
    """A callback that sets each step's learning rate, and stops when the loss explodes."""

    def __init__(self, rates: Any) -> None:
        super().__init__()
        self.rates = [float(rate) for rate in rates]
        self.losses: list[float] = []
        self.has_exploded = False
        self._smoothing = _smoothing(len(self.rates))
        self._mean = 0.0
        self._best = math.inf

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        model = self.model  # On JAX this reads the state back, so that assignments take effect.
        model.optimizer.learning_rate = self.rates[len(self.losses)]
        model.reset_metrics()  # Then the logged loss is that of one step.

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        logged = (logs or {}).get("loss")
        if logged is None:
            raise InvalidInputError(
                "The model's own `train_step` logs no 'loss', which this search needs."
            )
        loss = float(logged)
        if not math.isfinite(loss):
            if not self.losses:
                raise InvalidInputError(
                    f"The loss of the first step is {loss:g}, which the learning rate can't have "
                    "caused: look for NaN in the inputs, and for labels outside the classes."
                )
            self.has_exploded = self.model.stop_training = True
            return
        if not self.losses and find_not_finite(self.model.trainable_variables):
            # On TensorFlow `relu` turns NaN into 0, so that the loss stays finite.
            raise InvalidInputError(
                "The weights are not finite after the first step, which the learning rate can't "
                "have caused: look for NaN in the inputs."
            )
        self.losses.append(loss)
        self._mean = self._smoothing * self._mean + (1 - self._smoothing) * loss
        mean = self._mean / (1 - self._smoothing ** len(self.losses))
        self._best = min(self._best, mean)
        if mean > self._best + _EXPLOSION * max(abs(self.losses[0]), abs(self._best)):
            self.has_exploded = self.model.stop_training = True


def _smooth(losses: Array, smoothing: float) -> list[float]:
    """Smooths losses by means over both sides that decay exponentially."""

    def decaying_sums(values: Array) -> Array:
        total, sums = 0.0, []
        for value in values:
            total = smoothing * total + float(value)
            sums.append(total)
        return np.array(sums)

    def both_ways(values: Array) -> Array:
        sums: Array = decaying_sums(values) + decaying_sums(values[::-1])[::-1] - values
        return sums

    return [float(mean) for mean in both_ways(losses) / both_ways(np.ones(len(losses)))]


def _suggest(rates: list[float], losses: list[float], raw_losses: Array) -> float | None:
    """Returns the rate of the steepest fall before the lowest loss; `None` if it is only noise."""
    lowest = int(np.argmin(losses))
    upto = slice(0, lowest + 1)
    jitter = float(np.std(np.subtract(raw_losses[upto], losses[upto])))
    if lowest == 0 or losses[0] - losses[lowest] <= jitter:
        return None
    # Noise before the loss falls may be steep, too.
    falls = np.subtract(losses[0], losses[upto])
    start = int(np.argmax(falls > max(jitter, _FALL_BEGUN * falls[-1])))
    slopes = np.gradient(losses[upto], np.log(rates[upto]))
    return rates[start + int(np.argmin(slopes[start:]))]
