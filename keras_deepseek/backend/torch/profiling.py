"""Traces training steps by PyTorch's profiler."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from keras_deepseek.backend.keras_private.layer_calls import profiled_calls
from keras_deepseek.backend.keras_private.layers import unique_paths
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

_LAYER = "layer:"  # The prefix of a mark that names a layer.
_USER_SCOPE = 7  # Kineto's number for an event of `record_function`.
_NANOSECOND = 1e-9  # In seconds.

_is_tracing = _is_marking = False  # PyTorch's profiler is one for a process too.


def annotate(name: str) -> contextlib.AbstractContextManager[object]:
    """Returns a context manager that names the time spent in it, while a trace is taken."""
    return record_function(name) if _is_tracing else contextlib.nullcontext()


def mark(name: str) -> contextlib.AbstractContextManager[object]:
    """Returns a context manager that names the operations in it, while a trace is taken."""
    return record_function(name) if _is_marking else contextlib.nullcontext()


@contextlib.contextmanager
def trace_steps(model: keras.Model, lines: list[Line]) -> Iterator[None]:
    """Context manager that traces steps, and appends the lines of the trace at its end."""
    global _is_tracing, _is_marking  # noqa: PLW0603
    with unique_paths(model) as layers:
        marks = {id(layer): _LAYER + path for path, (layer, _) in layers.items()}
    root = next(iter(layers))
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    calls = profiled_calls(
        lambda layer: mark(marks[id(layer)]) if id(layer) in marks else contextlib.nullcontext(),
        lambda: mark(LOSS),
        lambda: mark(OPTIMIZER),
    )
    profiler = profile(activities=activities)
    profiler.start()
    try:
        # `torch.compile` would compile a step that is called in another way again.
        _is_tracing, _is_marking = True, not model.jit_compile
        with calls if _is_marking else contextlib.nullcontext():
            yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    finally:
        _is_tracing = _is_marking = False
        profiler.stop()
    events = profiler.profiler.kineto_results.events()
    lines += read_lines(events, root, Owner("forward", root) if model.jit_compile else None)


def read_lines(events: Any, root: str, outer: Owner | None) -> list[Line]:
    """Returns the events of a profile as lines, each with its owner.

    An operation belongs to the innermost mark around it. In the backward pass, it has the owner of
    the forward operation with the same sequence number. A kernel on a GPU has the owner of the
    operation that launched it.

    Args:
        events: The events of Kineto.
        root: The path of the model.
        outer: The owner of operations outside of any mark; `None` for the rest.
    """
    lines: dict[Any, Line] = defaultdict(list)
    # The events of each thread that have not ended, each with its end, owner, and `is_backward`.
    stacks: dict[int, list[tuple[int, Owner | None, bool]]] = defaultdict(list)
    forward_owners: dict[tuple[int, int], Owner] = {}  # By thread and sequence number.
    launch_owners: dict[int, Owner] = {}  # By correlation number.
    kernels = []
    for event in sorted(events, key=lambda event: (event.start_ns(), -event.duration_ns())):
        if event.device_type() != torch.autograd.DeviceType.CPU:
            kernels.append(event)
            continue
        start, thread = event.start_ns(), event.start_thread_id()
        end = start + event.duration_ns()
        stack = stacks[thread]
        while stack and stack[-1][0] <= start:
            stack.pop()
        _, owner, is_backward = stack[-1] if stack else (0, outer, False)
        name, is_mark = event.name(), event.scope() == _USER_SCOPE
        if is_mark:
            owner, is_backward = _owner_of_mark(name, root, owner, is_backward)
        elif event.fwd_thread_id() > 0:
            is_backward = True
            forward_owner = forward_owners.get((event.fwd_thread_id(), event.sequence_nr()))
            if forward_owner is not None:
                owner = forward_owner
                if owner.part == "forward":
                    owner = owner._replace(part="backward")
        elif event.sequence_nr() >= 0 and owner is not None and not is_backward:
            forward_owners[thread, event.sequence_nr()] = owner
        stack.append((end, owner, is_backward))
        event_owner = owner or Owner("rest")
        launch_owners[event.correlation_id()] = event_owner
        # A mark is Python around operations: it is no work itself, except a wait for data.
        is_work = not is_mark or event_owner.part == "data_wait"
        lines["host", thread].append(
            Event(start * _NANOSECOND, end * _NANOSECOND, name, event_owner if is_work else None)
        )
    if kernels:
        lines = defaultdict(list, {key: without_work(line) for key, line in lines.items()})
    for event in kernels:
        start = event.start_ns() * _NANOSECOND
        end = (event.start_ns() + event.duration_ns()) * _NANOSECOND
        owner = launch_owners.get(event.linked_correlation_id(), Owner("rest"))
        lines["device", event.device_index(), event.device_resource_id()].append(
            Event(start, end, event.name(), owner)
        )
    return list(lines.values())


def _owner_of_mark(
    name: str, root: str, owner: Owner | None, is_backward: bool
) -> tuple[Owner | None, bool]:
    """Returns the owner of the operations inside a mark, and True in the backward pass."""
    if name.startswith(_LAYER):
        part = "backward" if is_backward else "forward"  # A layer that is computed again.
        return Owner(part, name.removeprefix(_LAYER)), is_backward
    if name == BACKWARD:
        return Owner("backward", root), True
    parts = {LOSS: "loss", OPTIMIZER: "optimizer", DATA_WAIT: "data_wait"}
    if name.startswith("enumerate(DataLoader)"):
        return Owner("data_wait"), is_backward
    return (Owner(parts[name]) if name in parts else owner), is_backward
