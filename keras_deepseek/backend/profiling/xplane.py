"""Reads an `.xplane.pb`, the trace that JAX and TensorFlow write, without protobuf.

The messages and the numbers of their fields:

- `XSpace`: planes 1. `XPlane`: name 2, lines 3, event_metadata 4 and stat_metadata 5 (maps: key 1,
  value 2). `XEventMetadata`: id 1, name 2, stats 5. `XStatMetadata`: id 1, name 2.
- `XLine`: name 2, timestamp_ns 3, events 4. `XEvent`: metadata_id 1, offset_ps 2, duration_ps 3,
  stats 4. `XStat`: metadata_id 1, integers 3 and 4, text 5, bytes 6, reference to a name 7.
- The plane `/host:metadata` holds the program of each module, in the bytes of a stat. `HloProto`:
  module 1. `HloModuleProto`: computations 3. `HloComputationProto`: instructions 2, id 5.
  `HloInstructionProto`: name 1, metadata 7 and there op_name 2, id 35, operand_ids 36,
  called_computation_ids 38.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keras_deepseek.backend.profiling.layer_scopes import LayerScopes
from keras_deepseek.backend.profiling.step_trace import (
    DATA_WAIT,
    Event,
    Line,
    Owner,
    without_work,
)

_TENSORFLOW_OPERATION = re.compile(r"[^\s:]+:[^\s:]+")
_WAITS = (DATA_WAIT, "IteratorGetNextOp::DoCompute")


def read_lines(folder: str, scopes: LayerScopes) -> list[Line]:
    """Reads the trace in a folder as lines of events with their owners."""
    (file,) = Path(folder).rglob("*.xplane.pb")
    planes = [_read(plane) for plane in _read(memoryview(file.read_bytes()))[1]]
    compiled_programs = [
        program
        for plane in planes
        if _text(plane[2]) == "/host:metadata"
        for program in _read_programs(plane)
    ]
    traced = [(_text(plane[2]), _read_operations(plane)) for plane in planes]
    programs = _match_programs(compiled_programs, [line for _, lines in traced for line in lines])
    host: list[Line] = []
    device: list[Line] = []
    for name, operations in traced:
        lines = device if name.startswith("/device:") else host
        lines += _make_lines(operations, scopes, programs)
    if any(event.owner for line in device for event in line):  # The host only starts operations.
        host = [without_work(line) for line in host]
    return [*host, *device]


class _Operation(NamedTuple):
    """An event of a thread, with its stats by their names."""

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


def _read_operations(plane: dict[int, list[Any]]) -> list[list[_Operation]]:
    """Reads the events of each line of a plane."""
    names, stat_names = _read_names(plane[4]), _read_names(plane[5])
    lines = []
    for line in map(_read, plane[3]):
        thread, begin = _text(line[2]), _integer(line[3]) * 1e-9
        operations = []
        for fields in map(_read, line[4]):
            start = begin + _integer(fields[2]) * 1e-12
            end = start + _integer(fields[3]) * 1e-12
            stats = dict(_read_stat(stat, stat_names) for stat in fields[4])
            operations.append(_Operation(thread, start, end, names[_integer(fields[1])], stats))
        lines.append(operations)
    return lines


def _match_programs(
    compiled_programs: list[tuple[str, dict[str, str]]], lines: list[list[_Operation]]
) -> dict[tuple[str, int], dict[str, str]]:
    """Returns the scopes of instructions, for each name and number of a program that ran.

    A program from JAX's compilation cache runs under the number of the process that compiled it,
    which another program of its name may have here. So it is the one that has most of the
    instructions that ran; of several the smallest, and of these the one with that number.
    """
    ran: dict[tuple[str, int], set[str]] = defaultdict(set)
    for operation in (operation for line in lines for operation in line):
        if operation.instruction:
            ran[operation.program].add(operation.instruction)
    matched: dict[tuple[str, int], dict[str, str]] = {}
    for (name, number), instructions in ran.items():
        fitting = [
            (len(instructions - scopes.keys()), len(scopes), key != f"{name}({number})", scopes)
            for key, scopes in compiled_programs
            if key.rpartition("(")[0] == name
        ]
        matched[name, number] = (
            min(fitting, key=lambda candidate: candidate[:3])[3] if fitting else {}
        )
    return matched


def _make_lines(
    traced: list[list[_Operation]],
    scopes: LayerScopes,
    programs: dict[tuple[str, int], dict[str, str]],
) -> list[Line]:
    """Returns the events of each line of a plane, with their owners."""
    lines: list[Line] = []
    begun: dict[Any, Event] = {}  # By the number that the event of its end has too.
    ended: dict[Any, float] = {}
    for operations in traced:
        events = []
        for operation in operations:
            owner: Owner | None = None
            if operation.name in _WAITS:
                owner = Owner("data_wait")
            elif operation.instruction:
                owner = scopes.owner(programs[operation.program].get(operation.instruction, ""))
            elif "tf_op" in operation.stats or (
                _TENSORFLOW_OPERATION.fullmatch(operation.name)
                and not operation.thread.startswith("tf_data")
            ):
                owner = scopes.owner(operation.stats.get("tf_op", operation.name))
            event = Event(operation.start, operation.end, operation.name, owner)
            events.append(event)
            if operation.name.startswith("end: ") and "c" in operation.stats:
                ended[operation.stats["c"]] = operation.start
            elif owner is not None and "p" in operation.stats:
                begun[operation.stats["p"]] = event
        lines.append(events)
    late = [
        event._replace(start=event.end, end=ended[number])
        for number, event in begun.items()
        if ended.get(number, 0.0) > event.end
    ]
    return [*lines, *_in_lines(late)]


def _in_lines(events: list[Event]) -> list[Line]:
    """Returns operations that ran on in other threads, which have no events, as few lines."""
    lines: list[Line] = []
    for event in sorted(events):
        free = next((line for line in lines if line[-1].end <= event.start), None)
        if free is None:
            lines.append(free := [])
        free.append(event)
    return lines


def _read_stat(message: memoryview, names: dict[int, str]) -> tuple[str, Any]:
    """Returns a stat's name, without a leading underscore, and its value."""
    stat = _read(message)
    name = names[_integer(stat[1])].removeprefix("_")
    if stat[7]:
        return name, names[stat[7][0]]
    value = next((stat[field][0] for field in (3, 4, 5) if stat[field]), 0)
    return name, _text([value]) if isinstance(value, memoryview) else value


def _read_programs(plane: dict[int, list[Any]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the name of each program, and the scopes of its instructions by their names."""
    for entry in plane[4]:
        metadata = _read(_read(entry)[2][0])
        computations = [
            _read(computation)
            for stat in metadata[5]
            for proto in _read(stat)[6]
            for module in _read(proto)[1]
            for computation in _read(module)[3]
        ]
        yield _text(metadata[2]), _find_scopes(computations)


def _find_scopes(computations: list[dict[int, list[Any]]]) -> dict[str, str]:
    """Returns the scope of each instruction of a program by its name.

    XLA's rewrites drop scopes, as where it reduces in two steps or converts a dtype. Such an
    instruction has the scope of what it calls, of what reads its result, or of what it reads.
    """
    scopes: dict[str, str] = {}
    in_computation: dict[int, str] = {}
    for computation in computations:  # Those that are called come first.
        instructions = [_read(instruction) for instruction in computation[2]]
        scope_by_number: dict[int, str] = {}
        readers: dict[int, str] = {}
        for instruction in reversed(instructions):
            scope = next((_text(_read(meta)[2]) for meta in instruction[7]), "")
            if "/" not in scope:
                called = (in_computation.get(number, "") for number in _integers(instruction[38]))
                scope = next(filter(None, called), "") or readers.get(_integer(instruction[35]), "")
            scope_by_number[_integer(instruction[35])] = scope
            for operand in _integers(instruction[36]):
                readers.setdefault(operand, scope)
        for instruction in instructions:
            number = _integer(instruction[35])
            read = (scope_by_number.get(operand, "") for operand in _integers(instruction[36]))
            scope_by_number[number] = scope_by_number[number] or next(filter(None, read), "")
            scopes[_text(instruction[1])] = scope_by_number[number]
        result_scopes = (
            scope_by_number[_integer(instruction[35])] for instruction in reversed(instructions)
        )
        in_computation[_integer(computation[5])] = next(filter(None, result_scopes), "")
    return scopes


def _read_names(entries: list[Any]) -> dict[int, str]:
    metadata = [_read(_read(entry)[2][0]) for entry in entries]
    return {_integer(message[1]): _text(message[2]) for message in metadata}


def _integer(values: list[Any]) -> int:
    """Returns the integer of a field, which is left out where it is 0."""
    return int(values[0]) if values else 0


def _integers(values: list[Any]) -> Iterator[int]:
    """Yields the integers of a repeated field, which are packed or not."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        position = 0
        while position < len(value):
            number, position = _read_integer(value, position)
            yield number


def _text(values: list[Any]) -> str:
    return str(values[0], "utf-8", "replace") if values else ""


def _read(message: memoryview) -> dict[int, list[Any]]:
    """Returns the values of a message by the numbers of their fields: integers and bytes."""
    fields: dict[int, list[Any]] = defaultdict(list)
    position = 0
    while position < len(message):
        key, position = _read_integer(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _read_integer(message, position)
            fields[key >> 3].append(value)
            continue
        length = {1: 8, 5: 4}.get(kind)
        if length is None:
            length, position = _read_integer(message, position)
        fields[key >> 3].append(message[position : position + length])
        position += length
    return fields


def _read_integer(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position += 1
        shift += 7
        if byte < 128:  # noqa: PLR2004 - the highest bit says that another byte follows.
            return value, position
