"""Recordings of PyTorch's operations, which run again without the Python that called them.

A small step of Keras on PyTorch spends most of its time in Python. `record` runs a function once
and writes down each ATen operation below autograd, so that those of the backward pass are included.
`Recording` runs them again: with other inputs, with variables as they then are, and with fresh
random numbers. It frees each tensor after its last use.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from keras_deepseek.backend.call_context import set_temporarily
from keras_deepseek.backend.keras_private.layers import infers_shapes
from keras_deepseek.backend.keras_private.seeds import drawn_seed, replaced_generators
from keras_deepseek.backend.torch.compute import IS_RECORDED
from keras_deepseek.backend.torch.generators import DefaultGenerators
from keras_deepseek.backend.torch.tape import (
    PYTHON_FUNCTIONS,
    Call,
    Storage,
    Value,
    pause,
    write_program,
)

_MOST_CALLS = 20_000
"""The most operations of a recording: compiling those of a long loop takes minutes."""
_MOST_CONSTANT_BYTES = 2**16
"""The most bytes of a tensor that is computed once, since it depends on no input."""
_READS = {
    *(torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.__dlpack__)
}
"""Functions that read the numbers of a tensor by no operation."""
_LITERALS = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray}
"""Functions that make a tensor of Python's numbers."""
_aten = torch.ops.aten
_INDEXING = {_aten.index.Tensor, _aten._unsafe_index.Tensor}  # noqa: SLF001


class CannotRecordError(BaseException):
    """The reason why a function can't be recorded.

    It is no `Exception`: Keras would add a layer's arguments to the text, and code that catches
    exceptions would go on by another way.
    """


class Recording:
    """Operations that were recorded, as a function of the tensors that the function had as inputs.

    Args:
        program: Function of the inputs that returns what the recorded function did.
        tensors: The tensors from outside that the operations use, such as those of variables.
        written: The tensors from outside that the operations write to.
        draws: True if it draws random numbers.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        tensors: list[torch.Tensor],
        written: list[torch.Tensor],
        *,
        draws: bool,
    ) -> None:
        self._program = program
        self.tensors = tensors
        self.written = written
        self.draws = draws

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Any:
        """Runs the operations, and returns a result of the function's structure."""
        # Autograd had its turn when the operations were recorded.
        with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001
            result = self._program(*inputs)
        if self.written:
            torch.autograd.graph.increment_version(self.written)
        return result

    def run_in_parts(self, inputs: Sequence[torch.Tensor]) -> Generator[Any, Any, Any]:
        """Runs the operations of a function that pauses, and yields what it paused with."""
        steps, reply, written = self._program(*inputs), None, self.written
        while True:
            try:
                with torch._C._AutoDispatchBelowAutograd():  # noqa: SLF001
                    result = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            if written:  # Nothing is written after the first pause, where gradients begin.
                torch.autograd.graph.increment_version(written)
                written = []
            reply = yield result


def record(
    function: Callable[[], Any], inputs: Sequence[torch.Tensor], *, may_write_inputs: bool = False
) -> Recording:
    """Runs a function of tensors, and returns the recording of its operations.

    Tensors that the function writes to, such as those of variables, are as before at the end, but
    for inputs if it may write to them.

    Raises:
        CannotRecordError: The function reads numbers, or does what a recording can't repeat.
    """
    recorder = _Recorder(inputs, may_write_inputs=may_write_inputs)
    try:
        with (
            _LOCK,
            set_temporarily(_CURRENT, value=recorder),
            set_temporarily(IS_RECORDED, value=True),
            replaced_generators(_make_generator),
            _Guard(recorder),
            recorder,
        ):
            result = function()
        return recorder.finish(result)
    finally:
        recorder.restore()


def record_call(function: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor]) -> Any:
    """Returns `function(*tensors)`; a recording that is being made will call the function too."""
    recorder = _CURRENT.get()
    with set_temporarily(IS_RECORDED, value=False):
        return function(*tensors) if recorder is None else recorder.call(function, tensors)


def pause_recording(result: Any, reply: torch.Tensor | None = None) -> None:
    """Has the recording that is being made yield a result here.

    What is sent to it takes the place of `reply`, a new tensor.
    """
    recorder = _CURRENT.get()
    assert recorder is not None
    recorder.pause(result, reply)


def is_recording() -> bool:
    """Returns True while `record` runs its function in this thread."""
    return _CURRENT.get() is not None


_LOCK = threading.RLock()  # Of the function of Keras that is replaced.
_CURRENT: ContextVar["_Recorder | None"] = ContextVar("current_recorder", default=None)


class _Recorder(TorchDispatchMode):
    """Records the operations that are called in its `with` block."""

    def __init__(self, inputs: Sequence[torch.Tensor], *, may_write_inputs: bool) -> None:
        super().__init__()
        self._calls: list[Call] = []
        self._values = WeakTensorKeyDictionary()
        self._num_values = 0
        self._outside: dict[int, Value] = {}  # By the address of their memory.
        self._undo: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._generators = DefaultGenerators()
        self._is_paused = False
        self._may_write_inputs = may_write_inputs
        self._inputs = [self._value_of(tensor) for tensor in inputs]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or func is _aten.detach_.default:  # That one is Autograd's alone.
            return func(*args, **kwargs)
        values: list[Value] = []
        own_args = self._encode(args, values)
        own_kwargs = {name: self._encode(leaf, values) for name, leaf in kwargs.items()}
        if func is _aten.lift_fresh.default:  # `torch.tensor` has made it.
            values[0].is_literal = True
        is_static = all(value.is_static() for value in values)
        _check_operation(func, args, is_static=is_static)
        if len(self._calls) >= _MOST_CALLS:
            raise CannotRecordError(f"it runs more than {_MOST_CALLS:,} operations")
        writes = self._find_writes(func, args, kwargs)
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if is_random and kwargs.get("generator") is None:
            # Attention, for example, may have no dropout.
            self._check_generators()
            output, is_random = self._generators.draw(func, args, kwargs)
        else:
            output = func(*args, **kwargs)
        returns_many = isinstance(output, tuple | list)
        is_static = is_static and not is_random and not writes
        results = [
            self._result(tensor, values, is_static=is_static)
            for tensor in (output if returns_many else [output])
        ]
        is_needed = writes or is_random
        if is_needed or any(value is not None and value not in values for value in results):
            call = Call(
                # Without a layer of Python around each call.
                PYTHON_FUNCTIONS.get(func, func._op),  # noqa: SLF001
                own_args,
                own_kwargs,
                results,
                returns_many=returns_many,
                is_needed=is_needed,
                is_clone=_is_clone(func, kwargs),
            )
            self._calls.append(call)
        return output

    def call(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Calls a function without recording its operations, and records the call.

        Raises a `CannotRecordError` if a gradient passes through the function: the backward pass
        would be recorded, with what the function has saved for this call alone.
        """
        arguments = self._encode(tuple(tensors), [])
        self._is_paused = True
        try:
            output = function(*tensors)
        finally:
            self._is_paused = False
        if isinstance(output, torch.Tensor) and output.requires_grad:
            raise CannotRecordError("a gradient passes through a function that reads numbers")
        result = self._result(output, [], is_static=False)
        self._calls.append(Call(function, arguments, {}, [result], is_needed=True))
        return output

    def pause(self, result: Any, reply: torch.Tensor | None) -> None:
        """Records that the program yields a result, and is sent a tensor."""
        results = [] if reply is None else [self._add(reply, Storage(_identify(reply)))]
        call = Call(pause, (self._describe(result),), {}, results, is_needed=True)
        self._calls.append(call)

    def note_literal(self, source: Any, tensor: Any) -> None:
        """Notes that a tensor which Python has made of `source` holds Python's own numbers."""
        if not isinstance(source, torch.Tensor) and tensor not in self._values:
            self._value_of(tensor).is_literal = True

    def forbids_reading(self, tensor: Any) -> bool:
        """Returns True if recorded code may not read a tensor, since its numbers can change."""
        value = self._values.get(tensor)
        return not (self._is_paused or (value is not None and value.is_static()))

    def restore(self) -> None:
        """Gives tensors from outside that were written to their former values."""
        with torch.no_grad():
            for tensor, old_value in self._undo.values():
                tensor.copy_(old_value)

    def finish(self, result: Any) -> Recording:
        """Returns the recording of a function that has returned `result`."""
        self._check_generators()
        draws = self._generators.have_drawn or any(
            isinstance(leaf, torch.Generator) for call in self._calls for leaf in call.leaves()
        )
        described = self._describe(result)
        program, tensors = write_program(self._calls, self._inputs, described)
        self._calls = []
        written = [tensor for tensor, _ in self._undo.values()]
        return Recording(program, tensors, written, draws=draws)

    def _check_generators(self) -> None:
        if self._generators.were_set():
            raise CannotRecordError("it sets the state of PyTorch's random generator")

    def _describe(self, result: Any) -> Any:
        """Returns a result with a `Value` for each tensor."""
        if isinstance(result, torch.Tensor):
            value = self._value_of(result)
            # The caller may overwrite it, so that the program may not hold it.
            value.storage.is_written |= value.is_literal and not value.is_outside
            return value
        if type(result) in (list, tuple):
            return type(result)(map(self._describe, result))
        if type(result) is dict:
            return {name: self._describe(leaf) for name, leaf in result.items()}
        if len(keras.tree.flatten(result)) != 1:
            raise CannotRecordError(f"it returns a {type(result).__name__}")
        return result

    def _encode(self, structure: Any, values: list[Value]) -> Any:
        """Returns arguments with a `Value` for each tensor, which is also added to `values`."""
        if isinstance(structure, torch.Tensor):
            values.append(value := self._value_of(structure))
            return value
        if isinstance(structure, list | tuple):
            elements = [self._encode(element, values) for element in structure]
            return elements if isinstance(structure, list) else tuple(elements)
        return structure

    def _value_of(self, tensor: torch.Tensor) -> Value:
        value: Value | None = self._values.get(tensor)
        if value is None:  # It was there before, or Python made it.
            address = _identify(tensor)
            base = self._outside.get(address)
            storage = Storage(address) if base is None else base.storage
            value = self._add(tensor, storage)
            value.tensor, value.is_outside = tensor, True
            self._outside.setdefault(address, value)
        return value

    def _add(self, tensor: torch.Tensor, storage: Storage) -> Value:
        layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)
        value = Value(self._num_values, storage, layout)
        self._num_values += 1
        self._values[tensor] = value
        return value

    def _result(self, tensor: Any, values: Sequence[Value], *, is_static: bool) -> Value | None:
        """Returns the value of an operation's output: that of an argument if both are the same."""
        if not isinstance(tensor, torch.Tensor):
            return None
        if tensor in self._values:
            same: Value = self._values[tensor]
            return same
        address = _identify(tensor)
        viewed = [value for value in values if value.storage.address == address]
        value = self._add(tensor, viewed[0].storage if viewed else Storage(address))
        for argument in viewed:
            if argument.layout == value.layout:  # As by `detach`: it differs for autograd alone.
                self._values[tensor] = argument
                return argument
        if is_static and tensor.numel() * tensor.element_size() <= _MOST_CONSTANT_BYTES:
            value.tensor, value.is_literal = tensor, True
        return value

    def _find_writes(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Copies tensors from outside that an operation writes to; returns True if it writes."""
        schema = func._schema  # noqa: SLF001
        if not schema.is_mutable:
            return False
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            target = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in target if isinstance(target, list | tuple) else [target]:
                if isinstance(tensor, torch.Tensor):
                    self._note_write(self._values[tensor].storage)
        return True

    def _note_write(self, storage: Storage) -> None:
        storage.is_written = True
        base = self._outside.get(storage.address)
        if base is None or base.storage is not storage or storage.address in self._undo:
            return
        tensor = base.tensor
        assert tensor is not None
        if any(value.storage is storage for value in self._inputs):
            if not self._may_write_inputs:
                raise CannotRecordError("it writes into its inputs")
        elif base.is_literal or tensor.nbytes != tensor.untyped_storage().nbytes():
            raise CannotRecordError("it writes into a constant")
        else:
            self._undo[storage.address] = tensor, tensor.detach().clone()


class _Guard(TorchFunctionMode):
    """Refuses what reads the numbers of tensors by no operation; finds Python's own numbers."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READS and self._recorder.forbids_reading(args[0]):
            raise CannotRecordError(f"it reads numbers, by {func.__name__}")
        result = func(*args, **(kwargs or {}))
        if func in _LITERALS:
            self._recorder.note_literal(args[0], result)
        return result


def _make_generator(seed: Any, make: Callable[[Any], Any]) -> Any:
    """Returns a generator that a recording seeds anew each time, as Keras does in each draw."""
    recorder = _CURRENT.get()
    if recorder is None or infers_shapes():  # Another thread is recording, or nothing is drawn.
        return make(seed)
    number, device = drawn_seed(seed)
    generator = torch.Generator(device=device)

    def reseed(number: torch.Tensor) -> None:
        generator.manual_seed(int(number) & 0xFFFFFFFF)

    recorder.call(reseed, [number])
    return generator


def _check_operation(func: Any, args: Sequence[Any], *, is_static: bool) -> None:
    """Raises an error for an operation whose results Python may depend on."""
    if torch.Tag.inplace_view in func.tags:
        raise CannotRecordError(f"it changes the shape of a tensor in place, by {func}")
    if is_static:
        return
    if torch.Tag.data_dependent_output in func.tags:
        raise CannotRecordError("it reads numbers of a tensor")
    if torch.Tag.dynamic_output_shape in func.tags:
        is_indexing = func in _INDEXING
        if not is_indexing or any(map(_is_mask, args[1])):
            raise CannotRecordError(f"a shape depends on numbers of a tensor, by {func}")


def _is_mask(index: Any) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _is_clone(func: Any, kwargs: dict[str, Any]) -> bool:
    """Returns True for a copy whose layout does not depend on that of its input."""
    if func is _aten.contiguous.default:
        return True
    memory_format = kwargs.get("memory_format", torch.preserve_format)
    return func is _aten.clone.default and memory_format is not torch.preserve_format


def _identify(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001
