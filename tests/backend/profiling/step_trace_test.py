import gzip
import json

import pytest

from keras_deepseek.backend.profiling.step_trace import (
    WINDOW,
    Event,
    Owner,
    divide_time,
    write_trace,
)

FORWARD, LOSS = Owner("forward", "head"), Owner("loss")
IDLE, WAIT = Owner("idle"), Owner("data_wait")


def window(start, end):
    return Event(start, end, WINDOW, None)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # The innermost event counts, and what has no owner is not there.
        (
            [[Event(1, 9, "a", FORWARD), Event(2, 5, "b", LOSS), Event(3, 4, "c", None)]],
            {FORWARD: 5, LOSS: 3, IDLE: 2},
        ),
        # An event begins where another ends.
        ([[Event(0, 4, "a", FORWARD), Event(4, 10, "b", LOSS)]], {FORWARD: 4, LOSS: 6}),
        # Two lines that work have equal shares.
        ([[Event(0, 10, "a", FORWARD)], [Event(2, 6, "b", LOSS)]], {FORWARD: 8, LOSS: 2}),
        # A wait counts where nothing else runs.
        ([[Event(0, 7, "w", WAIT)], [Event(3, 5, "a", FORWARD)]], {WAIT: 5, FORWARD: 2, IDLE: 3}),
        # Work outside of the window does not count.
        ([[Event(-5, 3, "a", FORWARD), Event(9, 20, "b", LOSS)]], {FORWARD: 3, IDLE: 6, LOSS: 1}),
    ],
)
def test_the_wall_time_is_divided_among_owners(lines, expected):
    seconds = divide_time([[window(0, 10)], *lines])
    assert seconds == pytest.approx(expected)
    assert sum(seconds.values()) == pytest.approx(10)


def test_windows_leave_out_the_time_between_them():
    lines = [[window(0, 2), window(6, 7)], [Event(1, 7, "a", FORWARD)]]
    assert divide_time(lines) == pytest.approx({IDLE: 1, FORWARD: 2})


def test_a_trace_is_written_as_perfetto_reads_it(tmp_path):
    file = tmp_path / "trace.json.gz"
    write_trace([[Event(1.0, 1.5, "dot", FORWARD)], [window(1.0, 2.0)]], file)
    with gzip.open(file, "rt") as opened:
        first, second = json.load(opened)["traceEvents"]
    assert (first["name"], first["ph"], first["ts"], first["dur"]) == ("dot", "X", 1e6, 5e5)
    assert first["args"] == {"part": "forward", "layer": "head"}
    assert (second["tid"], second["args"]) == (1, {})
