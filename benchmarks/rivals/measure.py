"""The process of one backend and one setting: its rivals take turns, and medians go out as JSON.

Started by `processes.measure`. A module beside this one says who competes; its `make_rivals` takes
the setting. A number is the median process time, in milliseconds: time that other processes take
from the processor does not count, but what they take from its caches does, hence the turns.

    KERAS_BACKEND=torch python benchmarks/rivals/measure.py attention 3 '{"length": 1024}'
"""

import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
from compiled import Rival, compile_rival

_LEAST_SECONDS = 0.02
"""A sample is of so many calls as take this long, or the clock would show."""

_QUIET_SECONDS = 0.02


def measure(
    rivals: Mapping[str, Rival | Callable[[], Any]],
    rounds: int,
    *,
    with_backward: bool,
    use_torch_compile: bool,
    repeats: int | None = None,
) -> dict[str, list[float]]:
    """Returns the milliseconds of a call by rival and round; a sample is of so many `repeats`."""
    actions: dict[str, Callable[[], Any]] = {}
    calls: dict[str, int] = {}
    for name, rival in rivals.items():
        actions[name] = rival
        if isinstance(rival, Rival):
            actions[name] = compile_rival(rival, with_backward, use_torch_compile)
        actions[name]()  # It compiles.
        calls[name] = repeats or math.ceil(_LEAST_SECONDS / max(_spend(actions[name]), 1e-6))
    spent: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            _settle()
            spent[name].append(_spend(action, calls[name]) * 1e3)
    return spent


def _settle() -> None:
    """Waits for the threads that still free what the last rival held: their time counts too."""
    while True:
        start = time.process_time()
        time.sleep(_QUIET_SECONDS)
        if time.process_time() - start < _QUIET_SECONDS / 10:
            return


def _spend(action: Callable[[], Any], repeats: int = 1) -> float:
    """Returns the seconds of process time that a call takes."""
    start = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - start) / repeats


def main() -> int:
    name, rounds, setting = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    use_torch_compile = setting.pop("use_torch_compile", False)
    directions = setting.pop("directions", ["forward", "with backward"])
    repeats = setting.pop("repeats", None)
    keras.utils.set_random_seed(0)
    rivals, facts = importlib.import_module(name).make_rivals(**setting)
    samples = {
        direction: measure(
            rivals,
            rounds,
            with_backward=direction == "with backward",
            use_torch_compile=use_torch_compile,
            repeats=repeats,
        )
        for direction in directions
    }
    milliseconds = {
        direction: {name: statistics.median(times) for name, times in spent.items()}
        for direction, spent in samples.items()
    }
    versions = {"keras": keras.__version__, keras.backend.backend(): _framework_version()}
    result = {"milliseconds": milliseconds, "samples": samples}
    print(json.dumps({**result, "facts": facts, "versions": versions}))
    return 0


def _framework_version() -> str:
    return str(importlib.import_module(keras.backend.backend()).__version__)


if __name__ == "__main__":
    sys.exit(main())
