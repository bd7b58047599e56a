"""Functions of batches that are recorded at the second batch of a shape."""

import contextlib
import functools
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import torch

from keras_deepseek.backend.call_context import set_temporarily
from keras_deepseek.backend.comparison_schedule import ComparisonSchedule
from keras_deepseek.backend.torch.compute import IS_RECORDED
from keras_deepseek.backend.torch.generators import differ, read_generators, write_generators
from keras_deepseek.backend.torch.layer_kernels import use_layer_kernels
from keras_deepseek.backend.torch.python_state import PythonState, UsedVariables, is_watched
from keras_deepseek.backend.torch.recorded_batch import Batch, Outcome, digest
from keras_deepseek.backend.torch.recording import (
    CannotRecordError,
    Recording,
    is_recording,
    pause_recording,
    record,
)
from keras_deepseek.backend.torch.tape import leaves_of

_log = logging.getLogger(__name__)

_MOST_RECORDINGS = 8
"""The most recordings of a function. The least recently used is dropped."""
_MOST_SHAPES = 256
"""The most shapes that are remembered without a recording."""
_MOST_WASTED = 16
"""The most recordings that may be dropped before they have paid for themselves."""
_MOST_CHANGES = 64
"""The most changes of the layers before which no recording has paid for itself."""
_PAYS_AFTER = 10
"""The calls after which a recording has paid for itself."""
_MOST_RATIO = 8
"""The most times that a recording may differ from a function as much as that from itself."""


class _Entry:
    """A recording with the variables that it uses, and the time of its next comparison."""

    def __init__(self, recording: Recording, variables: Sequence[keras.Variable]) -> None:
        self.recording = recording
        self.variables = UsedVariables(variables, recording.tensors)
        self.schedule = ComparisonSchedule()


class RecordedFunction:
    """A function of a batch that runs by recordings of PyTorch's operations.

    It runs as it is for the first batch of a shape. At the second one it is recorded, and the
    recording must give the same result and write the same to variables, to the bit. From then on
    the recording runs for that shape, as long as layers and settings are as they were. It is
    compared again now and then.

    Args:
        function: Function of a batch: a structure of tensors and `None`. Its result is a structure
            of tensors and other objects.
        model: The model that it runs.
        find_obstacle: Function that returns a reason why the function may not be recorded, or
            `None`.
        is_pure: boolean. The function is not recorded if it writes to variables or draws random
            numbers: several threads may call it. Defaults to `False`.
    """

    _most_recordings = _MOST_RECORDINGS
    _has_state = False

    def __init__(
        self,
        function: Callable[[Any], Any],
        model: keras.Model,
        find_obstacle: Callable[[], str | None],
        *,
        is_pure: bool = False,
    ) -> None:
        self._function = function
        self._model = model
        self._find_obstacle = find_obstacle
        self._is_pure = is_pure
        self._lock = threading.RLock()
        self._state: PythonState | None = None
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._seen: OrderedDict[Any, bool] = OrderedDict()  # False: this shape can't be recorded.
        self._num_wasted = self._num_changes = 0
        self._is_off = False
        self._notices: set[str] = set()
        self.num_recordings = 0

    def __call__(self, structure: Any) -> Any:
        """Returns the result of the function for a batch."""
        is_alone = not (self._is_off or is_watched() or is_recording())
        batch = Batch(structure, has_state=self._has_state) if is_alone else None
        if batch is None or batch.key is None:
            return self._function(structure)
        with self._lock:
            entry = None if self._is_changed() else self._find(batch.key)
            if entry is None and self._can_record(batch.key):
                return self._try_to_record(batch)
            if entry is not None and entry.schedule.is_due():
                return self._compare(entry.recording, batch)
        if entry is None:
            return self._run_first(batch)
        start = time.perf_counter()
        result = self._replay(entry.recording, batch.tensors)
        entry.schedule.add_run(time.perf_counter() - start)
        return result

    def _find(self, key: Any) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not entry.variables.are_same():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def _can_record(self, key: Any) -> bool:
        """Returns True for the second batch of a shape, if the first could be recorded."""
        if self._state is None or self._is_off or self._state.has_hooks():
            return False
        return self._seen.get(key, False)

    def _run_first(self, batch: Batch) -> Any:
        """Returns the function's result; remembers the shape, and layers as they are behind it.

        A first call may build layers, and set attributes that then stay.
        """
        result = self._run(batch.structure)
        with self._lock:
            if batch.key not in self._seen and not self._is_changed():
                self._remember(batch.key, can_record=True)
        return result

    def _is_changed(self) -> bool:
        """Returns True if there are hooks, or code that can't be recorded.

        Forgets all recordings after a change of the layers.
        """
        if self._state is None or not self._state.is_same():
            if not self._model.built:
                return True
            has_paid = any(
                entry.schedule.num_runs >= _PAYS_AFTER for entry in self._entries.values()
            )
            self._num_changes += not has_paid
            self._forget()
            if self._num_changes > _MOST_CHANGES:
                self._turn_off(logging.INFO, "attributes of its layers change too often")
            elif obstacle := self._find_obstacle():
                self._turn_off(logging.INFO, obstacle)
            else:
                self._state = PythonState(self._model)
        return self._is_off or self._state is None or self._state.has_hooks()

    def _try_to_record(self, batch: Batch) -> Any:
        """Returns the function's own result; keeps a recording that has the same."""
        recording = self._record(batch)
        if recording is None:
            return self._run(batch.structure)
        return self._compare(recording, batch)

    def _record(self, batch: Batch) -> Recording | None:
        """Returns a recording, or `None` if there can be none. Variables stay as they are."""
        assert self._state is not None
        self.num_recordings += 1
        states = read_generators()
        try:
            copy = batch.copy()
            recording = record(
                lambda: self._run_for_recording(copy.structure),
                copy.tensors,
                may_write_inputs=self._has_state,
            )
        except (CannotRecordError, Exception) as error:  # noqa: BLE001 - the function raises it too
            self._state.restore()  # As a dropout mask that a recurrent layer holds in its call.
            reason = str(error).partition("\n")[0]
        else:
            if not self._is_pure or not (recording.written or recording.draws):
                return recording
            reason = "it draws random numbers or writes to variables"
        finally:
            write_generators(states)
        self._remember(batch.key, can_record=False)
        self._notify(logging.INFO, reason)
        return None

    def _run_for_recording(self, structure: Any) -> Any:
        return self._run(structure)

    def _run(self, structure: Any) -> Any:
        """Returns the function's result, by PyTorch's kernels if all code is known."""
        with self._using_kernels():
            return self._function(structure)

    def _using_kernels(self) -> AbstractContextManager[None]:
        """Returns a context manager for Keras's layers, unless code that is not known sees them."""
        is_known = not self._is_off and self._state is not None and not self._state.has_hooks()
        return use_layer_kernels() if is_known else contextlib.nullcontext()

    def _replay(self, recording: Recording, tensors: list[torch.Tensor]) -> Any:
        return recording(tensors)

    def _compare(self, recording: Recording, batch: Batch) -> Any:
        """Returns the function's own result; keeps a recording that has the same."""

        def run(function: Callable[[Batch], Any]) -> Outcome:
            with self._undone(recording):
                copy = batch.copy()
                return Outcome(recording, (function(copy), copy.readable()))

        start = time.perf_counter()
        try:
            recorded = run(lambda copy: recording(copy.tensors))
        except torch.OutOfMemoryError:  # There is no room for copies.
            if batch.key in self._entries:
                self._keep(batch.key, recording, start)
            return self._run(batch.structure)
        result = self._run_as_recorded(batch)
        eager = Outcome(recording, (result, batch.readable()))
        # A training step runs once: what else it writes could not be undone.
        may_repeat = self._has_state or self._is_pure
        repeat = functools.partial(run, self._run_as_recorded) if may_repeat else None
        if self._is_equal(recorded, eager, repeat):
            self._keep(batch.key, recording, start)
        return result

    def _run_as_recorded(self, batch: Batch) -> Any:
        return self._run(batch.structure)

    @contextlib.contextmanager
    def _undone(self, recording: Recording) -> Iterator[None]:
        """Context manager that undoes what a recording writes and draws."""
        states = read_generators()
        old_values = [tensor.detach().clone() for tensor in recording.written]
        try:
            yield
        finally:
            write_generators(states)
            with torch.no_grad():
                for tensor, old_value in zip(recording.written, old_values, strict=True):
                    tensor.copy_(old_value)

    def _is_equal(
        self, recorded: Outcome, eager: Outcome, repeat: Callable[[], Outcome] | None = None
    ) -> bool:
        """Returns True if a recording did the same. Else nothing is recorded any more."""
        assert self._state is not None
        difference = recorded.difference(eager)
        if repeat is not None and 0 < difference < math.inf:
            # The function may differ from itself as much, as sums do on an accelerator.
            difference -= _MOST_RATIO * repeat().difference(repeat())
        if not self._state.is_same():
            self._turn_off(logging.WARNING, "a step changes attributes of its layers")
        elif difference > 0 or recorded.written != eager.written:
            self._turn_off(logging.WARNING, "its recorded operations give other numbers")
        elif differ(recorded.generators, eager.generators):
            self._turn_off(logging.WARNING, "its recorded operations draw other random numbers")
        return not self._is_off

    def _keep(self, key: Any, recording: Recording, start: float) -> None:
        """Keeps a recording whose comparison has begun at `start`."""
        assert self._state is not None
        if key not in self._entries:
            self._entries[key] = _Entry(recording, self._state.variables)
        self._entries[key].schedule.add_comparison(time.perf_counter() - start)
        if len(self._entries) > self._most_recordings:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Any) -> None:
        entry = self._entries.pop(key, None)
        self._num_wasted += entry is not None and entry.schedule.num_runs < _PAYS_AFTER
        if self._num_wasted >= _MOST_WASTED:
            self._turn_off(logging.INFO, "its shapes or layers change too often")

    def _forget(self) -> None:
        """Drops all recordings: the layers are not what they were."""
        for key in list(self._entries):
            self._drop(key)
        self._seen.clear()

    def _remember(self, key: Any, *, can_record: bool) -> None:
        self._seen[key] = can_record
        if len(self._seen) > _MOST_SHAPES:
            self._seen.popitem(last=False)

    def _turn_off(self, level: int, reason: str) -> None:
        self._is_off = True
        self._entries.clear()
        self._seen.clear()
        self._notify(level, reason)

    def _notify(self, level: int, reason: str) -> None:
        if reason not in self._notices:
            self._notices.add(reason)
            _log.log(level, "Model %r runs as it is, not recorded: %s.", self._model.name, reason)


class RecordedParts(RecordedFunction):
    """A function of a batch in two parts, between which something else may run.

    Args:
        function: Function of a batch that returns a result and the second part. That is a function
            of a scalar like the result's first tensor, and of a function which it calls by index
            and tensor as soon as a part of its own result is known.
    """

    def _run(self, structure: Any) -> Any:
        result, finish = super()._run(structure)

        def finish_alike(*arguments: Any) -> Any:  # It may compute layers again.
            with self._using_kernels():
                return finish(*arguments)

        return result, finish_alike

    def _run_for_recording(self, structure: Any) -> Any:
        result, finish = self._run(structure)
        scalar = torch.ones_like(next(leaves_of(result)))
        pause_recording(result, scalar)
        return finish(scalar, lambda index, tensor: pause_recording((index, tensor)))

    def _replay(self, recording: Recording, tensors: list[torch.Tensor]) -> Any:
        steps = recording.run_in_parts(tensors)
        return next(steps), functools.partial(_finish, steps)

    def _compare(self, recording: Recording, batch: Batch) -> Any:
        start = time.perf_counter()
        with self._undone(recording):
            steps = recording.run_in_parts(batch.tensors)
            expected = Outcome(recording, next(steps))
        result, finish = self._run(batch.structure)
        if not self._is_equal(expected, Outcome(recording, result)):
            return result, finish

        def compare_second_part(scalar: Any, receive: Callable[[int, Any], None]) -> Any:
            sent: list[Any] = []
            eagerly_sent: list[Any] = []

            def note(index: int, tensor: Any) -> None:  # The gradients together may be large.
                sent.append((index, digest(tensor)))

            def send(index: int, tensor: Any) -> None:
                eagerly_sent.append((index, digest(tensor)))
                receive(index, tensor)

            with self._undone(recording):
                second_result = _finish(steps, scalar, note)
                expected = Outcome(recording, (sent, second_result))
            second_result = finish(scalar, send)
            with self._lock:
                if self._is_equal(expected, Outcome(recording, (eagerly_sent, second_result))):
                    self._keep(batch.key, recording, start)
            return second_result

        return result, compare_second_part


def _finish(
    steps: Generator[Any, Any, Any], scalar: Any, receive: Callable[[int, Any], None]
) -> Any:
    """Runs the second part of a recording."""
    try:
        parts = steps.send(scalar)
        while True:
            receive(*parts)
            parts = next(steps)
    except StopIteration as stop:
        return stop.value


class RecordedStep(RecordedFunction):
    """A function of a state and inputs that may write into the state.

    What it writes is compared too: recordings are made and compared on copies. Integers among the
    inputs stay integers for the function, and are no part of a shape.

    Args:
        function: Function of a state and inputs: structures of tensors, integers and `None`.
        model: The model that it runs. Nothing is recorded with layers of users.
    """

    # Text generation has a shape for each number of rows and slots.
    _most_recordings = 64
    _has_state = True

    def __init__(self, function: Callable[..., Any], model: keras.Model) -> None:
        super().__init__(
            lambda structure: function(*structure),
            model,
            lambda: None if PythonState(model).has_known_layers else "it has layers of users",
        )

    def _run_as_recorded(self, batch: Batch) -> Any:
        # Our layers read where a cache begins, to check it, only if no recording is made.
        with set_temporarily(IS_RECORDED, value=True):
            return self._run(batch.as_recorded())
