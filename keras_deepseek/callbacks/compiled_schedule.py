"""Sets the learning rates of a schedule inside the compiled training step."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.keras_private.trainers import compilation, temporary_train_step


class CompiledSchedule:
    """Puts learning rates into a model's compiled step, chosen by the optimizer's count of updates.

    The model keeps its own step. The step with rates is a second function, which runs only after a
    call of `announce`. However a training ends, the next one is not affected by this schedule. The
    optimizer's variable holds the rate of each step, as if it had been assigned.

    Args:
        rates: NumPy array. The rate of each step; the last one holds beyond the end.
    """

    def __init__(self, rates: Array) -> None:
        self._rates = rates
        self._model: Any = None
        self._made_for: tuple[Any, Any] = (None, None)
        self._function: Any = None
        self._switch: _Switch | None = None

    def install(self, model: keras.Model) -> bool:
        """Installs the step with rates in a compiled model; returns true on success."""
        compiled, train_step = self._made_for
        # The step is compiled once for all trainings.
        if compiled is not compilation(model) or train_step != model.train_step:
            self._made_for, self._function = (None, None), self._compile(model)
            self._made_for = (compilation(model), model.train_step)
        if self._function is None:
            return False
        plain = model.train_function
        if isinstance(plain, _Switch):  # Left over from a failed training.
            plain = plain.plain
        model.train_function = self._switch = _Switch(plain, self._function)
        return True

    def announce(self) -> None:
        """Makes the next training step set its learning rate."""
        if self._switch is not None:
            self._switch.is_on = True

    def remove(self, model: keras.Model) -> None:
        """Restores the model's own training step."""
        if self._switch is not None and model.train_function is self._switch:
            model.train_function = self._switch.plain
        self._switch = None

    def _compile(self, model: keras.Model) -> Any:
        self._model = model
        step = backend.current().step.run_before_step(model, model.train_step, self._set_rate)
        if step is None:
            return None
        plain = model.train_function
        with temporary_train_step(model, step):
            model.make_train_function(force=True)
        function, model.train_function = model.train_function, plain
        return function

    def _set_rate(self) -> None:
        optimizer = self._model.optimizer
        step = ops.minimum(optimizer.iterations, len(self._rates) - 1)
        rates = ops.convert_to_tensor(self._rates, dtype=optimizer.learning_rate.dtype)
        optimizer.learning_rate = ops.take(rates, step)


class _Switch:
    """A train function that calls another function instead if `is_on` was set before the call."""

    def __init__(self, plain: Callable[..., Any], other: Callable[..., Any]) -> None:
        self.plain = plain
        self.is_on = False
        self._other = other

    def __call__(self, *arguments: Any) -> Any:
        function = self._other if self.is_on else self.plain
        self.is_on = False
        return function(*arguments)
