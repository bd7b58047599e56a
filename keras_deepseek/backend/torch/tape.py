"""The operations of a recording, and the Python function that is written of them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

PYTHON_FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""The functions in Python by their operations: a program calls them without the operation."""

_LEAST_TRANSPOSED = 2**18
"""The least size of a tensor for which the transposition of a matrix is the faster copy."""


class Storage:
    """The memory of a tensor and its views.

    Args:
        address: integer. Another storage may have the same after this one is freed.
    """

    __slots__ = ("address", "is_written")

    def __init__(self, address: int) -> None:
        self.address = address
        self.is_written = False
        """True if an operation writes into it."""


class Value:
    """A tensor of a recording.

    Args:
        number: integer. Its name in the program.
        storage: Its memory.
        layout: Its shape, strides, offset and dtype.
    """

    __slots__ = ("is_literal", "is_outside", "layout", "number", "storage", "tensor")

    def __init__(self, number: int, storage: Storage, layout: Any) -> None:
        self.number = number
        self.storage = storage
        self.layout = layout
        self.tensor: torch.Tensor | None = None
        """The tensor itself, if it need not be computed."""
        self.is_literal = False
        """True if its numbers depend on no input and no variable."""
        self.is_outside = False
        """True if no operation of the recording made the tensor."""

    def is_static(self) -> bool:
        """Returns True if it has the same numbers each time."""
        return self.is_literal and not self.storage.is_written

    def is_constant(self) -> bool:
        """Returns True if the program holds the tensor."""
        return self.is_outside or (self.tensor is not None and self.is_static())


@dataclasses.dataclass
class Call:
    """A call of an operation.

    Args:
        function: The operation.
        args: The positional arguments, with `Value`s in place of tensors.
        kwargs: The other arguments.
        results: The outputs, with `None` for what is no tensor.
        returns_many: boolean. The operation returns several tensors. Defaults to `False`.
        is_needed: boolean. The operation writes or draws: it must run even if nothing uses its
            results. Defaults to `False`.
        is_clone: boolean. The operation copies a tensor to a layout of its own. Defaults to
            `False`.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    results: Sequence[Value | None]
    returns_many: bool = False
    is_needed: bool = False
    is_clone: bool = False

    def leaves(self) -> Iterator[Any]:
        """Yields all arguments, those inside of lists too."""
        yield from leaves_of(self.args)
        yield from leaves_of(self.kwargs)

    def values(self) -> Iterator[Value]:
        """Yields the tensors among the arguments."""
        return (leaf for leaf in self.leaves() if isinstance(leaf, Value))


def pause(result: Any) -> Any:
    """Stands for `yield result` in a program, which returns what is sent to it."""


def write_program(
    calls: Sequence[Call], inputs: Sequence[Value], result: Any
) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """Returns a function of the inputs that makes the calls, and the tensors that it holds.

    It makes no call whose result nothing uses, and no copy that can't be told from the original.
    Each tensor is freed after its last use. `result` is what the function returns: a structure
    with `Value`s in place of tensors. With a call of `pause`, it is a generator function.
    """
    returned = [leaf for leaf in leaves_of(result) if isinstance(leaf, Value)]
    yielded = [value for call in calls if call.function is pause for value in call.values()]
    outputs = [*returned, *yielded]
    calls = _without_unused(_without_copies(calls, inputs, outputs), outputs)
    calls = list(map(_with_transposition, calls))
    writer = _Writer(inputs)
    used = {value.number for call in calls for value in call.values()}
    used |= {value.number for value in outputs}
    last_uses: dict[int, int] = {}
    for position, call in enumerate(calls):
        for value in (*call.values(), *filter(None, call.results)):
            if not writer.is_held(value):
                last_uses[value.number] = position
    never_freed = {value.number for value in (*inputs, *returned)}
    freed: dict[int, list[str]] = {}
    for number, position in last_uses.items():
        if number in used and number not in never_freed:
            freed.setdefault(position, []).append(f"v{number}")
    lines = []
    for position, call in enumerate(calls):
        lines.append(writer.write(call, used))
        if position in freed:
            lines.append(f"del {', '.join(freed[position])}")
    lines.append(f"return {writer.spell(result)}")
    arguments = ", ".join(f"v{value.number}" for value in inputs)
    source = f"def run({arguments}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<recording>", "exec"), writer.names)
    program: Callable[..., Any] = writer.names.pop("run")  # They would hold each other.
    return program, writer.outside


class _Writer:
    """Writes calls as lines of Python. `names` has the objects in them."""

    def __init__(self, inputs: Sequence[Value]) -> None:
        self.names: dict[str, Any] = {}
        self.outside: list[torch.Tensor] = []
        self._names_by_id: dict[int, str] = {}
        self._inputs = {value.number for value in inputs}

    def is_held(self, value: Value) -> bool:
        """Returns True if the program holds a tensor."""
        return value.number not in self._inputs and value.is_constant()

    def write(self, call: Call, used: set[int]) -> str:
        """Returns the line of a call."""
        arguments = [self.spell(argument) for argument in call.args]
        arguments += [f"{name}={self.spell(leaf)}" for name, leaf in call.kwargs.items()]
        line = f"{self._bind(call.function)}({', '.join(arguments)})"
        if call.function is pause:
            line = f"yield {arguments[0]}"
        targets = [
            "_" if value is None or value.number not in used else f"v{value.number}"
            for value in call.results
        ]
        if all(target == "_" for target in targets):
            return line
        return f"{', '.join(targets)}{',' * call.returns_many} = {line}"

    def spell(self, argument: Any) -> str:
        """Returns an argument as Python."""
        if isinstance(argument, Value):
            if not self.is_held(argument):
                return f"v{argument.number}"
            if argument.is_outside and id(argument.tensor) not in self._names_by_id:
                self.outside.append(argument.tensor)
            return self._bind(argument.tensor)
        if isinstance(argument, list | tuple | dict):
            return self._spell_container(argument)
        is_plain = argument is None or type(argument) in (bool, int, str)
        if is_plain or (type(argument) is float and math.isfinite(argument)):
            return repr(argument)
        return self._bind(argument)

    def _spell_container(self, container: Any) -> str:
        if isinstance(container, dict):
            pairs = [f"{self.spell(name)}: {self.spell(leaf)}" for name, leaf in container.items()]
            return f"{{{', '.join(pairs)}}}"
        elements = ", ".join(map(self.spell, container))
        if isinstance(container, list):
            return f"[{elements}]"
        return f"({elements},)" if container else "()"

    def _bind(self, value: Any) -> str:
        name = self._names_by_id.setdefault(id(value), f"c{len(self._names_by_id)}")
        self.names[name] = value
        return name


def _without_unused(calls: Sequence[Call], outputs: Sequence[Value]) -> list[Call]:
    """Returns the calls that write, draw or have a result that is used."""
    used = {value.number for value in outputs}
    chosen = []
    for call in reversed(calls):
        results = [value for value in call.results if value is not None]
        if call.is_needed or any(
            value.number in used and not value.is_constant() for value in results
        ):
            chosen.append(call)
            used.update(value.number for value in call.values())
    return chosen[::-1]


def _without_copies(
    calls: Sequence[Call], inputs: Sequence[Value], outputs: Sequence[Value]
) -> list[Call]:
    """Returns the calls without copies of what has the same layout, and without copies of copies.

    Neither the copy nor the original may be written to, and a copy that the program returns stays.
    """
    copied: dict[int, Value] = {}  # The originals of copies.
    replaced: dict[int, Value] = {}
    returned = {value.storage for value in outputs}

    def replace(structure: Any) -> Any:
        if isinstance(structure, Value):
            return replaced.get(structure.number, structure)
        if isinstance(structure, list | tuple):
            return type(structure)(map(replace, structure))
        return structure

    chosen = []
    for call in calls:
        args = replace(tuple(call.args))
        kwargs = {name: replace(argument) for name, argument in call.kwargs.items()}
        if call.is_clone:
            original, (copy,) = args[0], filter(None, call.results)
            original = copied.get(original.number, original)
            args = (original, *args[1:])
            is_written = original.storage.is_written or copy.storage.is_written
            if not is_written:
                copied[copy.number] = original
                if original.layout == copy.layout and copy.storage not in returned:
                    replaced[copy.number] = original
                    continue
        chosen.append(dataclasses.replace(call, args=args, kwargs=kwargs))
    return chosen


def _with_transposition(call: Call) -> Call:
    """Returns a copy of a tensor as the transposition of a matrix, if it is one.

    In the kernel of a convolution, Keras has the axis of the outputs last, and PyTorch first. The
    general copy of PyTorch reads numbers one after the other that are far apart in memory. That of
    a matrix goes block by block: it takes half the time, or a sixth where the memory is busy.
    """
    if not call.is_clone:
        return call
    (copy,) = filter(None, call.results)
    (shape, strides, *_), (_, new_strides, *_) = call.args[0].layout, copy.layout
    matrix = _find_matrix(shape, strides, new_strides)
    if matrix is None:
        return call
    function = functools.partial(_transpose, matrix=matrix, shape=shape, strides=new_strides)
    return dataclasses.replace(call, function=function, args=call.args[:1], kwargs={})


def _find_matrix(
    shape: Sequence[int], strides: Sequence[int], new_strides: Sequence[int]
) -> tuple[int, int] | None:
    """Returns the sizes of the matrix whose transposition copies a tensor to new strides.

    `None`: the tensor's memory is no such matrix, or is small.
    """
    if math.prod(shape) < _LEAST_TRANSPOSED:
        return None
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    old_order = sorted(axes, key=lambda axis: -strides[axis])
    new_order = sorted(axes, key=lambda axis: -new_strides[axis])
    split = old_order.index(new_order[-1]) + 1
    is_turned = new_order == old_order[split:] + old_order[:split] and split < len(axes)
    if not (is_turned and _is_dense(shape, strides, old_order)):
        return None
    sizes = [shape[axis] for axis in old_order]
    return math.prod(sizes[:split]), math.prod(sizes[split:])


def _is_dense(shape: Sequence[int], strides: Sequence[int], order: Sequence[int]) -> bool:
    """Returns True if a tensor's numbers follow one another in memory, in an order of its axes."""
    stride = 1
    for axis in reversed(order):
        if strides[axis] != stride:
            return False
        stride *= shape[axis]
    return True


def _transpose(
    tensor: torch.Tensor,
    *,
    matrix: tuple[int, int],
    shape: Sequence[int],
    strides: Sequence[int],
) -> torch.Tensor:
    """Returns a copy with new strides of a tensor whose memory is a matrix."""
    rows, columns = matrix
    transposed = tensor.as_strided((columns, rows), (1, columns)).contiguous()
    return transposed.as_strided(shape, strides)


def leaves_of(structure: Any) -> Iterator[Any]:
    """Yields what lists, tuples and dicts hold, at any depth.

    `keras.tree` leaves circles behind, which keep tensors alive.
    """
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, list | tuple):
        for element in structure:
            yield from leaves_of(element)
    else:
        yield structure


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Returns nested lists, tuples and dicts with the results of a function of their leaves."""
    if isinstance(structure, dict):
        return {name: map_leaves(function, element) for name, element in structure.items()}
    if type(structure) in (list, tuple):
        return type(structure)(map_leaves(function, element) for element in structure)
    return function(structure)
