"""The metrics of each training step that Keras's logs lack, on their way to a run recorder."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_deepseek import backend
from keras_deepseek.artifacts.signature import Array
from keras_deepseek.backend.data.batch_stream import BatchStream

STEP_METRICS = "step_metrics"
"""The log in which a training step returns its metrics. Keras does not see it."""

NORMS = "layer_gradient_norms"
RATIOS = "layer_update_ratios"
LOADS = "expert_load"


class Labels:
    """The names of the layers and experts that the entries of a step's metrics belong to.

    Args:
        layers: list of strings. The layer of each variable that has a gradient; `[]` without layer
            statistics.
        experts: list of strings. The router and the index of each expert.
        trainable: list of strings. The layers of all trainable variables. They may be more than
            `layers`: PyTorch and TensorFlow give no gradient to a variable that the loss does not
            depend on. The norms of such a layer are 0.
    """

    def __init__(
        self, layers: Sequence[str] = (), experts: Sequence[str] = (), trainable: Sequence[str] = ()
    ) -> None:
        self.num_variables = len(layers)
        names = list(dict.fromkeys([*trainable, *layers] if layers else ()))
        self.layer_of_variable = np.array([names.index(layer) for layer in layers], "int64")
        labels_by_name = {NORMS: names, RATIOS: names, LOADS: list(experts)}
        self.of_vectors = {name: labels for name, labels in labels_by_name.items() if labels}
        """The labels of each vector by the vector's name in the run record."""


class MetricValues(NamedTuple):
    """The metrics of one step.

    Args:
        tensor: float32 tensor: the loss of the batch; the learning rate; the norms of gradients,
            of weights and of updates by variable; the load of each expert.
        labels: The labels of the norms and the loads.
        data_wait: float. The seconds for which the step waited for its batch; `None` if unknown.
    """

    tensor: Any
    labels: Labels
    data_wait: float | None

    def scalars(self) -> dict[str, float]:
        """Returns the numbers of the step by their names in the run record. Waits for the step."""
        values = self._read()
        scalars = {"step_loss": float(values[0]), "learning_rate": float(values[1])}
        if self.labels.num_variables:
            norms = values[2 : 2 + self.labels.num_variables].astype("float64")
            scalars["gradient_norm"] = float(np.sqrt(np.sum(norms**2)))
        if self.data_wait is not None:
            scalars["data_wait_seconds"] = self.data_wait
        return scalars

    def vectors(self) -> dict[str, Array]:
        """Returns the vectors of the step by their names in the run record."""
        values, labels = self._read()[2:], self.labels  # Without loss and learning rate.
        vectors: dict[str, Array] = {}
        if number := labels.num_variables:
            # The norm of a layer is the root of the sum of its variables' squares.
            squares = np.zeros((len(labels.of_vectors[NORMS]), 3))
            of_variables = values[: 3 * number].reshape(3, number).T.astype("float64")
            np.add.at(squares, labels.layer_of_variable, of_variables**2)
            gradients, weights, updates = np.sqrt(squares).T
            vectors = {NORMS: gradients, RATIOS: updates / np.maximum(weights, 1e-12)}
        if LOADS in labels.of_vectors:
            vectors[LOADS] = values[3 * number :]
        return vectors

    def _read(self) -> Array:
        values: Array = keras.ops.convert_to_numpy(self.tensor)
        return values


class StepMetrics:
    """Hands the metrics of each step from the training step to the recorders of a training."""

    def __init__(self) -> None:
        self.labels = Labels()
        """The labels of the metrics, which the step sets when it is traced."""
        self.inputs: Any = None
        """The inputs of a step, as `KerasTensor`s, or `None` before the first one."""
        self.stream: BatchStream | None = None
        """The data of the training, if they are a stream, which measures the wait for batches."""
        self.are_wanted = False
        """True if a recorder waits for the metrics."""
        self._queues: list[deque[MetricValues]] = []
        self._waited: float | None = None

    @contextmanager
    def read_by(self, queues: Sequence[deque[MetricValues]]) -> Iterator[None]:
        """Context manager in which each step appends its metrics to the queues."""
        self._queues, self.stream, self.are_wanted = list(queues), None, bool(queues)
        try:
            yield
        finally:
            self._queues, self.stream, self.are_wanted = [], None, False

    def begin(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Begins a call of Keras's train function, and returns the arguments to pass.

        They are wrapped so that the wait for batches is measured, unless a stream measures it.
        """
        self._waited = None
        watched = None
        if self._queues and self.stream is None:
            watched = backend.current().step.watch_batches(arguments, self._add_wait)
        return arguments if watched is None else watched

    def end(self, logs: dict[str, Any]) -> None:
        """Takes the metrics out of a step's logs, and hands them to the recorders."""
        if not self._queues or STEP_METRICS not in logs:
            return
        tensor = logs.pop(STEP_METRICS)
        if self.stream is not None:
            self._waited, self.stream.waited = self.stream.waited, 0.0
        for queue in self._queues:
            queue.append(MetricValues(tensor, self.labels, self._waited))

    def _add_wait(self, seconds: float) -> None:
        self._waited = (self._waited or 0.0) + seconds
