"""Traces of XLA's profiler: each operation with the layer of its name scope."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_deepseek.backend.keras_private.layers import unique_paths
from keras_deepseek.backend.keras_private.optimizers import plain_optimizer
from keras_deepseek.backend.profiling.step_trace import (
    BACKWARD,
    DATA_WAIT,
    LOSS,
    OPTIMIZER,
    Event,
    Line,
    Owner,
    without_work,
)

_WRAPPED = re.compile(r"^(?:(?:transpose|jvp|vmap|remat|checkpoint)\()+")
_NUMBER = re.compile(r"_\d+$")
_PRODUCER, _CONSUMER = "_p", "_c"
"""The statistics by which XLA numbers an operation that runs on, and the event of its end."""
_TENSORFLOW_OPERATION = re.compile(r"[^\s:]+:[^\s:]+")
_WAITS = (DATA_WAIT, "IteratorGetNextOp::DoCompute")


class LayerScopes:
    """Finds the owner of an operation by its scope, such as `model/block/head/dot_general`.

    Args:
        is_numbered: boolean. TensorFlow appends a number to a scope that is entered again. Keras
            enters each layer's scope twice, first to build it: `head_1` is the layer `head`, and
            `dense_1_2` is `dense_1`.
    """

    def __init__(self, model: keras.Model, *, is_numbered: bool) -> None:
        self._is_numbered = is_numbered
        self._inner: dict[str, dict[str, str]] = {"": {}}  # The layers in a layer, by name.
        with unique_paths(model) as layers:
            for path, (layer, outer) in layers.items():
                self._inner.setdefault(path, {})
                self._inner[outer].setdefault(layer.name, path)
            self.root = next(iter(layers))
        optimizer = plain_optimizer(model.optimizer)
        self._parts = {LOSS: "loss", "compile_loss": "loss", OPTIMIZER: "optimizer"}
        self._parts[optimizer.name] = "optimizer"
        self._find_layer = functools.cache(self._search_layer)
        self.owner = functools.cache(self._search_owner)
        """Function that returns the owner of a scope; its part is `"rest"` if none is known."""

    def _search_owner(self, scope: str) -> Owner:
        """Goes through the names of a scope from the outermost one to find part and layer."""
        is_backward = "transpose(" in scope or "gradient_tape" in scope
        part, layer = "rest", ""
        *scopes, _ = scope.split("/")  # The last one is the name of the operation.
        for name in scopes:
            bare = _WRAPPED.sub("", name).rstrip(")")
            short = _NUMBER.sub("", bare) if self._is_numbered else bare
            if matched_part := self._parts.get(short, self._parts.get(bare)):
                part, layer = matched_part, ""
            elif BACKWARD in (short, bare):
                part, layer, is_backward = "forward", self.root, True
            elif inner := self._find_layer(layer, short) or self._find_layer(layer, bare):
                part, layer = "forward", inner
        if part == "rest" and "jvp(" in scope:  # JAX: differentiated outside of any layer.
            part, layer = "forward", self.root
        return Owner("backward" if part == "forward" and is_backward else part, layer)

    def _search_layer(self, outer: str, name: str) -> str | None:
        """Returns the path of the nearest layer of a name inside a layer, or `None`."""
        level = [outer]
        while level:
            for path in level:
                if name in self._inner[path]:
                    return self._inner[path][name]
            level = [inner for path in level for inner in self._inner[path].values()]
        return None


class Instruction(NamedTuple):
    """An instruction of a compiled program. The computations that it calls are named."""

    name: str
    scope: str
    operands: Sequence[str]
    called: Sequence[str]


Program = Sequence[tuple[str, Sequence[Instruction]]]
"""The computations of a compiled program with their names. Those that are called come first."""


class Operation(NamedTuple):
    """An event of a thread, in seconds, with its stats by their names."""

    thread: str
    start: float
    end: float
    name: str
    stats: dict[str, Any]

    @property
    def instruction(self) -> str:
        """The name in its program; `""` for events that are no instructions."""
        return str(self.stats.get("hlo_op", ""))

    @property
    def program(self) -> tuple[str, int]:
        """The name and number of the program that this is an instruction of."""
        return self.stats["hlo_module"], self.stats["program_id"]


def make_lines(
    planes: Sequence[tuple[str, list[list[Operation]]]],
    programs: Sequence[tuple[str, Callable[[], Program]]],
    scopes: LayerScopes,
) -> list[Line]:
    """Returns lines of events with their owners.

    `planes` has the name of each plane, a host or a device, and the operations of each of its
    threads or streams. `programs` has the name of each compiled program, and its reader.
    """
    program_scopes = _match_programs(planes, programs, scopes)
    host: list[Line] = []
    device: list[Line] = []
    for name, plane in planes:
        lines = device if name.startswith("/device:") else host
        lines += _make_plane_lines(plane, scopes, program_scopes)
    if any(event.owner for line in device for event in line):  # The host only starts operations.
        host = [without_work(line) for line in host]
    return [*host, *device]


def _match_programs(
    planes: Sequence[tuple[str, list[list[Operation]]]],
    programs: Sequence[tuple[str, Callable[[], Program]]],
    scopes: LayerScopes,
) -> dict[tuple[str, int], dict[str, str]]:
    """Returns the scopes of instructions, for each name and number of a program that ran.

    Programs of one name are told apart by their instructions, since JAX's number may be that of
    the process that compiled it. The program with most of the instructions that ran is taken. Among
    several the smallest counts, and among these the one with most of the model's layers.
    """
    ran: dict[tuple[str, int], set[str]] = defaultdict(set)
    for operation in (operation for _, plane in planes for line in plane for operation in line):
        if operation.instruction:
            ran[operation.program].add(operation.instruction)
    names = {name for name, _ in ran}
    compiled = [(name, _find_scopes(read())) for name, read in programs if name in names]

    def misfit(program: dict[str, str], instructions: set[str]) -> tuple[int, int, int]:
        layers = {scopes.owner(scope).layer for scope in program.values()} - {"", scopes.root}
        return len(instructions - program.keys()), len(program), -len(layers)

    matched: dict[tuple[str, int], dict[str, str]] = {}
    for key, instructions in ran.items():
        candidates = [program for name, program in compiled if name == key[0]]
        misfits = [misfit(program, instructions) for program in candidates]
        matched[key] = candidates[misfits.index(min(misfits))] if candidates else {}
    return matched


def _make_plane_lines(
    plane: list[list[Operation]],
    scopes: LayerScopes,
    programs: dict[tuple[str, int], dict[str, str]],
) -> list[Line]:
    """Returns the lines of one plane, and lines for what runs on after the call that started it.

    An operation that runs on is recorded as two events: the call that starts it, and its end. Both
    carry the same number.
    """
    lines: list[Line] = []
    started: dict[Any, Event] = {}  # By that number.
    end_times: dict[Any, float] = {}
    for operations in plane:
        events = []
        for operation in operations:
            owner = _find_owner(operation, scopes, programs)
            event = Event(operation.start, operation.end, operation.name, owner)
            events.append(event)
            if operation.name.startswith("end: ") and _CONSUMER in operation.stats:
                end_times[operation.stats[_CONSUMER]] = operation.start
            elif owner is not None and _PRODUCER in operation.stats:
                started[operation.stats[_PRODUCER]] = event
        lines.append(events)
    running_on = [
        event._replace(start=event.end, end=end_times[number])
        for number, event in started.items()
        if end_times.get(number, 0.0) > event.end
    ]
    return [*lines, *_in_lines(running_on)]


def _find_owner(
    operation: Operation, scopes: LayerScopes, programs: dict[tuple[str, int], dict[str, str]]
) -> Owner | None:
    """Returns the owner of an operation; `None` for events that are no work of the step."""
    if operation.name in _WAITS:
        return Owner("data_wait")
    if operation.instruction:
        return scopes.owner(programs[operation.program].get(operation.instruction, ""))
    if "tf_op" in operation.stats or (
        _TENSORFLOW_OPERATION.fullmatch(operation.name)
        and not operation.thread.startswith("tf_data")
    ):
        return scopes.owner(operation.stats.get("tf_op", operation.name))
    return None


def _in_lines(events: list[Event]) -> list[Line]:
    """Distributes events that overlap over as few lines as possible."""
    lines: list[Line] = []
    for event in sorted(events):
        free = next((line for line in lines if line[-1].end <= event.start), None)
        if free is None:
            lines.append(free := [])
        free.append(event)
    return lines


def _find_scopes(program: Program) -> dict[str, str]:
    """Returns the scope of each instruction of a program by its name.

    XLA's rewrites drop scopes, as where it reduces in two steps or converts a dtype. Such an
    instruction has the scope of what it calls, of what reads its result, or of what it reads.
    """
    scopes: dict[str, str] = {}
    in_computation: dict[str, str] = {}
    for computation, instructions in program:
        readers: dict[str, str] = {}
        for name, written_scope, operands, called in reversed(instructions):
            scope = written_scope
            if "/" not in scope:
                scope = _first(in_computation, called) or readers.get(name, "")
            scopes[name] = scope
            for operand in operands:
                readers.setdefault(operand, scope)
        for name, _, operands, _ in instructions:
            scopes[name] = scopes[name] or _first(scopes, operands)
        results = [instruction.name for instruction in reversed(instructions)]
        in_computation[computation] = _first(scopes, results)
    return scopes


def _first(scopes: dict[str, str], names: Sequence[str]) -> str:
    return next(filter(None, (scopes.get(name, "") for name in names)), "")
