"""Functions of batches that are recorded at the second batch of a shape."""

import contextlib
import functools
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import keras
import torch

from keras_deepseek.backend.keras_private.masks import read_mask
from keras_deepseek.backend.torch.python_state import PythonState, UsedVariables, is_watched
from keras_deepseek.backend.torch.recording import (
    CannotRecordError,
    Recording,
    differ,
    is_recording,
    pause_recording,
    read_generators,
    record,
    write_generators,
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
_PROVED_AGAIN_AT = {10**power for power in range(3, 12)}
"""The calls of a recording at which it is compared with the function again."""


class _Entry:
    """A recording with the variables that it uses, and the number of its calls."""

    def __init__(self, recording: Recording, variables: Sequence[keras.Variable]) -> None:
        self.recording = recording
        self.variables = UsedVariables(variables, recording.tensors)
        self.num_calls = 0


class RecordedFunction:
    """A function of a batch that runs by recordings of PyTorch's operations.

    It runs as it is for the first batch of a shape. At the second one it is recorded, and the
    recording must give the same result and write the same to variables, to the bit. From then on
    the recording runs for that shape, as long as layers and settings are as they were.

    Args:
        function: Function of a batch: a structure of tensors and `None`. Its result is a structure
            of tensors and other objects.
        model: The model that it runs.
        find_obstacle: Function that returns a reason why the function may not be recorded, or
            `None`.
        is_pure: boolean. The function is not recorded if it writes to variables or draws random
            numbers: several threads may call it. Defaults to `False`.
    """

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

    def __call__(self, batch: Any) -> Any:
        """Returns the result of the function for a batch."""
        tensors: list[torch.Tensor] = []
        is_alone = not (self._is_off or is_watched() or is_recording())
        key = _describe(batch, tensors) if is_alone else None
        if key is None:
            return self._function(batch)
        with self._lock:
            entry = None if self._is_changed() else self._find(key)
            if entry is None and self._can_record(key):
                return self._try_to_record(batch, key, tensors)
            if entry is not None and entry.num_calls in _PROVED_AGAIN_AT:
                return self._compare(key, entry.recording, batch, tensors)
        return self._function(batch) if entry is None else self._replay(entry.recording, tensors)

    def _find(self, key: Any) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not entry.variables.are_same():
            self._drop(key)
            return None
        entry.num_calls += 1
        self._entries.move_to_end(key)
        return entry

    def _can_record(self, key: Any) -> bool:
        """Returns True for the second batch of a shape, if the first could be recorded."""
        if self._state is None or self._is_off or self._state.has_hooks():
            return False
        if key not in self._seen:
            self._remember(key, can_record=True)
            return False
        return self._seen[key]

    def _is_changed(self) -> bool:
        """Returns True if there are hooks, or code that can't be recorded.

        Forgets all recordings after a change of the layers.
        """
        if self._state is None or not self._state.is_same():
            if not self._model.built:
                return True
            has_paid = any(entry.num_calls >= _PAYS_AFTER for entry in self._entries.values())
            self._num_changes += not has_paid
            self._forget()
            if self._num_changes > _MOST_CHANGES:
                self._turn_off(logging.INFO, "attributes of its layers change too often")
            elif obstacle := self._find_obstacle():
                self._turn_off(logging.INFO, obstacle)
            else:
                self._state = PythonState(self._model)
        return self._is_off or self._state is None or self._state.has_hooks()

    def _try_to_record(self, batch: Any, key: Any, tensors: list[torch.Tensor]) -> Any:
        """Returns the function's own result; keeps a recording that has the same."""
        recording = self._record(batch, key, tensors)
        if recording is None:
            return self._function(batch)
        return self._compare(key, recording, batch, tensors)

    def _record(self, batch: Any, key: Any, tensors: list[torch.Tensor]) -> Recording | None:
        """Returns a recording, or `None` if there can be none. Variables stay as they are."""
        assert self._state is not None
        states = read_generators()
        try:
            recording = record(lambda: self._run_for_recording(batch), tensors)
        except (CannotRecordError, Exception) as error:  # noqa: BLE001 - the function raises it too
            self._state.restore()  # As a dropout mask that a recurrent layer holds in its call.
            reason = str(error).partition("\n")[0]
        else:
            if not self._is_pure or not (recording.written or recording.draws):
                return recording
            reason = "it draws random numbers or writes to variables"
        finally:
            write_generators(states)
        self._remember(key, can_record=False)
        self._notify(logging.INFO, reason)
        return None

    def _run_for_recording(self, batch: Any) -> Any:
        return self._function(batch)

    def _replay(self, recording: Recording, tensors: list[torch.Tensor]) -> Any:
        return recording(tensors)

    def _compare(
        self, key: Any, recording: Recording, batch: Any, tensors: list[torch.Tensor]
    ) -> Any:
        """Returns the function's own result; keeps a recording that has the same."""
        with self._undone(recording):
            expected = _Outcome(recording, recording(tensors))
        result = self._function(batch)
        if self._is_equal(expected, _Outcome(recording, result)):
            self._keep(key, recording)
        return result

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

    def _is_equal(self, recorded: "_Outcome", eager: "_Outcome") -> bool:
        """Returns True if a recording did the same. Else nothing is recorded any more."""
        assert self._state is not None
        if not self._state.is_same():
            self._turn_off(logging.WARNING, "a step changes attributes of its layers")
        elif recorded.digests != eager.digests:
            self._turn_off(logging.WARNING, "its recorded operations give other numbers")
        elif differ(recorded.generators, eager.generators):
            self._turn_off(logging.WARNING, "its recorded operations draw other random numbers")
        return not self._is_off

    def _keep(self, key: Any, recording: Recording) -> None:
        assert self._state is not None
        if key in self._entries:
            return
        self._entries[key] = _Entry(recording, self._state.variables)
        if len(self._entries) > _MOST_RECORDINGS:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Any) -> None:
        entry = self._entries.pop(key, None)
        self._num_wasted += entry is not None and entry.num_calls < _PAYS_AFTER
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

    def _run_for_recording(self, batch: Any) -> Any:
        result, finish = self._function(batch)
        scalar = torch.ones_like(next(leaves_of(result)))
        pause_recording(result, scalar)
        return finish(scalar, lambda index, tensor: pause_recording((index, tensor)))

    def _replay(self, recording: Recording, tensors: list[torch.Tensor]) -> Any:
        steps = recording.run_in_parts(tensors)
        return next(steps), functools.partial(_finish, steps)

    def _compare(
        self, key: Any, recording: Recording, batch: Any, tensors: list[torch.Tensor]
    ) -> Any:
        with self._undone(recording):
            steps = recording.run_in_parts(tensors)
            expected = _Outcome(recording, next(steps))
        result, finish = self._function(batch)
        if not self._is_equal(expected, _Outcome(recording, result)):
            return result, finish

        def compare_second_part(scalar: Any, receive: Callable[[int, Any], None]) -> Any:
            sent: list[Any] = []
            eagerly_sent: list[Any] = []

            def send(index: int, tensor: Any) -> None:
                eagerly_sent.append((index, tensor.detach().clone()))
                receive(index, tensor)

            with self._undone(recording):
                second_result = _finish(steps, scalar, lambda *parts: sent.append(parts))
                expected = _Outcome(recording, (sent, second_result))
            second_result = finish(scalar, send)
            with self._lock:
                if self._is_equal(expected, _Outcome(recording, (eagerly_sent, second_result))):
                    self._keep(key, recording)
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


class _Outcome:
    """The results of a run, with what it has written and drawn."""

    def __init__(self, recording: Recording, result: Any) -> None:
        self.digests = list(_digests(result, recording.written))
        self.generators = read_generators()


def _describe(structure: Any, tensors: list[torch.Tensor]) -> Any:
    """Returns a key of a batch's structure, and adds its tensors to a list.

    The key is `None` if the batch can't be that of a recording.
    """
    if type(structure) is torch.Tensor:
        is_plain = structure.layout is torch.strided and not structure.requires_grad
        if (
            not is_plain
            or read_mask(structure) is not None
            or (structure.is_inference() and not torch.is_inference_mode_enabled())
        ):
            return None
        # The same tensor may come twice, as `x` and `y`.
        index = next((i for i, tensor in enumerate(tensors) if tensor is structure), len(tensors))
        tensors.append(structure)
        return index, structure.shape, structure.stride(), structure.dtype, structure.device
    if structure is None:
        return "none"
    if isinstance(structure, dict):
        keys: list[Any] = list(structure)
        parts = [_describe(structure[name], tensors) for name in structure]
    elif isinstance(structure, list | tuple):
        keys, parts = [type(structure)], [_describe(element, tensors) for element in structure]
    else:
        return None
    return None if None in parts else (*keys, *parts)


def _digests(result: Any, written: Sequence[torch.Tensor]) -> Iterator[Any]:
    """Yields what must be equal of two results: of tensors layouts and bits, else the objects."""
    for leaf in (*leaves_of(result), *written):
        if not isinstance(leaf, torch.Tensor):
            yield leaf if isinstance(leaf, bool | int | float | str) else id(leaf)
            continue
        memory = leaf.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
        layout = tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
        yield *layout, hashlib.blake2b(memory).digest()
