"""Traces training steps by TensorFlow's profiler."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.xla.service.hlo_pb2 import HloProto
from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

from keras_deepseek.backend.profiling.step_trace import Line
from keras_deepseek.backend.profiling.xla_trace import (
    Instruction,
    LayerScopes,
    Operation,
    Program,
    make_lines,
)


@contextmanager
def trace_steps(model: keras.Model, lines: list[Line]) -> Iterator[None]:
    """Context manager that traces steps, and appends the lines of the trace at its end."""
    scopes = LayerScopes(model, is_numbered=True)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            yield
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = XSpace.FromString(file.read_bytes()).planes
    operations = [
        (plane.name, [_read_line(plane, line) for line in plane.lines]) for plane in planes
    ]
    programs = [
        (metadata.name.rpartition("(")[0], functools.partial(_read_program, stat.bytes_value))
        for plane in planes
        if plane.name == "/host:metadata"
        for metadata in plane.event_metadata.values()  # Named after a program and its number.
        for stat in metadata.stats
    ]
    lines += make_lines(operations, programs, scopes)


def _read_line(plane: Any, line: Any) -> list[Operation]:
    operations = []
    for event in line.events:
        start = line.timestamp_ns * 1e-9 + event.offset_ps * 1e-12
        name = plane.event_metadata[event.metadata_id].name
        stats = {plane.stat_metadata[s.metadata_id].name: _read_stat(plane, s) for s in event.stats}
        end = start + event.duration_ps * 1e-12
        operations.append(Operation(line.name, start, end, name, stats))
    return operations


def _read_stat(plane: Any, stat: Any) -> Any:
    kind = stat.WhichOneof("value")
    value = getattr(stat, kind) if kind else 0
    return plane.stat_metadata[value].name if kind == "ref_value" else value


def _read_program(data: bytes) -> Program:
    computations = HloProto.FromString(data).hlo_module.computations
    computation_names = {computation.id: computation.name for computation in computations}
    program = []
    for computation in computations:
        names = {node.id: node.name for node in computation.instructions}
        instructions = [
            Instruction(
                node.name,
                node.metadata.op_name,
                [names[operand] for operand in node.operand_ids],
                [computation_names[called] for called in node.called_computation_ids],
            )
            for node in computation.instructions
        ]
        program.append((computation.name, instructions))
    return program
