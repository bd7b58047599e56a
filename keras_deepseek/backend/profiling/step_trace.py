"""The trace of some training steps, and the wall time of each part of them."""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

PARTS = ("forward", "backward", "loss", "optimizer", "rest", "idle", "data_wait")
"""The parts of a step. Rest is work that belongs to none of the others."""

_NAMESPACE = "step."
LOSS, OPTIMIZER, BACKWARD, DATA_WAIT, WINDOW = (
    _NAMESPACE + name for name in ("loss", "optimizer", "backward", "data_wait", "window")
)
"""The names in a trace of the parts of a step; and of the time that counts."""


class Owner(NamedTuple):
    """The part of the step that an event belongs to, and the path of its layer or `""`."""

    part: str
    layer: str = ""


class Event(NamedTuple):
    """An event of a trace, in seconds.

    The time of an event without an owner counts for the event around it.
    """

    start: float
    end: float
    name: str
    owner: Owner | None


Line = list[Event]
"""The events of a thread or of a stream of a device. They nest."""


def divide_time(lines: Sequence[Line]) -> dict[Owner, float]:
    """Returns the seconds of the traced steps by owner. Their sum is the wall time.

    Of nested events the innermost counts. While several lines work, each has an equal share. Time
    in which none works is that of a wait for data, or idle.
    """
    changes: list[tuple[float, int, Owner | None]] = []
    for index, line in enumerate(lines):
        changes += [(time, index, owner) for time, owner in _flatten(line)]
    for event in (event for line in lines for event in line if event.name == WINDOW):
        changes += [(event.start, -1, Owner("window")), (event.end, -1, None)]
    changes.sort(key=lambda change: change[0])
    spent: dict[Owner, float] = defaultdict(float)
    working: dict[int, Owner] = {}
    waiting: dict[int, Owner] = {}
    is_in_window, previous_time = False, 0.0
    for time, index, owner in changes:
        if is_in_window and time > previous_time:
            owners = working or waiting or {0: Owner("idle")}
            for active_owner in owners.values():
                spent[active_owner] += (time - previous_time) / len(owners)
        previous_time = time
        if index < 0:  # A traced step begins or ends.
            is_in_window = owner is not None
            continue
        working.pop(index, None)
        waiting.pop(index, None)
        if owner is not None:
            (waiting if owner.part == "data_wait" else working)[index] = owner
    return dict(spent)


def without_work(line: Line) -> Line:
    """Returns a line of the host, for a step on a device, where only waits for data have owners."""
    return [
        event if event.owner and event.owner.part == "data_wait" else event._replace(owner=None)
        for event in line
    ]


def write_trace(lines: Sequence[Line], file: str | os.PathLike[str]) -> None:
    """Writes a trace as compressed JSON, which Perfetto and Chrome open."""
    events: list[dict[str, Any]] = [
        {
            "name": event.name,
            "ph": "X",
            "ts": event.start * 1e6,  # In microseconds.
            "dur": (event.end - event.start) * 1e6,
            "pid": 1,
            "tid": index,
            "args": {} if event.owner is None else event.owner._asdict(),
        }
        for index, line in enumerate(lines)
        for event in line
    ]
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=3) as opened:
        json.dump({"traceEvents": events}, opened)


def _flatten(line: Line) -> list[tuple[float, Owner | None]]:
    """Returns the times at which another layer or part begins to work in a thread or stream."""
    changes: list[tuple[float, Owner | None]] = []
    open_events: list[Event] = []
    owned = [event for event in line if event.owner is not None]
    last = Event(float("inf"), float("inf"), "", None)
    for event in [*sorted(owned, key=lambda event: (event.start, -event.end)), last]:
        while open_events and open_events[-1].end <= event.start:  # The one around it goes on.
            ended = open_events.pop()
            changes.append((ended.end, open_events[-1].owner if open_events else None))
        open_events.append(event)
        changes.append((event.start, event.owner))
    return changes[:-1]
