"""The profiler that measures some steps of a training while it runs, and its result."""

import contextlib
import dataclasses
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_deepseek import backend
from keras_deepseek.backend.profiling.step_trace import (
    PARTS,
    WINDOW,
    Line,
    divide_time,
    write_trace,
)
from keras_deepseek.errors import InvalidInputError

_NUM_LAYERS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class StepProfile:
    """The time of a training step, by its parts and by layers. Printed, it is a table.

    All times are wall time, in seconds a step, means over the steps. Their sum is `step_seconds`:
    while several threads work, each has an equal share of that time. XLA fuses operations of
    several layers into one, whose time it gives to one of them.

    Args:
        steps: integer. The number of measured steps.
        step_seconds: float. The time of a step.
        parts: dict. Seconds by part. `"forward"` and `"backward"` are the passes through the
            layers. `"loss"` includes the metrics, and `"optimizer"` the clipping of gradients.
            `"rest"` is other work. In `"data_wait"` nothing ran because the next batch was not
            there, and in `"idle"` nothing ran for another reason, such as Python between two
            operations.
        layers: dict. Forward and backward seconds by the path of a layer, without the layers in it.
        model: string. The path of the model itself, whose time in `layers` is that of its
            operations outside of other layers.
        tool: string. The profiler that measured.
        device: string. The device that computed.
        trace_file: string. The file with the trace, which Perfetto (ui.perfetto.dev) opens.

    Example:

    >>> import keras, numpy as np
    >>> from keras_deepseek.training import Trainer
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> trainer = Trainer(model, optimizer="sgd", loss="mse")
    >>> profile = trainer.profile(np.ones((64, 4)), np.ones((64, 1)))
    >>> profile.steps, list(profile.parts)[:3]
    (5, ['forward', 'backward', 'loss'])
    """

    steps: int
    step_seconds: float
    parts: dict[str, float]
    layers: dict[str, list[float]]
    model: str
    tool: str
    device: str
    trace_file: str

    @property
    def unassigned(self) -> float:
        """The share of the work that belongs to no layer, nor to the loss or the optimizer."""
        work = self.step_seconds - self.parts["idle"] - self.parts["data_wait"]
        return self.parts["rest"] / work if work > 0 else 0.0

    def __str__(self) -> str:
        """Returns a table of the parts and of the ten most expensive layers."""
        layers = sorted(self.layers.items(), key=lambda item: -sum(item[1]))[:_NUM_LAYERS_SHOWN]
        rows = [*self.parts.items(), *((path, sum(times)) for path, times in layers)]
        rows.insert(len(self.parts), ("step", self.step_seconds))
        width = max(len(name) for name, _ in rows)
        return "\n".join(
            f"{name:{width}}{1e3 * spent:10,.2f} ms{spent / max(self.step_seconds, 1e-12):7.1%}"
            for name, spent in rows
        )


STEPS = 5
"""The number of measured calls of the train function."""

_TOOLS = {"torch": "torch.profiler", "jax": "jax.profiler", "tensorflow": "tf.profiler"}


class StepProfiler(keras.callbacks.Callback):
    """Traces the steps of a model on request, from the end of one step to that of another.

    As a callback, it leaves out validation and the time between two epochs.
    """

    async_safe = True  # Keras then need not wait for the logs of each step.

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._trained = model
        self.is_requested = False
        """True until a requested profile is made."""
        self._receive: Callable[[StepProfile | Exception], None] | None = None
        self._trace_file = Path()
        self._calls_left = 0
        self._lines: list[Line] | None = None
        self._tracing = contextlib.ExitStack()
        self._window = contextlib.ExitStack()
        self._is_counting = False
        self._logs: Any = {}

    def request(
        self,
        trace_file: Path,
        receive: Callable[[StepProfile | Exception], None],
        *,
        skip: int = 1,
    ) -> None:
        """Profiles the steps after the next `skip` ones; `receive` gets the result or an error.

        The request ends with the training, and `receive` is not called then.
        """
        if self._receive is not None:
            raise InvalidInputError("The steps of this training are being profiled already.")
        self._trace_file, self._receive, self._calls_left = trace_file, receive, skip
        self.is_requested = True

    def before_call(self) -> None:
        """Begins to count again, after the end of an epoch."""
        if self._lines is not None:
            self._count()

    def after_call(self, logs: Any) -> None:
        """Begins or ends the trace, if this is the call of the train function for it."""
        if self._receive is None:
            return
        self._logs = logs
        self._calls_left -= 1
        if self._calls_left > 0:
            return
        receive, lines = self._receive, self._lines
        try:
            if lines is None:
                self._begin()
            else:
                self._end()
                write_trace(lines, self._trace_file)
                receive(self._summarize(lines))
        except Exception as error:  # noqa: BLE001 - a profile that fails ends no training.
            self.cancel()
            receive(error)

    def cancel(self) -> None:
        """Ends the request, and the trace without a result."""
        with contextlib.suppress(Exception):  # The error that ended the training comes first.
            self._end()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Does not count a validation."""
        self._pause()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Does not count the time between two epochs."""
        self._pause()

    def get_state(self) -> dict[str, Any]:
        """Returns nothing: a checkpoint holds no profile."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, because this callback has no state."""

    def _begin(self) -> None:
        self._wait()
        lines: list[Line] = []
        self._tracing.enter_context(backend.current().step.trace_steps(self._trained, lines))
        self._lines, self._calls_left = lines, STEPS
        self._count()

    def _end(self) -> None:
        self._receive = self._lines = None
        self.is_requested = False
        with self._tracing:
            self._pause()

    def _count(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            self._window.enter_context(backend.current().step.annotate(WINDOW))

    def _pause(self) -> None:
        if self._is_counting:
            self._wait()
            self._is_counting = False
            self._window.close()

    def _wait(self) -> None:
        """Waits until the device has ended the last step."""
        for value in keras.tree.flatten(self._logs):
            keras.ops.convert_to_numpy(value)
        self._logs = {}

    def _summarize(self, lines: list[Line]) -> StepProfile:
        steps = STEPS * int(self._trained.steps_per_execution)
        parts, layers = dict.fromkeys(PARTS, 0.0), dict[str, list[float]]()
        for owner, seconds in divide_time(lines).items():
            parts[owner.part] += seconds / steps
            if owner.layer:
                times = layers.setdefault(owner.layer, [0.0, 0.0])  # Forward and backward.
                times[owner.part == "backward"] += seconds / steps
        return StepProfile(
            steps=steps,
            step_seconds=sum(parts.values()),
            parts=parts,
            layers=layers,
            model=str(self._trained.path or self._trained.name),
            tool=_TOOLS[keras.backend.backend()],
            device=backend.current().devices.read_device_name() or f"CPU ({platform.machine()})",
            trace_file=str(self._trace_file),
        )
