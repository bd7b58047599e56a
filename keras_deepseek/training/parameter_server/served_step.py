"""The training step of the chief, whose batches are computed by workers that an engine runs."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import keras

from keras_deepseek.backend.data.batch_stream import BatchStream
from keras_deepseek.backend.keras_private.optimizers import count_update
from keras_deepseek.backend.keras_private.trainers import count_train_steps
from keras_deepseek.training.parameter_server.dispatcher import Dispatcher
from keras_deepseek.training.parameter_server.messages import Result, ShardValues
from keras_deepseek.training.parameter_server.model_shards import ModelShards, same_values
from keras_deepseek.training.parameter_server.pickled_trainer import as_arrays


class Engine(ABC):
    """The interface to a system that runs workers and servers: Ray, or TensorFlow's coordinator."""

    @abstractmethod
    def prepare(
        self,
        trainer: Any,
        make_model: Callable[[], keras.Model] | None,
        device_kind: str,
        step: Mapping[str, Any],
    ) -> None:
        """Stores the trainer whose steps the workers compute.

        `make_model` built its model. `device_kind` is that of the workers: `"cpu"`, `"gpu"` or
        `"tpu"`. `step` has the arguments of `take_gradient_step`.
        """

    @abstractmethod
    def start(self, shards: ModelShards, batch: Any) -> Dispatcher:
        """Starts the workers and servers of a training; returns their dispatcher.

        Workers compile their step for `batch`, a structure of NumPy arrays.
        """

    @abstractmethod
    def stop(self, *, is_clean: bool) -> None:
        """Releases the workers and servers; ends them if the training failed."""


class Pauses(Protocol):
    """Callbacks that know the steps after which all started steps must be finished."""

    num_until_pause: int | None
    """The number of steps that may start before all must be made; `None` for no limit."""


class ServedStep:
    """A training step that hands out batches to workers, and returns after any batch's update.

    It hands out as many batches as the workers and the staleness bound allow, and takes them from
    the stream before Keras's loop comes to them. Keras counts one step for each update.

    At the end of an epoch, before a checkpoint, and before the training stops, no batch is
    unfinished. Then the position in the data is right, and the chief's model has the values of the
    servers.
    """

    def __init__(self, model: keras.Model, engine: Engine, num_servers: int) -> None:
        self._model = model
        self._engine = engine
        self._num_servers = num_servers
        self._stream: BatchStream | None = None
        self._pauses: Pauses | None = None
        self._reset()

    def _reset(self) -> None:
        self._dispatcher: Dispatcher | None = None
        self._shards: ModelShards | None = None
        # Batches that have left the stream and are not handed out yet.
        self._queued_batches: deque[Any] = deque()
        self._num_ahead = 0  # Batches that were handed out and have not left the stream.
        self._num_handed = self._num_made = 0
        self._limit: int | None = None
        self._is_paused = False
        self._is_current = False  # True if the servers have all changes of the chief's model.
        self._last: list[ShardValues] = []

    @property
    def num_open(self) -> int:
        """The number of batches that were handed out and whose results were not returned."""
        return 0 if self._dispatcher is None else self._dispatcher.num_open

    def pause(self, *, is_paused: bool) -> None:
        """Stops handing out batches to workers, or continues."""
        self._is_paused = is_paused

    @contextmanager
    def training(self, stream: BatchStream, pauses: Pauses) -> Iterator[None]:
        """Context manager in which workers make a training's steps; it releases them at the end.

        Keras's loop reads the stream.
        """
        self._reset()
        self._shards = ModelShards(self._model, self._num_servers)
        self._stream, self._pauses = stream, pauses
        stream.on_take = self._note_taken
        is_clean = False
        try:
            yield
            is_clean = not self.num_open
        finally:
            stream.on_take = None
            self._stream = self._pauses = None
            self._engine.stop(is_clean=is_clean)
            self._reset()

    def __call__(self, data: Any) -> dict[str, Any]:
        """Waits for the next update, and returns the logs of its batch.

        `data`, the batch that Keras's loop has come to, is ignored: `_note_taken` has it from the
        stream.
        """
        if not self._is_current:
            self._begin()
        dispatcher = self._dispatcher
        if dispatcher is None or self._pauses is None:
            raise RuntimeError("Call this step inside `training`.")
        until_pause = self._pauses.num_until_pause
        self._limit = None if until_pause is None else self._num_made + until_pause
        if not dispatcher.num_open:
            self._hand(dispatcher, self._queued_batches.popleft())
        self._hand_out(dispatcher)
        result = dispatcher.wait()
        logs = self._note_made(result)
        self._hand_out(dispatcher)
        if not dispatcher.num_open:
            self._synchronize(dispatcher)
        return logs

    def _note_taken(self, batch: Any) -> None:
        """Queues a batch that leaves the stream, unless it was handed out before."""
        if self._num_ahead:
            self._num_ahead -= 1
        else:
            self._queued_batches.append(batch)

    def _begin(self) -> None:
        """Sends the chief's model to the servers, if a callback has changed it."""
        number = count_train_steps(self._model)
        if self._shards is None:
            raise RuntimeError("There is no training.")
        if self._dispatcher is None:
            self._dispatcher = self._engine.start(self._shards, as_arrays(self._queued_batches[0]))
        values = self._shards.read(number)
        if self._last and same_values(values, self._last):
            self._dispatcher.go_on(values)
        else:
            arrays = [
                keras.ops.convert_to_numpy(variable.value) for variable in self._model.variables
            ]
            self._dispatcher.begin(number, values, arrays)
        self._is_current = True

    def _hand_out(self, dispatcher: Dispatcher) -> None:
        while dispatcher.may_hand() and not self._is_paused:
            if self._limit is not None and self._num_handed >= self._limit:
                return
            batch = self._next_batch()
            if batch is None:
                return
            self._hand(dispatcher, batch)

    def _next_batch(self) -> Any:
        """Returns the next batch to hand out: a queued one, or one that is still in the stream."""
        if self._queued_batches:
            return self._queued_batches.popleft()
        stream = self._stream
        ahead = [] if stream is None else stream.look_ahead(self._num_ahead + 1)
        if len(ahead) <= self._num_ahead:
            return None
        self._num_ahead += 1
        return ahead[-1]

    def _hand(self, dispatcher: Dispatcher, batch: Any) -> None:
        rate = self._model.optimizer.learning_rate
        is_set = isinstance(rate, keras.Variable)
        number = float(keras.ops.convert_to_numpy(rate.value)) if is_set else None
        dispatcher.hand(as_arrays(batch), number)
        self._num_handed += 1

    def _note_made(self, result: Result) -> dict[str, Any]:
        """Counts an updated step in the metrics and the optimizer; returns its logs."""
        self._num_made += 1
        model = self._model
        for variable, change in zip(model.metrics_variables, result.metrics, strict=True):
            variable.assign(variable.value + keras.ops.cast(change, variable.dtype))
        count_update(model.optimizer)
        return {**model.get_metrics_result(), **result.logs}

    def _synchronize(self, dispatcher: Dispatcher) -> None:
        """Copies the servers' values into the chief's model, when all updates are made."""
        values = dispatcher.collect()
        if self._shards is None:
            raise RuntimeError("There is no training.")
        self._shards.write(values)
        self._last = self._shards.read(count_train_steps(self._model))
        self._is_current = False
