"""Traces training steps by JAX's profiler."""

import functools
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import keras
from jax.extend.backend import get_backend

from keras_deepseek.backend.profiling.step_trace import Line
from keras_deepseek.backend.profiling.xla_trace import (
    Instruction,
    LayerScopes,
    Operation,
    Program,
    make_lines,
)

_COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) [^\n]*\{$(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (.*)", re.MULTILINE)
_SCOPE = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(r"\w=\{?(%[^\s,}]+(?:, %[^\s,}]+)*)")
_NAME = re.compile(r"%([^\s,(){}]+)")


@contextmanager
def trace_steps(model: keras.Model, lines: list[Line]) -> Iterator[None]:
    """Context manager that traces steps, and appends the lines of the trace at its end."""
    scopes = LayerScopes(model, is_numbered=False)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It slows the steps down.
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            yield
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        operations = [(plane.name, [*map(_read_line, plane.lines)]) for plane in planes]
    programs = [
        (module.name, functools.partial(_read_program, module))
        for executable in get_backend().live_executables()
        for module in executable.hlo_modules()
    ]
    lines += make_lines(operations, programs, scopes)


def _read_line(line: Any) -> list[Operation]:
    operations = []
    for event in line.events:
        start, end = event.start_ns * 1e-9, event.end_ns * 1e-9
        operations.append(Operation(line.name, start, end, event.name, dict(event.stats)))
    return operations


def _read_program(module: Any) -> Program:
    """Reads a compiled program from its text."""
    return [
        (name, [_read_instruction(*groups) for groups in _INSTRUCTION.findall(body)])
        for name, body in _COMPUTATION.findall(module.to_string())
    ]


def _read_instruction(name: str, definition: str) -> Instruction:
    inputs, _, metadata = definition.partition(", metadata={")
    scope = _SCOPE.search(metadata)
    called = [name for names in _CALLED.findall(inputs) for name in _NAME.findall(names)]
    operands = [operand for operand in _NAME.findall(inputs) if operand not in called]
    return Instruction(name, scope[1] if scope else "", operands, called)
